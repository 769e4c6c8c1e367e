"""Whether a pipeline fits into memory: needs, the context that is chosen, and what is said where it does not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hybrid_models import speaking
from pipeline_helpers import DRAFT, TARGET
from tiny_models import Tiny, build

from pipeinfer_cpp.cluster import plan
from pipeinfer_cpp.cluster.fit import KV_UNASKED, Fit, Machine
from pipeinfer_cpp.cluster.plan import outline
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source, split_by_shares
from pipeinfer_cpp.gguf.needs import CELL, PROGRAM, Model, Room
from pipeinfer_cpp.llama import library
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.system.memory import Memory

GB = 10**9
SPARE = 256 << 20
"""Left to others on a small machine."""


def machine(usable: float, name: str = "m") -> Machine:
    return Machine(name, Memory(4 * GB, int(usable * GB) + SPARE))


@pytest.fixture
def long(tmp_path: Path) -> Model:
    """A tiny model that was trained for a million positions; each costs 4 layers of 2 x 32 values."""
    return Model(Source.open(build(tmp_path / "long.gguf", Tiny(keys={"context_length": 1 << 20}))))


def fit(model: Model, *machines: Machine, draft: Model | None = None) -> Fit:
    n, layers = len(machines), model.source.n_layers
    ranges = [(layers * i // n, layers * (i + 1) // n) for i in range(n)]
    return Fit(model, draft, ranges, machines, machines[0], Room, Room)


# --------------------------------------------------------------------------------------------- needs


def test_the_stages_share_the_layers() -> None:
    model, room = Model(Source.open(TARGET)), Room(1024, kv_type="q8_0")
    whole, parts = model.whole(room), [model.stage(first, first + 4, room) for first in (0, 4, 8)]
    assert sum(part.weights for part in parts) == pytest.approx(whole.weights, rel=0.01)
    assert sum(part.cell for part in parts) == whole.cell == 12 * 2 * 256 * 34 / 32
    assert whole.weights == pytest.approx(model.source.size_bytes, rel=0.02)
    assert all(part.total > part.weights + part.kv + PROGRAM for part in parts)


def test_what_conversations_without_a_slot_may_keep(long: Model) -> None:
    """A tenth of what the tightest machine has left, and room for two that change places."""
    two = machine(1.0, "a"), machine(0.5, "b")
    cell = long.source.n_layers / 2 * 2 * 32 * 2 + CELL
    left = 0.5 * GB - fit(long, *two).stages(1024)[1].total
    assert fit(long, *two).stash(1024) == pytest.approx(left / 10 / cell - 1024, rel=0.001)
    one = fit(long, two[1], two[1])
    left = 0.5 * GB - one.by_machine(1024)[two[1]]
    assert one.stash(1024) == pytest.approx(left / 10 / (2 * cell) - 1024, rel=0.001)
    assert fit(long, two[0], Machine("not known")).stash(1024) == 0
    assert fit(long, machine(0.066, "full")).stash(1024) == 0


def test_states_that_are_not_cells_are_not_kept(tmp_path: Path) -> None:
    hybrid = Model(Source.open(speaking(tmp_path / "hybrid.gguf", "qwen35")))
    assert fit(hybrid, machine(2.0)).stash(1024) == 0


def test_an_embedding_counts_where_it_is_the_head(tmp_path: Path) -> None:
    untied = Model(Source.open(build(tmp_path / "m.gguf", Tiny(tied=False))))
    sizes = {name: tensor.n_bytes for name, tensor in untied.source.tensors.items()}
    room = Room(256)
    assert untied.whole(room).weights == sum(sizes.values()) - sizes["token_embd.weight"]
    first, last = untied.stage(0, 2, room), untied.stage(2, 4, room)
    assert last.weights - first.weights == sizes["output.weight"]


def test_a_type_for_auto() -> None:
    model = Model(Source.open(TARGET))
    assert [model.kv_type("auto", True), model.kv_type("auto", False), model.kv_type("bf16", True)] == [
        "q8_0",
        "f16",
        "bf16",
    ]


def test_heads_that_q8_0_does_not_take(tmp_path: Path) -> None:
    model = Model(Source.open(build(tmp_path / "m.gguf", Tiny(keys={"attention.key_length": 24}))))
    assert model.kv_type("auto", True) == "f16"


# ----------------------------------------------------------------------------------------- the context


def test_the_models_own_context_where_it_is_small() -> None:
    assert fit(Model(Source.open(TARGET)), machine(3)).choose(None, 1024) == (1024, None)


def test_a_long_context_takes_half_of_what_is_left(long: Model) -> None:
    one = fit(long, machine(0.3))
    n_ctx, note = one.choose(None, 1 << 20)
    rest = 0.3 * GB - one.by_machine(256)[one.here]
    grown = one.by_machine(n_ctx)[one.here] - one.by_machine(256)[one.here]
    assert n_ctx % 256 == 0 and 0.49 * rest < grown <= 0.5 * rest
    assert note is not None and f"{n_ctx:,} tokens, not the model's 1,048,576" in note and "--ctx-size" in note


def test_a_stage_takes_no_more_than_a_start_allows(long: Model) -> None:
    big = replace(machine(60), memory=Memory(64 * GB, 60 * GB))
    for machines in ([big], [big, big]):
        one = fit(long, *machines)
        n_ctx, _ = one.choose(None, 1 << 26)
        assert 0.99 * KV_UNASKED < max(need.kv for need in one.stages(n_ctx)) <= KV_UNASKED


def test_asked_for(long: Model) -> None:
    big = replace(machine(60), memory=Memory(64 * GB, 60 * GB))
    assert fit(long, big).choose(70_000, 1 << 20) == (70_000, None)
    assert fit(long, big).choose(0, 1 << 20) == (1 << 20, None)


def test_a_machine_that_tells_nothing_limits_nothing(long: Model) -> None:
    assert fit(long, Machine("m")).choose(0, 1 << 20) == (1 << 20, None)


# ------------------------------------------------------------------------------------ what does not fit


def test_a_context_that_does_not_fit_names_one_that_does(long: Model) -> None:
    small = fit(long, machine(0.2))
    words = r"long.gguf with a context of 1,048,576 tokens needs .* of m, .*: ctx=\d+ fits\.$"
    with pytest.raises(UserError, match=words) as error:
        small.choose(0, 1 << 20)
    fitting = int(str(error.value).replace("=", " ").split()[-2])
    assert small.choose(fitting, 1 << 20) == (fitting, None)
    with pytest.raises(UserError):
        small.choose(fitting + 256, 1 << 20)


def test_another_split_that_fits() -> None:
    model = Model(Source.open(TARGET))
    need = [n.total / GB for n in fit(model, machine(1), machine(1, "b")).stages(1024)]
    uneven = fit(model, machine(need[0] - 0.005, "a"), machine(need[1] + 0.1, "b"))
    with pytest.raises(UserError, match=r"of a, which can give .* MB: split=0\.\d+,0\.\d+ fits\.$") as error:
        uneven.choose(None, 1024)
    split = str(error.value).split()[-2]
    shares = [float(share) for share in split.removeprefix("split=").split(",")]
    assert replace(uneven, ranges=split_by_shares(shares, 12)).fits(1024)


def test_nothing_fits() -> None:
    model = Model(Source.open(TARGET))
    with pytest.raises(UserError, match=r"needs 1\d\d MB of m, .* 80 MB: spread it over several machines, or take"):
        fit(model, machine(0.08)).choose(None, 1024)
    with pytest.raises(UserError, match="add machines"):
        fit(model, machine(0.08), machine(0.08, "b")).choose(None, 1024)


def test_stages_and_the_draft_of_one_machine_are_added_up() -> None:
    model, draft = Model(Source.open(TARGET)), Model(Source.open(DRAFT))
    here = machine(1)
    one = fit(model, here, here, draft=draft)
    drafting = one.drafting(1024)
    assert drafting is not None
    assert one.by_machine(1024) == {here: sum(n.total for n in one.stages(1024)) + drafting.total}
    far = fit(model, machine(1, "far"), draft=draft)
    assert set(replace(far, here=here).by_machine(1024)) == {machine(1, "far"), here}


# ----------------------------------------------------------------------------------------- as a plan


def test_a_plan_refuses_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "memory", lambda: Memory(4 * GB, SPARE + GB // 10))
    with pytest.raises(UserError, match="of this machine, which can give 100 MB"):
        outline(Options(target=TARGET, draft=DRAFT, stages=2))
    monkeypatch.setattr(library, "check_gpu", lambda _layers: None)
    assert outline(Options(target=TARGET, stages=2, gpu_layers=-1)).settings.n_ctx == 1024


def test_remote_stages_are_weighed_by_what_they_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "machine_id", lambda: "mine")
    options = Options(target=TARGET, stages=["tcp://a:1", "tcp://b:1", "tcp://here:1"])
    small, big = Memory(4 * GB, SPARE + GB // 20), Memory(4 * GB, 2 * GB)
    monkeypatch.setattr(plan, "memory", lambda: Memory(4 * GB, 3 * GB))
    ok = outline(options)
    assert ok.fit is None
    ok.meet(["a", "b", "mine"], [big, big, big])
    assert ok.fit is not None and [m.name for m in ok.fit.machines] == [
        "the machine of tcp://a:1",
        "the machine of tcp://b:1",
        "this machine",
    ]
    with pytest.raises(UserError, match="the machine of tcp://b:1, which can give 50 MB"):
        outline(options).meet(["a", "b", "mine"], [big, small, big])
    with pytest.raises(UserError, match="the machine of tcp://a:1, which can give"):
        outline(options).meet(["a", "a", "a"], [Memory(4 * GB, SPARE + GB // 5), None, None])


def test_the_least_that_any_process_of_a_machine_found_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "machine_id", lambda: "mine")
    monkeypatch.setattr(plan, "memory", lambda: Memory(4 * GB, 3 * GB))
    options = Options(target=TARGET, stages=["tcp://a:1", "tcp://a:2", "tcp://here:1"])
    big, small = Memory(4 * GB, 2 * GB), Memory(4 * GB, SPARE + GB // 20)
    with pytest.raises(UserError, match="of the machine of tcp://a:1, which can give 50 MB"):
        outline(options).meet(["a", "a", "mine"], [big, small, big])
    with pytest.raises(UserError, match="of this machine, which can give 50 MB"):
        outline(options).meet(["a", "a", "mine"], [big, big, small])


def test_a_container_has_the_memory_that_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "machine_id", lambda: "mine")
    monkeypatch.setattr(plan, "memory", lambda: Memory(4 * GB, 3 * GB))
    options = Options(target=TARGET, stages=["tcp://here:1", "tcp://here:2"])
    with pytest.raises(UserError, match="of the container of tcp://here:2, which can give 50 MB"):
        outline(options).meet(["mine", "mine"], [Memory(4 * GB, 3 * GB), Memory(GB, SPARE + GB // 20)])


def test_what_is_needed_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "machine_id", lambda: "mine")
    monkeypatch.setattr(plan, "memory", lambda: Memory(4 * GB, 3 * GB))
    told: list[str] = []

    def report(worker: str, now: str, done: int, total: int) -> None:
        told.extend([now] if worker == "memory" else [])

    plan.make_plan(Options(target=TARGET, draft=DRAFT, stages=2), report)
    words = r"Memory needed on this machine \(3\.0 GB free\): stage 0 \d+ MB, stage 1 \d+ MB, the draft \d+ MB; "
    assert len(told) == 1 and re.fullmatch(words + r"each of the context's 1,024 tokens costs 8\.6 kB\.", told[0]), told
    told.clear()
    remote = plan.make_plan(Options(target=TARGET, draft=DRAFT, stages=["tcp://a:1", "tcp://b:1"]), report)
    assert not told
    remote.meet(["a", "mine"], [Memory(4 * GB, 2 * GB), None])
    words = r"Memory needed on the machine of tcp://a:1 \(2\.0 GB free\): stage 0 \d+ MB; on this machine "
    words += r"\(3\.0 GB free\): stage 1 \d+ MB, the draft \d+ MB; each of"
    assert len(told) == 1 and re.match(words, told[0]), told
