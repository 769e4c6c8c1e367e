"""The self-test: one layer of each kind tells what the whole slice would."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hybrid_models import speaking
from numpy.typing import NDArray
from pipeline_helpers import GREEDY, PROMPT, TARGET, local
from specimens import F32, Arr, specimen
from tiny_models import MODELS, Tiny, build

from pipeinfer_cpp import Pipeline, Sampling
from pipeinfer_cpp.gguf import Source, cached_slice, inflation, slice_plan, write_inflated, write_slice
from pipeinfer_cpp.gguf.cuts import Cuts
from pipeinfer_cpp.gguf.kinds import Sample, samples_of
from pipeinfer_cpp.llama import selftest
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.node_values import NodeValues
from pipeinfer_cpp.llama.selftest import Found, bent, examine
from pipeinfer_cpp.net.messages import ContextOptions, LoadSlice, ModelRef
from pipeinfer_cpp.workers import probe as probe_module
from pipeinfer_cpp.workers.probe import Setup, _cut, probe
from pipeinfer_cpp.workers.slice_runner import SliceRunner

EXACT = Setup("q8_0", True, 1, 0, 1024, 8, True)
ROWS = Setup("f16", False, 1, 0, 1024, 8, True)
"""Without flash attention every width above 1 differs (in last bits that rounding hides for a while)."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The slices that were really looked at, by the file that was opened."""
    opened: list[str] = []

    def counted(context: SliceContext, *args: Any, **more: Any) -> Found:
        opened.append("tested")
        return examine(context, *args, **more)

    monkeypatch.setattr(probe_module, "examine", counted)
    return opened


def ask(source: Source, first: int, end: int, setup: Setup = EXACT) -> tuple[dict[int, float], int]:
    return probe(source, (first, end), str(cached_slice(source, first, end)), setup, lambda *_: None)


def of_the_whole(source: Source, first: int, end: int, setup: Setup) -> int:
    context = setup.open(str(cached_slice(source, first, end)))
    try:
        return examine(context, setup.widest).safe
    finally:
        context.close()


@pytest.mark.parametrize(("setup", "expected"), [(EXACT, 8), (ROWS, 1)])
def test_one_layer_tells_what_the_whole_slice_does(setup: Setup, expected: int) -> None:
    """A short form of scripts/one_layer.py."""
    source = Source.open(TARGET)
    for first, end in ((0, 6), (6, 12)):
        assert ask(source, first, end, setup)[1] == expected == of_the_whole(source, first, end, setup)


@pytest.mark.parametrize("name", ["qwen35", "granitehybrid", "falcon-h1", "lfm2", "gpt-oss", "gemma4-e", "deepseek2"])
def test_models_whose_layers_do_not_stand_alone(name: str, tmp_path: Path) -> None:
    source = Source.open(specimen(name).build(tmp_path / "model.gguf", kind=GGMLQuantizationType.Q8_0))
    setup = Setup("f16", True, 1, 0, 256, 4, True)
    for first, end in Cuts(source).finest():
        assert all(slice_plan(source, *sample.layers) for sample in samples_of(source, first, end))
        curve, safe = ask(source, first, end, setup)
        assert 1 <= safe <= of_the_whole(source, first, end, setup) and min(curve.values()) > 0


def test_layers_are_alike_by_types_shapes_and_settings_not_by_weights_or_number(tmp_path: Path) -> None:
    def kinds(tiny: Tiny, name: str) -> set[str]:
        source = Source.open(build(tmp_path / f"{name}.gguf", tiny))
        return {sample.signature for sample in samples_of(source, 1, source.n_layers - 1)}

    base = kinds(Tiny(), "base")
    assert len(base) == 1
    assert kinds(Tiny(seed=2), "seed") == kinds(Tiny(n_layers=6), "layers") == base
    assert kinds(Tiny(extra_tokens=1000), "vocabulary") == base
    for name, other in {
        "type": Tiny(kind=GGMLQuantizationType.Q8_0),
        "shape": Tiny(n_ff=128),
        "heads": Tiny(n_head_kv=2),
        "window": Tiny("gemma3", n_layers=4),
    }.items():
        assert kinds(other, name).isdisjoint(base), name
    windows = kinds(MODELS["gemma3-period-3"], "windows")
    assert len(windows) == 2  # sliding and full


def test_the_head_is_a_sample_of_its_own(tmp_path: Path) -> None:
    source = Source.open(TARGET)
    head, layer = samples_of(source, 6, 12)
    assert (head.layers, head.deep, head.share) == ((11, 12), False, 1.0)
    assert layer.deep and layer.share == 5.0 and layer.layers[0] > 0
    assert samples_of(source, 0, 6)[0].signature == layer.signature


def test_an_answer_holds_for_other_splits_other_models_and_moved_files(tests: list[str], tmp_path: Path) -> None:
    source = Source.open(TARGET)
    curve, safe = ask(source, 0, 6)
    assert tests == ["tested"]
    assert ask(source, 0, 3)[1] == ask(source, 3, 6)[1] == safe and len(tests) == 1
    bigger = tmp_path / "bigger.gguf"
    write_inflated(inflation(source, layers=20), bigger)
    assert ask(Source.open(bigger), 0, 10)[0][1] == pytest.approx(curve[1] * 10 / 6) and len(tests) == 1
    moved = bigger.rename(tmp_path / "moved.gguf")
    assert ask(Source.open(moved), 10, 20)[1] == safe and len(tests) == 2  # the head
    ask(source, 0, 6, ROWS)
    ask(source, 0, 6, Setup("q8_0", True, 2, 0, 1024, 8, True))
    assert len(tests) == 4  # other settings, other threads


def test_a_damaged_record_is_made_again(tests: list[str], tmp_path: Path) -> None:
    source = Source.open(TARGET)
    ask(source, 0, 6)
    (record,) = (tmp_path / "cache" / "probes").glob("*.json")
    for damage in ("", "[]", json.dumps({"safe": 8})):
        record.write_text(damage)
        assert ask(source, 0, 6)[1] == 8
    assert len(tests) == 4


def test_stages_share_the_work(tests: list[str]) -> None:
    """Both want the layer, one the head too: each is looked at once, and the other waits for what it lacks."""
    source = Source.open(TARGET)
    cached_slice(source, 0, 6), cached_slice(source, 6, 12)
    found: dict[int, int] = {}
    stages = [threading.Thread(target=lambda a=a: found.update({a: ask(source, a, a + 6)[1]})) for a in (0, 6)]
    for stage in stages:
        stage.start()
    for stage in stages:
        stage.join(60)
    assert found == {0: 8, 6: 8} and len(tests) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells where a file is")
def test_samples_lie_in_memory_only_where_the_stage_takes_more_than_they(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source.open(TARGET)
    head, layer = samples_of(source, 6, 12)

    def place(sample: Sample, layers: tuple[int, int]) -> str:
        with _cut(source, sample, layers) as name:
            assert Source.open(name).n_layers == 1
            return os.readlink(name)

    assert place(layer, (0, 11)).startswith("/memfd:")
    assert place(head, (10, 12)).startswith(str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("tmp*"))

    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(probe_module.tempfile, "TemporaryFile", full)
    assert place(head, (10, 12)).startswith("/memfd:")


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    write_slice(slice_plan(Source.open(TARGET), 1, 2), tmp_path / "layer.gguf")
    return tmp_path / "layer.gguf"


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Lets a function change what runs give: it gets the rows' number, their first position and the result."""

    def patch(change: Callable[[int, int, NDArray[np.float32]], None]) -> None:
        decode = SliceContext.decode

        def wrong(self: SliceContext, tokens: Any, pos: Any, *args: Any, **more: Any) -> NDArray[np.float32]:
            out = decode(self, tokens, pos, *args, **more)
            change(len(tokens), int(pos[0]), out)
            return out

        monkeypatch.setattr(SliceContext, "decode", wrong)

    return patch


def widest(layer: Path, *args: Any, **more: Any) -> int:
    context = EXACT.open(str(layer))
    try:
        return examine(context, *args, **more).safe
    finally:
        context.close()


@pytest.mark.parametrize("bad", range(2, 9))
def test_a_width_that_differs_ends_what_is_exact(layer: Path, bad: int, spoil: Any) -> None:
    """The last bit of one value of one row of runs of one width."""

    def change(n: int, _pos: int, out: NDArray[np.float32]) -> None:
        if n == bad:
            out[bad // 2].view(np.uint32)[5] ^= 1

    spoil(change)
    assert widest(layer) == bad - 1
    assert widest(layer, bad - 1) == bad - 1
    assert widest(layer, compare=False) == 1


def test_only_deep_differences_are_found(layer: Path, spoil: Any) -> None:
    def change(n: int, pos: int, out: NDArray[np.float32]) -> None:
        if n == 4 and pos > 512:
            out[0].view(np.uint32)[0] ^= 1

    spoil(change)
    assert widest(layer) == 3 and widest(layer, depths=selftest.DEPTHS[:2]) == 8


@pytest.mark.parametrize("bad", [2, 5, 8])
def test_cells_that_differ_end_it_too(layer: Path, bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of one width leave other cells behind, though their results are right."""
    decode = SliceContext.decode

    def wrong(self: SliceContext, tokens: Any, pos: Any, *args: Any, **more: Any) -> NDArray[np.float32]:
        out = decode(self, tokens, pos, *args, **more)
        if len(tokens) == bad:
            seq, wanted, hidden = args
            self.watch(None)
            self.seq_rm(0, int(pos[0]), -1)
            decode(self, tokens, pos, seq, wanted, hidden[:, ::-1])
        return out

    monkeypatch.setattr(SliceContext, "decode", wrong)
    assert widest(layer) == bad - 1


def test_differences_that_rounding_hides_are_found(layer: Path) -> None:
    """Without flash attention the values of a run differ in their last bits from those of single rows. Activations are
    rounded to 8 bits behind the attention, so that of most rows nothing is seen in what the layer gives."""
    context = ROWS.open(str(layer))
    rng = np.random.default_rng(4)
    tokens, hidden = rng.integers(0, 100, 68).astype(np.int32), rng.standard_normal((68, 512)).astype(np.float32)
    pos, seq, wanted = np.arange(68, dtype=np.int32), np.zeros(68, np.int32), np.ones(68, np.int8)

    def run(a: int, b: int) -> tuple[NDArray[np.float32], NodeValues]:
        values = NodeValues()
        context.watch(values)
        return context.decode(tokens[a:b], pos[a:b], seq[a:b], wanted[a:b], hidden[a:b]).copy(), values

    run(0, 64)
    singles = [run(i, i + 1) for i in range(64, 68)]
    context.seq_rm(0, 64, -1)
    out, values = run(64, 68)
    context.close()
    unseen = (out == np.concatenate([row for row, _ in singles])).all(axis=1)
    mine, theirs = (v.by_name["kqv_out-0"] for v in (values, singles[2][1]))
    attended = [np.array_equal(mine[..., 2, :], theirs[..., 0, :])]
    assert unseen.sum() >= 2 and not any(attended)
    assert values.differs_from([one for _, one in singles]) == "kqv-0"
    assert len(values.by_name) > 10


def test_a_prefix_of_cells_is_the_whole_prefix(layer: Path) -> None:
    """Stopping behind the attention leaves the same cells as computing the layer."""
    rng = np.random.default_rng(3)
    tokens, hidden = rng.integers(0, 100, 65).astype(np.int32), rng.standard_normal((65, 512)).astype(np.float32)
    pos, seq, wanted = np.arange(65, dtype=np.int32), np.zeros(65, np.int32), np.ones(65, np.int8)
    rows = []
    for only_cells in (False, True):
        context = EXACT.open(str(layer))
        got = context.decode(tokens[:64], pos[:64], seq[:64], wanted[:64], hidden[:64], only_cells=only_cells)
        assert got.shape == ((0, 512) if only_cells else (64, 512))
        rows.append(context.decode(tokens[64:], pos[64:], seq[64:], wanted[64:], hidden[64:]).copy())
        context.close()
    assert rows[0].any() and np.array_equal(rows[0], rows[1])


def test_placeholders_stay_in_memory_no_longer(tmp_path: Path) -> None:
    source = Source.open(build(tmp_path / "model.gguf", Tiny(tied=False, n_embd=96, extra_tokens=100_000)))
    path = cached_slice(source, 1, 3)
    context = SliceContext(path, n_ctx=256)
    resident = 0
    mine = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        mine = line.endswith(str(path)) if "-" in line.split()[0] else mine
        if mine and line.startswith("Rss:"):
            resident += 1024 * int(line.split()[1])
    context.close()
    assert path.stat().st_size > 4_000_000 > 40 * resident


def test_single_rows_of_several_threads_take_another_kernel_behind_256_cells() -> None:
    """With an f16 cache: nothing wider than a row is exact then, though all is well before and behind 512 cells."""
    source = Source.open(TARGET)
    assert ask(source, 0, 12, Setup("f16", True, 2, 0, 512, 8, True))[1] == 1
    assert ask(source, 0, 12, Setup("q8_0", True, 2, 0, 512, 8, True))[1] == 8


def test_modes_agree_where_the_context_ends_between_256_and_512_cells() -> None:
    texts = []
    for mode in ("off", "sync"):
        with local(stages=1, kv_type="f16", threads=2, ctx=352, mode=mode) as pipeline:
            assert pipeline.exact
            prompt = pipeline.vocabulary.tokenize(PROMPT + " lived in a house by the sea. " * 40)[:262]
            result = pipeline.generate(prompt, max_tokens=60, sampling=Sampling(temp=1, seed=5)).wait()
            texts.append(result.token_ids)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({1: 1.0, 2: 1.1, 3: 1.2}, {1: 1.0, 2: 1.1, 3: 1.2}),
        ({1: 240.0, 2: 0.9, 3: 1.0}, {1: 0.9, 2: 0.9, 3: 1.0}),
        ({1: 1.0, 2: 9.0, 3: 1.2}, {1: 1.0, 2: 1.2, 3: 1.2}),
        ({1: 1.0, 2: 1.1, 3: 90.0}, {1: 1.0, 2: 1.1, 3: 3.0}),
    ],
)
def test_a_pause_of_the_machine_is_no_width_s_cost(seen: dict[int, float], expected: dict[int, float]) -> None:
    assert selftest.plausible(seen) == expected


@pytest.mark.parametrize("name", ["minimax-01", "talkie"])
def test_a_model_that_cannot_be_cut_runs_in_one_stage(name: str, tmp_path: Path) -> None:
    with Pipeline.local(target=speaking(tmp_path / "model.gguf", name), stages=1, ctx=256) as pipeline:
        assert pipeline.generate(PROMPT, max_tokens=4, sampling=GREEDY).wait().n_generated


def test_a_list_of_floats_makes_no_kind_of_its_own_for_each_layer(tmp_path: Path) -> None:
    alike = specimen("bailingmoe3")
    clamps = Arr([0.0 if i % 2 == 0 else 4.0 + i for i in range(8)], F32)
    each = dataclasses.replace(alike, keys={**alike.keys, "bailingmoe3.swiglu_clamp_exp": clamps})
    kinds = []
    for name, model in (("alike", alike), ("each", each)):
        source = Source.open(model.build(tmp_path / f"{name}.gguf"))
        kinds.append([sample.signature for sample in samples_of(source, 0, source.n_layers)])
    assert kinds[0] == kinds[1]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.open(TARGET)
    path = str(cached_slice(source, 0, 6))
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "probes").write_text("no folder")
    assert probe(source, (0, 6), path, EXACT, lambda *_: None)[1] == 8


def test_a_slice_sets_the_level_and_where_they_are_off_the_bend_of_its_samples() -> None:
    samples = {1: 0.01, 2: 0.012, 4: 0.016, 8: 0.024}
    assert bent(samples, {1: 0.1, 4: 0.19}) == (pytest.approx({1: 0.1, 2: 0.12, 4: 0.16, 8: 0.24}), False)
    assert bent(samples, {1: 0.1}) == (pytest.approx({1: 0.1, 2: 0.12, 4: 0.16, 8: 0.24}), False)
    assert bent(samples, {1: 0.1, 4: 0.22}) == (pytest.approx({1: 0.1, 2: 0.14, 4: 0.22, 8: 0.38}), True)
    assert bent(samples, {1: 0.1, 4: 0.1}) == (pytest.approx({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1}), True)
    assert bent({1: 0.01, 2: 0.01, 4: 0.01}, {1: 0.1, 4: 0.4}) == (pytest.approx({1: 0.1, 2: 0.2, 4: 0.4}), True)


def test_times_from_a_busy_machine_are_neither_believed_nor_kept(
    tests: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide runs were disturbed when the sample was looked at, single rows were not."""

    def disturbed(context: SliceContext, *args: Any, **more: Any) -> Found:
        found = examine(context, *args, **more)
        return Found(found.safe, {w: s if w == 1 else 6 * s for w, s in found.seconds.items()})

    def start() -> float:
        """What the stage says that four rows cost, in rows."""
        options = ContextOptions(n_ctx=1024, n_seq=1, chunk=64, threads=1)
        model = ModelRef(str(TARGET), Source.open(TARGET).sha256())
        load = LoadSlice(model, 0, 1, 0, 12, options, exact=True, max_rows=8)
        runner = SliceRunner(load, str(TARGET), lambda *_: None)
        runner.close()
        return runner.loaded.curve[4] / runner.loaded.curve[1]

    true = start()
    probes = tmp_path / "cache" / "probes"
    shutil.rmtree(probes)
    with monkeypatch.context() as busy:
        busy.setattr(probe_module, "examine", disturbed)
        assert start() < 2.5 * true
    kept = sorted(probes.glob("*.json"))
    assert kept  # once a day is enough
    for record in kept:
        os.utime(record, (time.time() - 2 * 86400,) * 2)
    start()
    assert not list(probes.glob("*.json"))
    before = len(tests)
    assert start() < 2.5 * true and len(tests) > before
