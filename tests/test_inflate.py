"""A model inflated to any size gives the outputs of its source."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_helpers import pipeinfer
from gguf import GGMLQuantizationType
from pipeline_helpers import DRAFT, GREEDY
from sampler_helpers import TARGET, tokens_of
from test_slicing import cut_logits, whole_logits
from tiny_models import HEAD, MODELS, Tiny, build

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source, inflation, real_layers, slice_plan, write_inflated, write_slice
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.pipeline import Pipeline

GQA = {"n_head": 4, "n_head_kv": 2}
F32, F16, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
PROMPTS = ("Once upon a time there was a little fox who", "The old king had three", "In the forest")


def inflated(source: Path, to: Path, **sizes: Any) -> Path:
    write_inflated(inflation(Source.open(source), **sizes), to)
    return to


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo target with 16 layers of four times the width."""
    path = tmp_path_factory.mktemp("big") / "big.gguf"
    yield inflated(TARGET, path, layers=16, width=2048)
    path.unlink()


def greedy(path: Path, prompts: tuple[str, ...] = PROMPTS, n: int = 44) -> tuple[list[list[int]], np.ndarray]:
    """n tokens behind each prompt, and all logits on the way."""
    context = SliceContext(path, n_ctx=128)
    texts, logits = [], []
    for prompt in prompts:
        context.clear()
        rows, text = tokens_of(prompt), []
        while len(text) < n:
            pos = np.arange(len(rows), dtype=np.int32) + (len(tokens_of(prompt)) + len(text) - 1 if text else 0)
            logits.append(context.decode(np.array(rows, np.int32), pos, np.zeros(len(rows), np.int32)).copy())
            rows = [int(logits[-1][-1].argmax())]
            text += rows
        texts.append(text)
    context.close()
    return texts, np.concatenate(logits)


def test_the_inflated_demo_target_writes_the_same_text(big: Path) -> None:
    texts, logits = greedy(TARGET)
    big_texts, big_logits = greedy(big)
    print(f"largest difference of logits: {np.abs(logits - big_logits).max()}")
    assert big_texts == texts and np.array_equal(big_logits, logits)


def test_the_sources_draft_drafts_for_it(tmp_path: Path) -> None:
    path = inflated(TARGET, tmp_path / "big.gguf", layers=14)
    (text,), _ = greedy(TARGET, PROMPTS[:1], 24)
    with Pipeline.local(target=path, draft=DRAFT, stages=1, mode="sync", draft_max=4) as p:
        assert [token.id for token in p.generate(PROMPTS[0], max_tokens=24, sampling=GREEDY)] == text
        assert p.last.draft.accepted > 6
    path.unlink()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama-tied", GQA),
        ("llama-untied", GQA | {"n_head_kv": 4}),
        ("llama-rope-freqs", {}),
        ("llama-lists", {"keys": {"attention.head_count_kv": [1] * 4, "feed_forward_length": [128] * 4}}),
        ("llama-q8_0", {}),
        ("llama-q4_K", {}),
        ("qwen2", {}),
        ("qwen2-tied", {"kind": F32}),
        ("qwen3", GQA),
        ("qwen3", {"kind": F32}),
    ],
)
def test_multiples_of_the_width_keep_every_bit(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    tiny = dataclasses.replace(MODELS[name], **{"n_ff": 256 if "K" in name else 128} | changes)
    path = build(tmp_path / "tiny.gguf", tiny)
    whole = whole_logits(path)
    for times, layers in ((1, 5), (2, tiny.n_layers), (3, 7), (4, 5), (8, 4)):
        plan = inflation(Source.open(path), layers=layers, width=times * tiny.n_embd, ffn=2 * tiny.n_ff)
        write_inflated(plan, tmp_path / "big.gguf", force=True)
        assert plan.is_exact and np.array_equal(whole_logits(tmp_path / "big.gguf"), whole), times


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_other_widths_agree_up_to_rounding(arch: str, tmp_path: Path) -> None:
    path = build(tmp_path / "tiny.gguf", Tiny(arch, kind=F32, **GQA))  # type: ignore[arg-type]
    plan = inflation(Source.open(path), width=96, layers=6)  # heads: 6 in groups of 2
    write_inflated(plan, tmp_path / "big.gguf")
    whole = whole_logits(path, "f32")
    difference = np.abs(whole_logits(tmp_path / "big.gguf", "f32") - whole).max()
    print(f"largest difference of logits: {difference} of {whole.std()}")
    assert not plan.is_exact and 0 < difference < 0.01 * whole.std()


def test_more_heads_than_the_width_holds(tmp_path: Path) -> None:
    keys = {"attention.key_length": HEAD, "attention.value_length": HEAD}
    path = build(tmp_path / "tiny.gguf", Tiny(n_embd=128, n_head=4, n_head_kv=2, keys=keys))
    big = inflated(path, tmp_path / "big.gguf", heads=10)
    assert Source.open(big).get("llama.attention.head_count_kv") == 5
    assert np.array_equal(whole_logits(big), whole_logits(path))


def test_slices_of_an_inflated_model_equal_it_and_its_source(tmp_path: Path) -> None:
    path = build(tmp_path / "tiny.gguf", Tiny(**GQA))  # type: ignore[arg-type]
    big = inflated(path, tmp_path / "big.gguf", layers=9, width=256)
    whole = whole_logits(path)
    for cuts in ([1], [4], [8], [2, 5, 7]):
        assert np.array_equal(cut_logits(big, cuts), whole)


def test_an_inflated_model_can_be_inflated_and_so_can_one_in_parts(tmp_path: Path) -> None:
    path = build(tmp_path / "tiny.gguf", dataclasses.replace(MODELS["qwen2"], n_ff=128), tensors_per_part=9)
    first = inflated(path, tmp_path / "first.gguf", layers=5, width=128)
    second = inflated(first, tmp_path / "second.gguf", layers=6, width=512, ffn=160)
    assert np.array_equal(whole_logits(second), whole_logits(path))


def test_sizes_are_those_asked_for(big: Path) -> None:
    old, new = Source.open(TARGET), Source.open(big)
    assert (new.n_layers, new.n_embd, new.name) == (16, 2048, f"{old.name} inflated to 16 layers, width 2048, FFN 1536")
    assert (new.tokens, new.chat_template, new.tied) == (old.tokens, old.chat_template, True)
    assert new.get("llama.attention.head_count") == 32 and new.get("llama.attention.head_count_kv") == 16
    elements = 8192 * 2048 + 16 * (2048 * (2048 + 1024 + 1024 + 2048) + 3 * 2048 * 1536)
    floats = 4 * 2048 * (1 + 2 * 16)
    assert sum(tensor.n_bytes for tensor in new.tensors.values()) == elements // 32 * 34 + floats
    assert big.stat().st_size - elements // 32 * 34 - floats < 2**20


def test_added_layers_lie_evenly_and_hold_weights(tmp_path: Path) -> None:
    assert real_layers(4, 10) == [0, 2, 5, 7] and real_layers(3, 3) == [0, 1, 2]
    big = inflated(build(tmp_path / "tiny.gguf", Tiny()), tmp_path / "big.gguf", layers=10)
    raw, tensors = big.read_bytes(), Source.open(big).tensors
    for i, name in itertools.product(range(10), ("attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down")):
        tensor = tensors[f"blk.{i}.{name}.weight"]
        values = np.frombuffer(raw[tensor.offset :][: tensor.n_bytes], np.float16)
        zero = i not in (0, 2, 5, 7) and name in ("attn_output", "ffn_down")
        assert (values.std() == 0) == zero and np.abs(values).max() < 10


@pytest.mark.parametrize(
    ("tiny", "sizes", "message"),
    [
        (Tiny(), {}, "has these sizes already"),
        (Tiny(), {"layers": 3}, "layers can only grow: 3 is less than the 4"),
        (Tiny(), {"width": 32}, "width can only grow"),
        (Tiny(), {"ffn": 64}, "FFN can only grow"),
        (Tiny(), {"heads": 1}, "heads can only grow"),
        (Tiny(), {"layers": 513}, "at most 512 layers"),
        (Tiny(), {"width": 10**12}, "ask for less"),
        (Tiny(), {"width": 100}, "A width of 100 does not divide .*: take 128"),
        (Tiny(), {"heads": 3}, "3 heads of 32 do not divide into groups of 2 .*: take 4"),
        (MODELS["qwen2"], {"heads": 4, "width": 64}, "4 heads of 32 .*: take 128"),
        (MODELS["llama-q8_0"], {"ffn": 100}, "FFN of 100 .* blocks of 32: take 128"),
        (MODELS["llama-q4_K"], {"ffn": 384}, "FFN of 384 .* blocks of 256: take 512"),
        (MODELS["llama-moe"], {"layers": 9}, "mixture of experts"),
        (MODELS["qwen3moe"], {"layers": 9}, "mixture of experts"),
        (MODELS["gemma3"], {"layers": 9}, "'gemma3', is not inflated: llama.cpp scales its embeddings"),
        (Tiny("falcon"), {"layers": 9}, "'falcon', is not inflated: no test shows"),
        (Tiny(tensors={"blk.1.odd.weight": (32, 32)}), {"layers": 9}, "blk.1.odd.weight, which no rule covers"),
        (Tiny(keys={"block_count": 5}), {"layers": 9}, "names 5 layers, but holds tensors of fewer"),
        (Tiny(tensors={"output.bias": (7,)}), {"layers": 9}, "output.bias does not have the shape"),
        (Tiny(keys={"feed_forward_length": [96, 96, 96, 64]}), {"layers": 9}, "layers of .* differ in their feed"),
        (Tiny(keys={"attention.odd": [1, 2, 3, 4]}), {"layers": 9}, "attention.odd of one value a layer"),
        (Tiny(keys={"attention.causal": False}), {"layers": 9}, "not causal"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Tiny, sizes: dict[str, int], message: str, tmp_path: Path) -> None:
    source = Source.open(build(tmp_path / "tiny.gguf", tiny))
    with pytest.raises(UserError, match=message):
        inflation(source, **sizes)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.open(build(tmp_path / "tiny.gguf", Tiny()))
    plan, to = inflation(source, width=256), tmp_path / "out" / "big.gguf"
    with pytest.raises(UserError, match="folder does not exist"):
        write_inflated(plan, to)
    to.parent.mkdir()
    with pytest.raises(UserError, match="is the model that is to be inflated"):
        write_inflated(plan, source.path, force=True)
    with pytest.raises(ZeroDivisionError):
        write_inflated(plan, to, lambda done, total: 1 // (done < total / 2))
    assert not list(to.parent.iterdir())
    seen: list[tuple[int, int]] = []
    write_inflated(plan, to, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (plan.data_bytes, plan.data_bytes) and seen == sorted(seen)
    assert [path.name for path in to.parent.iterdir()] == ["big.gguf"]
    with pytest.raises(UserError, match="exists already"):
        write_inflated(plan, to)
    write_slice(slice_plan(source, 0, 2), tmp_path / "slice.gguf")
    with pytest.raises(UserError, match="is a slice"):
        inflation(Source.open(tmp_path / "slice.gguf"), layers=9)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"inflated model needs .* has 0 MB free"):
        write_inflated(plan, to, force=True)


def test_the_command(tmp_path: Path) -> None:
    tiny = build(tmp_path / "tiny.gguf", Tiny(**GQA))  # type: ignore[arg-type]
    done = pipeinfer("models", "inflate", "demo", "--layers", 14, "-o", "big.gguf", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, "big.gguf\n", "")
    assert Source.open(tmp_path / "big.gguf").n_layers == 14
    done = pipeinfer("models", "inflate", tiny, "--width", 96, "-o", "big.gguf", cwd=tmp_path)
    assert done.code == 2 and done.err.startswith("Error: big.gguf exists already") and done.err.count("\n") == 1
    done = pipeinfer("models", "inflate", tiny, "--width", 96, "-o", "big.gguf", "--force", cwd=tmp_path)
    assert done.code == 0 and done.err.startswith("Note: the width is no multiple of 64")
    assert Source.open(tmp_path / "big.gguf").n_embd == 96
    done = pipeinfer("models", "inflate", "nowhere", "--layers", 20, "-o", "out.gguf", cwd=tmp_path)
    assert done.code == 2 and "nowhere" in done.err and not (tmp_path / "out.gguf").exists()
    (tmp_path / "big.gguf").unlink()
