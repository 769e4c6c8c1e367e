"""Written slices: every key and tensor accounted for, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader
from tiny_models import MODELS, Tiny, build, gemma3_62

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import (
    ADDED,
    COPIED,
    LEFT_OUT,
    REWRITTEN,
    SlicePlan,
    Source,
    cached_slices,
    slice_plan,
    write_slice,
)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source.open(build(tmp_path / "model.gguf", MODELS["llama-untied"]))


ACCOUNTED = {**MODELS, "gemma3-62": gemma3_62(n_embd=96, n_head=2)}


@pytest.mark.parametrize("name", ACCOUNTED)
def test_every_key_and_tensor_is_accounted_for(name: str, tmp_path: Path) -> None:
    source = Source.open(build(tmp_path / "model.gguf", ACCOUNTED[name]))
    n_layers, used = source.n_layers, set()
    for first, end in ((0, 1), (1, n_layers - 1), (n_layers - 1, n_layers), (0, n_layers)):
        plan = slice_plan(source, first, end)
        for steps, names in ((plan.keys, source.keys), (plan.tensors, source.tensors)):
            assert all(step.action in (COPIED, REWRITTEN, LEFT_OUT, ADDED) and step.reason for step in steps)
            assert sorted(s.name for s in steps if s.action != ADDED) == sorted(names)
        used |= {step.name for step in plan.tensors if step.origin}
        write_slice(plan, tmp_path / "slice.gguf")
        _check_written(plan, GGUFReader(tmp_path / "slice.gguf"), GGUFReader(source.path))
        assert plan.data_bytes < (tmp_path / "slice.gguf").stat().st_blocks * 512 <= plan.file_bytes + 8192
    assert used == set(source.tensors)


def _check_written(plan: SlicePlan, slice_file: GGUFReader, source_file: GGUFReader) -> None:
    """Read back with the gguf package: what the plan says is what the file holds."""
    fields = {name: field for name, field in slice_file.fields.items() if not name.startswith("GGUF.")}
    assert set(fields) == {step.name for step in plan.keys if step.action != LEFT_OUT}
    for step in plan.keys:
        if step.action == COPIED:
            assert fields[step.name].contents() == source_file.fields[step.name].contents()
    assert fields[f"{plan.source.architecture}.block_count"].contents() == plan.n_layers
    tensors, originals = {t.name: t for t in slice_file.tensors}, {t.name: t for t in source_file.tensors}
    assert set(tensors) == {step.target for step in plan.tensors if step.target}
    for step in plan.tensors:
        if step.target is None:
            continue
        written = tensors[step.target]
        assert (tuple(written.shape.tolist()), int(written.tensor_type)) == (step.shape, step.kind)
        assert written.data_offset % plan.source.alignment == 0
        if step.origin and step.data is None:
            assert written.data.tobytes() == originals[step.name].data.tobytes()
        elif step.is_hole:
            assert not written.data.any()


def test_parts_give_the_same_slices_as_one_file(tmp_path: Path) -> None:
    whole = Source.open(build(tmp_path / "whole.gguf", MODELS["llama-q8_0"]))
    parts = Source.open(build(tmp_path / "model.gguf", MODELS["llama-q8_0"], tensors_per_part=5))
    for first, end in ((0, 1), (1, 2), (2, 3), (0, 3)):
        write_slice(slice_plan(whole, first, end), tmp_path / "a.gguf")
        write_slice(slice_plan(parts, first, end), tmp_path / "b.gguf")
        a, b = GGUFReader(tmp_path / "a.gguf"), GGUFReader(tmp_path / "b.gguf")
        assert {n: f.contents() for n, f in a.fields.items()} == {n: f.contents() for n, f in b.fields.items()}
        assert {t.name: t.data.tobytes() for t in a.tensors} == {t.name: t.data.tobytes() for t in b.tensors}


def test_alignment_and_lists_by_layer_and_by_tensor_follow_the_cut(tmp_path: Path) -> None:
    keys = {
        "general.alignment": 256,
        "general.tensor_extra.name": ["blk.0.attn_q.weight", "blk.3.ffn_up.weight", "token_embd.weight"],
        "general.tensor_extra.prec_a4": [True, False, True],
        "attention.head_count_kv": [1, 1, 2, 1],
    }
    source = Source.open(build(tmp_path / "model.gguf", Tiny(keys=keys)))
    write_slice(slice_plan(source, 2, 4), tmp_path / "slice.gguf")
    cut = Source.open(tmp_path / "slice.gguf")
    assert cut.get("general.tensor_extra.name") == ["blk.1.ffn_up.weight", "output.weight"]
    assert cut.get("general.tensor_extra.prec_a4") == [False, True]
    assert cut.get("{arch}.attention.head_count_kv") == [2, 1]
    assert cut.alignment == 256 and all(t.offset % 256 == 0 for t in cut.tensors.values())


def test_placeholders_cost_no_disk(tmp_path: Path) -> None:
    source = Source.open(build(tmp_path / "model.gguf", Tiny(tied=False, extra_tokens=60_000)))
    embedding = source.tensors["token_embd.weight"].n_bytes
    sizes = {}
    for first, end in ((0, 1), (1, 3), (3, 4)):
        path = tmp_path / f"{first}.gguf"
        write_slice(slice_plan(source, first, end), path)
        sizes[first] = path.stat().st_blocks * 512
    assert sizes[1] < 0.1 * embedding < embedding <= sizes[0] < 1.2 * embedding
    vocabulary = source.keys["tokenizer.ggml.tokens"]
    assert sizes[3] < 1.2 * embedding + 3 * (vocabulary.end - vocabulary.start)


def test_a_slice_is_not_cut_again(source: Source, tmp_path: Path) -> None:
    write_slice(slice_plan(source, 0, 2), tmp_path / "slice.gguf")
    with pytest.raises(UserError, match="is a slice already"):
        slice_plan(Source.open(tmp_path / "slice.gguf"), 0, 1)


def test_a_full_disk_is_told_before_anything_is_copied(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    plan = slice_plan(source, 0, 2)
    with pytest.raises(UserError, match=r"^The slice needs 5 MB and .* has 0 MB free: .* or choose another folder\.$"):
        write_slice(plan, tmp_path / "slice.gguf")
    usage.free = plan.data_bytes + 1000  # not enough for the header
    with pytest.raises(UserError, match="MB free"):
        write_slice(plan, tmp_path / "slice.gguf")
    with pytest.raises(UserError, match=r"^The 2 slices need \d MB and .* has 0 MB free: "):
        cached_slices(source, [(0, 2), (2, 4)], cache_dir=tmp_path / "cache")
    assert not (tmp_path / "slice.gguf").exists() and not list(tmp_path.glob(".*.part"))


def test_a_slice_goes_only_where_it_can(source: Source, tmp_path: Path) -> None:
    plan = slice_plan(source, 0, 2)
    with pytest.raises(UserError, match="is the model that is to be cut"):
        write_slice(plan, source.path)
    with pytest.raises(UserError, match="folder does not exist"):
        write_slice(plan, tmp_path / "absent" / "slice.gguf")
    with pytest.raises(UserError, match="could not be written"):
        write_slice(plan, tmp_path)
    assert not list(tmp_path.glob(".*.part")) and Source.open(source.path).n_layers == 4
