"""Chained slices compute what the whole model does, bit for bit, also quantised, in parts and with a vocabulary.

Models of every architecture are in test_architectures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from sampler_helpers import TARGET
from specimens import specimen
from tiny_models import MODELS, build, gemma3_62

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Cuts, Source, slice_plan, write_slice
from pipeinfer_cpp.proof.chain import chained_logits, write_slices


def whole_logits(path: Path, kv_type: str = "f16") -> np.ndarray:
    return chained_logits([path], Source.open(path).n_vocab, kv_type)


def cut_logits(path: Path, cuts: list[int], kv_type: str = "f16") -> np.ndarray:
    """Through slices beside the model, between the cuts."""
    source = Source.open(path)
    ranges = list(zip([0, *cuts], [*cuts, source.n_layers], strict=True))
    return chained_logits(write_slices(source, ranges, path.parent), source.n_vocab, kv_type)


@pytest.mark.parametrize("name", MODELS)
def test_chained_slices_equal_the_whole_model_at_every_cut(name: str, tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", MODELS[name])
    whole, n_layers = whole_logits(path), Source.open(path).n_layers
    assert np.isfinite(whole).all() and whole.std() > 0.1
    for cuts in [*([at] for at in range(1, n_layers)), list(range(1, n_layers))]:
        chained = cut_logits(path, cuts)
        assert np.array_equal(whole, chained), f"cut at {cuts}: off by {np.abs(whole - chained).max()}"


@pytest.mark.parametrize("name", ["llama-q8_0", "gemma3"])
def test_slices_are_right_with_a_quantised_cache(name: str, tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", MODELS[name])
    assert np.array_equal(whole_logits(path, "q8_0"), cut_logits(path, [1, 2], "q8_0"))


@pytest.mark.parametrize("name", ["gemma4-e", "qwen35moe", "deepseek2", "gpt-oss-default", "granitehybrid", "gemma"])
def test_slices_of_quantised_models_of_other_architectures_equal_them(name: str, tmp_path: Path) -> None:
    path = specimen(name).build(tmp_path / "model.gguf", kind=GGMLQuantizationType.Q8_0)
    source = Source.open(path)
    assert any(t.kind == GGMLQuantizationType.Q8_0 for t in source.tensors.values())
    chained = chained_logits(write_slices(source, Cuts(source).finest(), tmp_path), source.n_vocab)
    assert np.array_equal(whole_logits(path), chained)


def test_62_layer_gemma3_as_the_27b_has_it_is_right_up_to_rounding(tmp_path: Path) -> None:
    """n_embd / n_head is 168, no power of four times the head's size: folding rounds once more."""
    path = build(tmp_path / "model.gguf", gemma3_62(n_embd=336, n_head=2))
    whole, chained = whole_logits(path), cut_logits(path, [30])
    assert 0 < np.abs(whole - chained).max() < 0.01 * whole.std()
    assert np.array_equal(whole.argmax(axis=1), chained.argmax(axis=1))
    assert np.array_equal(chained, cut_logits(path, [7, 45])), "splits must agree in every bit"


def test_slices_of_a_multi_part_model_equal_it(tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", MODELS["qwen2"], tensors_per_part=9)
    assert np.array_equal(whole_logits(path), cut_logits(path, [1, 3]))


def test_slices_of_the_demo_target_equal_it(tmp_path: Path) -> None:
    source = Source.open(TARGET)
    paths = write_slices(source, [(0, 4), (4, 8), (8, source.n_layers)], tmp_path)
    assert np.array_equal(whole_logits(TARGET), chained_logits(paths, source.n_vocab))


@pytest.mark.parametrize("piece", [1 << 9, 1 << 13, 2 << 20])
def test_columns_are_the_same_whatever_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Tables of per-layer inputs are streamed: rows shorter and longer than a piece."""
    path = specimen("gemma4-e").build(tmp_path / "model.gguf", kind=GGMLQuantizationType.Q8_0)
    source = Source.open(path)
    table = source.tensors["per_layer_token_embd.weight"]
    monkeypatch.setattr("pipeinfer_cpp.gguf.one_pass._PIECE", piece)
    write_slice(slice_plan(source, 4, 7), tmp_path / "slice.gguf")
    cut = Source.open(tmp_path / "slice.gguf").tensors["per_layer_token_embd.weight"]
    rows = np.fromfile(path, np.uint8, table.n_bytes, offset=table.offset).reshape(128, 15, -1)
    written = np.fromfile(cut.path, np.uint8, cut.n_bytes, offset=cut.offset).reshape(128, 3, -1)
    assert cut.shape == (3 * 64, 128) and np.array_equal(rows[:, 4:7], written)


def test_columns_that_share_a_block_are_refused(tmp_path: Path) -> None:
    spec = specimen("gemma4-e-16")
    path = spec.build(tmp_path / "model.gguf", kind=GGMLQuantizationType.Q8_0)
    with pytest.raises(UserError, match="wider than a layer's 16 inputs: use a file in another quantisation"):
        slice_plan(Source.open(path), 0, 4)
