"""Reading GGUF models: what is understood, and what is said of files that are not models."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from tiny_models import CHATML, MODELS, SPECIALS, Tiny, build, vocabulary

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf import Source, fit_split, slice_plan


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build(tmp_path / "model.gguf", MODELS["llama-untied"])


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_a_source_says_what_it_holds(model: Path) -> None:
    source = Source.open(model)
    assert (source.architecture, source.n_layers, source.n_embd, source.n_ctx_train) == ("llama", 4, 64, 512)
    assert source.tokens == vocabulary() and source.n_vocab == len(vocabulary())
    assert source.chat_template == CHATML
    assert (source.bos, source.eos, source.add_bos, source.add_eos, source.tied) == (0, 2, False, False, False)
    assert source.size_bytes == model.stat().st_size
    assert source.token_types[: len(SPECIALS)] == [3, 3, 3]


def test_every_key_and_tensor_is_read_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", MODELS["gemma3-array"])
    source, reader = Source.open(path), GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert {name: key.read() for name, key in source.keys.items()} == fields
    for tensor in reader.tensors:
        mine = source.tensors[tensor.name]
        assert (mine.shape, mine.kind) == (tuple(tensor.shape.tolist()), int(tensor.tensor_type))
        assert (mine.n_bytes, mine.offset) == (tensor.n_bytes, tensor.data_offset)


def test_parts_are_one_model_whichever_is_named(tmp_path: Path) -> None:
    whole = Source.open(build(tmp_path / "whole.gguf", MODELS["llama-tied"]))
    first = build(tmp_path / "model.gguf", MODELS["llama-tied"], tensors_per_part=7)
    parts = sorted(tmp_path.glob("model-*-of-*.gguf"))
    assert len(parts) > 2
    for path in parts:
        source = Source.open(path)
        assert source.path == first and source.parts == tuple(parts)
        assert source.size_bytes == sum(p.stat().st_size for p in parts)
        assert {t.name: t.shape for t in source.tensors.values()} == {t.name: t.shape for t in whole.tensors.values()}
    content = b"".join(p.read_bytes() for p in parts)
    assert Source.open(first).sha256() == hashlib.sha256(content).hexdigest()


def test_a_missing_or_foreign_part_is_named(tmp_path: Path) -> None:
    first = build(tmp_path / "model.gguf", MODELS["llama-tied"], tensors_per_part=7)
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    third = first.with_name(first.name.replace("00001-of", "00003-of"))
    shutil.copy(third, second)
    with pytest.raises(UserError, match="is not part 2") as caught:
        Source.open(first)
    one_line(caught)
    second.unlink()
    with pytest.raises(UserError, match=r"Part 2 of .* is missing") as caught:
        Source.open(third)
    assert second.name in one_line(caught)
    renamed = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(UserError, match="its name must end in"):
        Source.open(renamed)


def test_files_that_are_no_models_are_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("Once upon a time there was a model.")
    (tmp_path / "magic.gguf").write_bytes(b"GGUF")
    data = bytearray(model.read_bytes())
    data[4:8] = (1).to_bytes(4, "little")
    (tmp_path / "old.gguf").write_bytes(data)
    data[4:8] = (3).to_bytes(4, "big")
    (tmp_path / "big.gguf").write_bytes(data)
    adapter = GGUFWriter(tmp_path / "adapter.gguf", "llama")
    adapter.add_type("adapter")
    adapter.write_header_to_file()
    adapter.write_kv_data_to_file()
    adapter.close()
    for name, said in {
        "absent.gguf": "There is no file",
        ".": "is a folder",
        "empty.gguf": "not a GGUF file",
        "text.gguf": "not a GGUF file",
        "magic.gguf": "truncated",
        "old.gguf": "version 1",
        "big.gguf": "big-endian",
        "adapter.gguf": "type 'adapter'",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            Source.open(tmp_path / name)
        one_line(caught)
        assert caught.value.exit_code == 2


def test_a_truncated_file_is_told_at_any_length(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    short = tmp_path / "short.gguf"
    for size in [*range(8, len(data), len(data) // 97), len(data) - 1]:
        short.write_bytes(data[:size])
        with pytest.raises(UserError, match="truncated") as caught:
            Source.open(short)
        one_line(caught)
    assert f"it holds {len(data) - 1:,} of {len(data):,} bytes" in str(caught.value)


def test_a_damaged_header_is_refused_or_read_but_never_a_crash(model: Path, tmp_path: Path) -> None:
    data, damaged = model.read_bytes(), tmp_path / "damaged.gguf"
    header = Source.open(model).tensors["token_embd.weight"].offset
    rng, refused = np.random.default_rng(3), 0
    for _ in range(400):
        broken = bytearray(data)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            broken[at] = rng.integers(256)
        damaged.write_bytes(broken)
        try:
            source = Source.open(damaged)
            slice_plan(source, 1, source.n_layers)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 20


def test_the_hash_is_that_of_the_content_and_remembered_until_it_changes(model: Path) -> None:
    calls: list[tuple[int, int]] = []
    source = Source.open(model)
    digest = source.sha256(lambda done, total: calls.append((done, total)))
    assert digest == hashlib.sha256(model.read_bytes()).hexdigest()
    assert calls[-1] == (source.size_bytes, source.size_bytes)
    calls.clear()
    assert source.sha256(lambda done, total: calls.append((done, total))) == digest and not calls
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    assert source.sha256() == hashlib.sha256(data).hexdigest()


def test_a_file_that_grows_while_it_is_hashed_is_told(model: Path) -> None:
    def grow(_done: int, _total: int) -> None:
        with model.open("ab") as file:
            file.write(b"more")

    with pytest.raises(PipeInferError, match="changed while it was read"):
        Source.open(model).sha256(grow)


@pytest.mark.parametrize(
    ("arch", "why"),
    [
        ("gemma3n", "four streams"),
        ("kimi-k3", "several layers before"),
        ("minimax-01", "decay"),
        ("rwkv7", "the first one computed"),
    ],
)
def test_architectures_that_cannot_be_cut_are_refused_by_name_and_reason(tmp_path: Path, arch: str, why: str) -> None:
    source = Source.open(build(tmp_path / "model.gguf", Tiny(arch)))
    with pytest.raises(UserError, match=f"'{arch}' cannot be cut: .*{why}") as caught:
        slice_plan(source, 0, 2)
    one_line(caught)


def test_what_cannot_be_cut_runs_in_one_stage(tmp_path: Path) -> None:
    source = Source.open(build(tmp_path / "model.gguf", Tiny("talkie")))
    assert slice_plan(source, 0, 4).counts()["tensors"]["left out"] == 0
    with pytest.raises(UserError, match=r"every layer reads the embedding again\. Run it with one stage"):
        fit_split(source, [(0, 2), (2, 4)])


@pytest.mark.parametrize(("arch", "why"), [("bert", "token by token"), ("eagle3", "drafts for another model")])
def test_what_writes_no_text_is_refused_whole_too(tmp_path: Path, arch: str, why: str) -> None:
    source = Source.open(build(tmp_path / "model.gguf", Tiny(arch)))
    for end in (2, 4):
        with pytest.raises(UserError, match=f"'{arch}' cannot be used: .*{why}"):
            slice_plan(source, 0, end)


@pytest.mark.parametrize(
    ("tiny", "said"),
    [
        (Tiny(tensors={"blk.9.attn_norm.weight": (64,)}), "layer 9"),
        (Tiny(keys={"attention.causal": False}), "not causal"),
        (Tiny(keys={"some.new_list": [1, 2, 3, 4]}), "llama.some.new_list"),
        (Tiny(keys={"feed_forward_length": [96, 96]}), "has 2 values, not 4"),
        (Tiny("gpt-oss", keys={"attention.sliding_window": 8}), "a layer with a sliding window"),
    ],
)
def test_what_the_rules_do_not_cover_is_refused(tmp_path: Path, tiny: Tiny, said: str) -> None:
    source = Source.open(build(tmp_path / "model.gguf", tiny))
    with pytest.raises(UserError, match=said) as caught:
        slice_plan(source, 1, 2)
    one_line(caught)


def test_layers_that_predict_several_tokens_are_not_counted(tmp_path: Path) -> None:
    source = Source.open(build(tmp_path / "model.gguf", Tiny("glm4moe", keys={"nextn_predict_layers": 1})))
    assert (source.n_layers, source.n_layers_beyond) == (3, 1)
    plan = slice_plan(source, 1, 3)
    assert plan.gives_logits and not any("blk.3" in (step.target or "") for step in plan.tensors)
    assert {step.name: step.action for step in plan.tensors}["blk.3.attn_q.weight"] == "left out"


@pytest.mark.parametrize(("first", "end"), [(0, 5), (-1, 2), (2, 2), (3, 1)])
def test_layers_that_the_model_has_not_are_refused(model: Path, first: int, end: int) -> None:
    with pytest.raises(UserError, match="not a range"):
        slice_plan(Source.open(model), first, end)
