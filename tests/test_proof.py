"""The proof before the first cut of a model: in another process, remembered, and right about what it cannot see."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import pytest
from sampler_helpers import TARGET
from specimens import specimen
from tiny_models import build, gemma3_62

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf import Cuts, Source, even_split
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.proof.prove import prove
from pipeinfer_cpp.ui.progress import opening


def source_of(name: str, tmp_path: Path) -> Source:
    return Source.open(specimen(name).build(tmp_path / f"{name}.gguf"))


def test_the_demo_target_passes_and_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.open(TARGET)
    ranges = even_split(source.n_layers, 3)
    proof = prove(source, ranges, cache_dir=tmp_path)
    assert (proof.outcome, proof.note) == ("equal", "")
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    began = time.perf_counter()
    assert prove(source, ranges, cache_dir=tmp_path) == proof
    assert time.perf_counter() - began < 0.5
    with pytest.raises(FileNotFoundError):
        prove(source, even_split(source.n_layers, 2), cache_dir=tmp_path)


def test_one_stage_needs_none(tmp_path: Path) -> None:
    assert prove(Source.open(TARGET), [(0, 12)], cache_dir=tmp_path).outcome == "equal"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["gemma4-e", "qwen35+mtp", "glm-dsa-long", "nemotron_h-lists"])
def test_models_of_many_kinds_pass_in_a_process_of_their_own(tmp_path: Path, name: str) -> None:
    source = source_of(name, tmp_path)
    assert prove(source, Cuts(source).finest(), cache_dir=tmp_path).outcome == "equal"


def test_the_27b_passes_and_its_rounding_is_told(tmp_path: Path) -> None:
    source = Source.open(build(tmp_path / "model.gguf", gemma3_62(n_embd=336, n_head=2)))
    for _ in range(2):
        proof = prove(source, [(0, 30), (30, 62)], cache_dir=tmp_path)
        assert proof.outcome == "equal" and "differ from the uncut model in the last bits" in proof.note
    exact = Source.open(build(tmp_path / "exact.gguf", gemma3_62()))
    assert not prove(exact, [(0, 30), (30, 62)], cache_dir=tmp_path).note


def test_an_architecture_that_no_rule_fits_is_refused_with_what_differed(tmp_path: Path) -> None:
    """rwkv6 normalises its embedding before layer 0, which no rule says."""
    source = source_of("rwkv6", tmp_path)
    with pytest.raises(UserError, match=r"cannot be cut at 0-3,4-7: .*\(rwkv6\).*logits are off by [\d.]+") as caught:
        prove(source, [(0, 4), (4, 8)], cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.json"))


def test_an_unknown_architecture_whose_small_model_ends_llama_cpp_is_refused(tmp_path: Path) -> None:
    """chameleon.cpp masks the logits of 8192 picture tokens, which a small vocabulary has not."""
    source = source_of("chameleon", tmp_path)
    with pytest.raises(UserError, match=r"'chameleon', which no test covers.*llama\.cpp ended with SIGABRT: ggml\.c"):
        prove(source, [(0, 4), (4, 8)], cache_dir=tmp_path)


def test_a_known_architecture_whose_small_model_ends_llama_cpp_is_refused(tmp_path: Path) -> None:
    source = source_of("gemma4-e-16", tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"cannot be cut: .*llama\.cpp ended with SIGABRT: llama-kv-cache"):
            prove(source, [(0, 8), (8, 16)], cache_dir=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_a_proof_that_cannot_be_kept_is_one(tmp_path: Path) -> None:
    source = Source.open(TARGET)
    (tmp_path / "file").touch()
    assert prove(source, even_split(source.n_layers, 2), cache_dir=tmp_path / "file" / "cache").outcome == "equal"


def test_what_could_not_be_tested_is_said_where_the_start_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = dataclasses.replace(specimen("qwen3"), lacks=lambda name: name == "output_norm.weight")
    options = Options(target=spec.build(tmp_path / "m.gguf"), stages=2)
    with pytest.raises(PipeInferError, match="Stage"), opening("Starting") as report:
        Pipeline(options, report)
    assert "Note: No small model like m.gguf could be made" in capsys.readouterr().err


def test_a_known_architecture_whose_small_model_cannot_be_made_is_cut_with_a_note(tmp_path: Path) -> None:
    spec = dataclasses.replace(specimen("qwen3"), lacks=lambda name: name == "output_norm.weight")
    proof = prove(Source.open(spec.build(tmp_path / "m.gguf")), [(0, 4), (4, 8)], cache_dir=tmp_path)
    assert proof.outcome == "untested" and not list(tmp_path.glob("*.json"))
    assert "'output_norm.weight' not found" in proof.note and "architecture qwen3 are tested" in proof.note
