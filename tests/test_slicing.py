"""Chained slices compute what the whole model does, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sampler_helpers import TARGET
from tiny_models import MODELS, build, gemma3_62

from pipeinfer_cpp.gguf import SUPPORTED, Source, slice_plan, write_slice
from pipeinfer_cpp.llama.context import SliceContext

PROMPT, SINGLE = 24, 4
"""Rows decoded at once, then one by one: past every tiny sliding window."""


def whole_logits(path: Path, kv_type: str = "f16") -> np.ndarray:
    return chain_logits([path], kv_type)


def chain_logits(slices: list[Path], kv_type: str = "f16") -> np.ndarray:
    """float32[PROMPT + SINGLE, n_vocab] of a fixed text through the slices in turn."""
    contexts = [SliceContext(path, n_ctx=64, n_ubatch=PROMPT, kv_type=kv_type) for path in slices]
    tokens = np.random.default_rng(5).integers(3, 250, PROMPT + SINGLE, dtype=np.int32)
    out, at = [], 0
    try:
        for n in [PROMPT] + [1] * SINGLE:
            hidden = None
            for context in contexts:
                pos = np.arange(at, at + n, dtype=np.int32)
                hidden = context.decode(tokens[at : at + n], pos, np.zeros(n, np.int32), hidden=hidden)
            out.append(np.array(hidden))
            at += n
    finally:
        for context in contexts:
            context.close()
    return np.concatenate(out)


def cut(source: Source, folder: Path, cuts: list[int]) -> list[Path]:
    """Slices between the cuts."""
    slices = []
    for first, end in zip([0, *cuts], [*cuts, source.n_layers], strict=True):
        path = folder / f"slice-{first}-{end}.gguf"
        if not path.exists():
            write_slice(slice_plan(source, first, end), path)
        slices.append(path)
    return slices


@pytest.mark.parametrize("name", MODELS)
def test_chained_slices_equal_the_whole_model_at_every_cut(name: str, tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", MODELS[name])
    source, whole = Source.open(path), whole_logits(path)
    assert np.isfinite(whole).all() and whole.std() > 0.1
    for at in range(1, source.n_layers):
        chained = chain_logits(cut(source, tmp_path, [at]))
        assert np.array_equal(whole, chained), f"cut at {at}: off by {np.abs(whole - chained).max()}"


@pytest.mark.parametrize("name", MODELS)
def test_single_layer_slices_equal_the_whole_model(name: str, tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", MODELS[name])
    source = Source.open(path)
    chained = chain_logits(cut(source, tmp_path, list(range(1, source.n_layers))))
    assert np.array_equal(whole_logits(path), chained)


@pytest.mark.parametrize("name", ["llama-q8_0", "gemma3"])
def test_slices_are_right_with_a_quantised_cache(name: str, tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", MODELS[name])
    chained = chain_logits(cut(Source.open(path), tmp_path, [1, 2]), "q8_0")
    assert np.array_equal(whole_logits(path, "q8_0"), chained)


def test_62_layer_gemma3_is_exact_at_every_cut_where_its_scale_folds_exactly(tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", gemma3_62())
    source, whole = Source.open(path), whole_logits(path)
    for at in range(1, 62):
        chained = chain_logits(cut(source, tmp_path, [at]))
        assert np.array_equal(whole, chained), f"cut at {at}: off by {np.abs(whole - chained).max()}"


def test_62_layer_gemma3_as_the_27b_has_it_is_right_up_to_rounding(tmp_path: Path) -> None:
    """n_embd / n_head is 168, no power of four times the head's size: folding rounds once more."""
    path = build(tmp_path / "model.gguf", gemma3_62(n_embd=336, n_head=2))
    source, whole = Source.open(path), whole_logits(path)
    chained = chain_logits(cut(source, tmp_path, [30]))
    assert np.abs(whole - chained).max() < 0.01 * whole.std()
    assert np.array_equal(whole.argmax(axis=1), chained.argmax(axis=1))
    assert np.array_equal(chained, chain_logits(cut(source, tmp_path, [7, 45]))), "splits must agree in every bit"


GUARDED = {
    "llama-rope-freqs": "rope_freqs.weight",
    "gemma3": "attention.sliding_window_pattern",
    "gemma3-period-3": "attention.sliding_window_pattern",
    "gemma3-array": "attention.sliding_window_pattern",
    "gemma3-62": "blk.0.attn_q_norm.weight",
}


@pytest.mark.parametrize("name", GUARDED)
def test_a_slice_without_its_rule_computes_something_else(name: str, tmp_path: Path) -> None:
    """Shows that the tests above would notice: each of these loads without a complaint."""
    path = build(tmp_path / "model.gguf", MODELS.get(name, gemma3_62()))
    source, slices = Source.open(path), []
    for first, end in ((0, 2), (2, source.n_layers)):
        plan = slice_plan(source, first, end)
        keys = [s for s in plan.keys if not s.name.endswith(GUARDED[name])]
        keys += [
            dataclasses.replace(s, data=None, action="copied")
            for s in plan.keys
            if s.name.endswith(GUARDED[name]) and s.key
        ]
        tensors = [s for s in plan.tensors if s.target != GUARDED[name]]
        tensors += [
            dataclasses.replace(s, data=None, action="copied")
            for s in plan.tensors
            if s.target == GUARDED[name] and s.data is not None
        ]
        slice_path = tmp_path / f"slice-{first}.gguf"
        write_slice(dataclasses.replace(plan, keys=tuple(keys), tensors=tuple(tensors)), slice_path)
        slices.append(slice_path)
    difference = np.abs(whole_logits(path) - chain_logits(slices)).max(axis=1)
    assert difference.max() > 0.5


def test_slices_of_a_multi_part_model_equal_it(tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", MODELS["qwen2"], tensors_per_part=9)
    chained = chain_logits(cut(Source.open(path), tmp_path, [1, 3]))
    assert np.array_equal(whole_logits(path), chained)


def test_slices_of_the_demo_target_equal_it(tmp_path: Path) -> None:
    chained = chain_logits(cut(Source.open(TARGET), tmp_path, [4, 8]))
    assert np.array_equal(whole_logits(TARGET), chained)


def test_every_supported_architecture_has_a_model_here() -> None:
    assert {tiny.arch for tiny in MODELS.values()} == set(SUPPORTED)
