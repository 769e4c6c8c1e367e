"""Where models can be cut, and which cuts are nearest to the wanted ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from specimens import specimen
from tiny_models import MODELS, build

from pipeinfer_cpp.cluster.plan import make_plan
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Cuts, Source, check_split, even_split, fit_split, needs_checkpoints, text_of
from pipeinfer_cpp.options import Options


def source_of(name: str, tmp_path: Path) -> Source:
    return Source.open(specimen(name).build(tmp_path / f"{name}.gguf"))


@pytest.mark.parametrize(
    ("name", "finest"),
    [
        ("llama", "0,1,2,3,4,5,6,7"),
        ("smollm3", "0-3,4-7"),
        ("llama4-default", "0-3,4-7,8-11"),
        ("gpt-oss-default", "0-1,2-3,4-5,6-7"),
        ("qwen35-interval-4", "0-3,4-7,8-11"),
        ("gemma4-e", "0-1,2-3,4-5,6-7,8-14"),
        ("glm-dsa-long", "0,1,2-5,6-9,10-11"),
        ("exaone4-32b", "0-63"),
        ("baichuan-13b", "0-39"),
        ("qwen35+mtp", "0-2,3-7"),
    ],
)
def test_the_finest_split(tmp_path: Path, name: str, finest: str) -> None:
    cuts = Cuts(source_of(name, tmp_path))
    found = cuts.finest()
    assert len(found) == len(finest.split(","))
    assert not any(cuts.refusal_of(first, end) for first, end in found)
    wanted = [(int(a), int(b or a) + 1) for a, _, b in (part.partition("-") for part in finest.split(","))]
    assert not any(cuts.refusal_of(first, end) for first, end in wanted)


@pytest.mark.parametrize(
    ("name", "at", "reason"),
    [
        ("smollm3", 2, "groups of 4"),
        ("ernie4_5-moe", 3, "groups of 2"),
        ("exaone4-32b", 32, "recognises this model by its 64 layers"),
        ("deci-lists", 4, "layer 4 has no attention heads"),
        ("hy_v4", 3, "layer 3 looks at the tokens that a layer before it picked"),
        ("gemma4-e", 9, "layers 10-14 attend over the caches of the two layers before them"),
    ],
)
def test_why_a_model_cannot_be_cut_before_a_layer(tmp_path: Path, name: str, at: int, reason: str) -> None:
    assert reason in Cuts(source_of(name, tmp_path)).refusal_at(at)


@pytest.mark.parametrize(
    ("name", "first", "end", "reason"),
    [
        ("qwen35", 0, 2, "a recurrent and an attention layer in each slice, and layers 0-1 has no attention one"),
        ("qwen35", 2, 3, "layer 2 has no recurrent one"),
        ("gpt-oss-default", 1, 2, "a sliding window in each slice, and layer 1 has none"),
        ("gemma4", 0, 1, "two layers with a cache of their own"),
        ("deepseek4", 0, 2, "both kinds of compressed cache"),
        ("deepseek2-30", 0, 26, "DeepSeek V2 Lite"),
        ("smallthinker-16", 4, 8, "a model of 4 layers"),
    ],
)
def test_why_layers_cannot_be_a_slice(tmp_path: Path, name: str, first: int, end: int, reason: str) -> None:
    assert reason in Cuts(source_of(name, tmp_path)).refusal_of(first, end)


def test_a_split_that_fits_stays(tmp_path: Path) -> None:
    source = source_of("llama", tmp_path)
    assert fit_split(source, [(0, 3), (3, 8)]) == ([(0, 3), (3, 8)], [])
    check_split(source, [(0, 3), (3, 8)])


def test_an_even_split_moves_to_the_nearest_that_fits_and_says_why(tmp_path: Path) -> None:
    source = source_of("llama4-default", tmp_path)
    ranges, notes = fit_split(source, even_split(12, 2))
    assert ranges in ([(0, 4), (4, 12)], [(0, 8), (8, 12)])
    assert len(notes) == 1 and f"divided {text_of(ranges)}, not 0-5,6-11: its layers differ in groups of 4" in notes[0]


def test_a_typed_split_is_refused_with_the_nearest_that_fits(tmp_path: Path) -> None:
    source = source_of("qwen35-interval-4", tmp_path)
    with pytest.raises(UserError, match=r"cannot be cut at 0-10,11: .* Use layers=0-9,10-11") as caught:
        check_split(source, [(0, 11), (11, 12)])
    assert "\n" not in str(caught.value)


def test_a_pipeline_warns_of_a_split_that_was_moved(tmp_path: Path) -> None:
    path = specimen("smollm3-12").build(tmp_path / "model.gguf")
    plan = make_plan(Options(target=str(path), stages=2, mode="off"))
    assert plan.ranges == [(0, 8), (8, 12)]
    assert any("divided 0-7,8-11, not 0-5,6-11" in warning for warning in plan.warnings)
    with pytest.raises(UserError, match="Use layers=0-7,8-11"):
        make_plan(Options(target=str(path), stages=2, mode="off", layers="0-6,7-11"))


@pytest.mark.parametrize(
    ("name", "n_stages", "said"),
    [
        ("smollm3", 3, "can be cut into 2 slices at most, not 3: its layers differ in groups of 4"),
        ("exaone4-32b", 2, "cannot be cut at all: llama.cpp recognises this model by its 64 layers"),
        ("gpt-oss-default", 6, "can be cut into 4 slices at most, not 6"),
    ],
)
def test_more_stages_than_fit_are_refused(tmp_path: Path, name: str, n_stages: int, said: str) -> None:
    source = source_of(name, tmp_path)
    with pytest.raises(UserError, match=said):
        fit_split(source, even_split(source.n_layers, n_stages))


def test_every_even_split_of_a_long_model_is_found_quickly(tmp_path: Path) -> None:
    source = source_of("gemma2-27b", tmp_path)
    for n_stages in range(1, 24):
        ranges, _ = fit_split(source, even_split(46, n_stages))
        assert len(ranges) == n_stages and ranges[0][0] == 0 and ranges[-1][1] == 46


@pytest.mark.parametrize(
    ("name", "needed"),
    [("qwen35", True), ("mamba2", True), ("deepseek4", True), ("falcon-h1", True), ("gpt-oss", False)],
)
def test_which_models_need_checkpoints(tmp_path: Path, name: str, needed: bool) -> None:
    assert needs_checkpoints(source_of(name, tmp_path)) == needed


def test_an_unknown_architecture_with_a_state_needs_them_too(tmp_path: Path) -> None:
    tiny = MODELS["llama-tied"]
    new = type(tiny)("brand-new", keys={"ssm.state_size": 16})
    assert needs_checkpoints(Source.open(build(tmp_path / "new.gguf", new)))
