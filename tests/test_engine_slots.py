"""Several conversations over one pipeline: each says what it would say alone, and nothing of one is left in another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from engine_driver import EOG, VOCABULARY, Chaos, ChaosWorld
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_properties import Case, cases

from pipeinfer_cpp.engine import CostCurve, EngineError, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.cached import Past
from pipeinfer_cpp.engine.sequences import Op
from pipeinfer_cpp.engine.stash import Stash
from pipeinfer_cpp.net.transit import LinkSpeed, Transit
from pipeinfer_cpp.sim.cluster import VirtualCluster
from pipeinfer_cpp.sim.worlds import independent

SLOTS = 3


def chaos_of(case: Case, **changes: object) -> Chaos:
    asked = replace(case.settings, slots=SLOTS, **changes)  # type: ignore[arg-type]
    world = ChaosWorld(case.seed, case.acceptance, case.eog_share)
    return Chaos(world, asked, [CostCurve.linear(*c) for c in case.curves], random.Random(case.seed))


def check(chaos: Chaos, slot: int) -> None:
    """What must hold when the slot's turn is over, whatever the others do."""
    told, engine = chaos.told[slot], chaos.engine
    final, whole = [*told.prompt, *told.emitted], chaos.world.text(told.prompt, told.max_tokens, engine.settings.n_ctx)
    assert final == (whole if told.finished != "cancelled" else whole[: len(final)])
    kept = engine.slots[slot].turn.tokens
    paths = {tuple(kept[:n]) for n in range(len(told.prompt), len(kept))}
    assert max(Counter(path for _, path in told.carried if path in paths).values(), default=1) == 1
    stats = engine.slots[slot].stats
    assert stats.proposed == stats.accepted + stats.rejected + stats.wasted
    assert min(stats.proposed, stats.accepted, stats.rejected, stats.wasted) >= 0


def at_rest(chaos: Chaos) -> None:
    """Every stage holds the slots' canonical sequences, and nothing else."""
    engine = chaos.engine
    assert not engine.pool.taken and not engine.pipe.in_flight
    for stage in chaos.stages:
        for slot in engine.slots:
            own = {c.pos: c.token for c in stage.cells if slot.number in c.seqs}
            assert [own[p] for p in sorted(own)] == slot.cached and sorted(own) == list(range(len(own)))
            assert not stage.recurrent or stage.states.get(slot.number, ()) == tuple(slot.cached)
        assert all(c.seqs <= set(range(SLOTS)) for c in stage.cells)
        assert stage.peak <= engine.settings.kv_cells(len(chaos.stages))


def converse(chaos: Chaos, rng: random.Random, turns: int, max_tokens: int, *, lose: float = 0.0) -> None:
    """Turns begin and are stopped in any slot at any time. Prompts begin alike, or go on."""
    engine, n_ctx = chaos.engine, chaos.engine.settings.n_ctx
    system = [rng.randrange(1, VOCABULARY) for _ in range(rng.randrange(1, n_ctx))]
    running: set[int] = set()
    steps = 0
    while turns or running:
        steps += 1
        assert steps < 40_000, "the turns do not end"
        idle = [i for i in range(SLOTS) if i not in running]
        if turns and idle and (not running or rng.random() < 0.05):
            slot, turns = rng.choice(idle), turns - 1
            before = engine.slots[slot].turn.tokens
            goes_on = bool(before) and rng.random() < 0.5
            begin = before[: rng.randrange(1, len(before) + 1)] if goes_on else system[: rng.randrange(len(system) + 1)]
            prompt = [*begin[: n_ctx - 3], *(rng.randrange(1, VOCABULARY) for _ in range(2))]
            chaos.begin(slot, prompt, rng.randrange(1, max_tokens + 1), goes_on, owner=rng.choice(("", "a", "b")))
            running.add(slot)
        elif running and rng.random() < 0.01:
            chaos.stop(rng.choice([*running]), rng.choice((None, 1, 3)))
        elif running and rng.random() < lose:
            chaos.lose()
        elif running:
            chaos.step()
        for slot in [s for s in running if chaos.told[s].finished]:
            running.remove(slot)
            check(chaos, slot)
    at_rest(chaos)


@settings(max_examples=1000, deadline=None)
@given(cases(), st.booleans())
def test_conversations_do_not_disturb_each_other(case: Case, exact: bool) -> None:
    converse(chaos_of(case, exact=exact), random.Random(case.seed), 7, min(case.max_tokens, 15))


@settings(max_examples=500, deadline=None)
@given(cases(), st.booleans())
def test_turns_go_on_when_all_stages_were_lost(case: Case, exact: bool) -> None:
    converse(chaos_of(case, exact=exact), random.Random(case.seed), 5, min(case.max_tokens, 15), lose=0.005)


@dataclass
class Talk:
    """A conversation, in a slot or without one."""

    tokens: list[int] = field(default_factory=list)
    past: Past | None = None
    stashed: int = 0
    slot: int | None = None


def move_in(chaos: Chaos, talks: list[Talk], talk: Talk, slot: int) -> None:
    """As a line does."""
    before = next((t for t in talks if t.slot == slot), None)
    past = chaos.engine.slots[slot].past
    stashed = chaos.engine.slots[slot].change(talk.past, talk.stashed, keep=before is not None)
    if before is not None:
        before.past, before.stashed, before.slot = past, stashed, None
    talk.past, talk.stashed, talk.slot = None, 0, slot


def take_turns(chaos: Chaos, rng: random.Random, n: int, turns: int, lose: float) -> tuple[int, int]:
    """`n` conversations share the slots. Returns how many came back in all, and of those how many found their cells."""
    talks, engine = [Talk() for _ in range(n)], chaos.engine
    n_ctx, back, found = engine.settings.n_ctx, 0, 0
    running: dict[int, Talk] = {}
    steps = 0
    while turns or running:
        steps += 1
        assert steps < 40_000, "the turns do not end"
        idle = [i for i in range(SLOTS) if i not in running]
        if turns and idle and (not running or rng.random() < 0.05):
            turns -= 1
            talk = rng.choice([t for t in talks if t not in running.values()])
            if talk.slot is None:
                slot = rng.choice(idle)
                before = talk.past.tokens if talk.past is not None else ()
                move_in(chaos, talks, talk, slot)
                held = engine.slots[slot].cached
                assert held == list(before[: len(held)])
                back, found = back + bool(before), found + bool(held)
            assert talk.slot is not None
            goes_on = bool(talk.tokens) and rng.random() < 0.8
            prompt = [*(talk.tokens if goes_on else [])[: n_ctx - 3], *(rng.randrange(1, VOCABULARY) for _ in range(2))]
            chaos.begin(talk.slot, prompt, rng.randrange(1, 9), goes_on, owner=rng.choice(("", "a")))
            running[talk.slot] = talk
        elif running and rng.random() < 0.01:
            chaos.stop(rng.choice([*running]), rng.choice((None, 1, 3)))
        elif running and rng.random() < lose:
            chaos.lose()
        elif running and rng.random() < 0.01 and (away := [t for t in talks if t.stashed]):
            gone = rng.choice(away)
            engine.drop(gone.stashed)
            gone.stashed = 0
        elif running:
            chaos.step()
        for slot in [s for s in running if chaos.told[s].finished]:
            check(chaos, slot)
            running.pop(slot).tokens = list(engine.slots[slot].cache.tokens)
    at_rest(chaos)
    kept = engine.kept
    assert sum(kept.values()) <= engine.settings.stash
    for stage in chaos.stages:
        late = {op.src for op in engine.pipe.ops if op.kind == "drop"}
        assert {i: len(tokens) for i, tokens in stage.stashed.items() if i not in late} == kept
        for talk in talks:
            if talk.stashed in kept:
                assert talk.past is not None and stage.stashed[talk.stashed] == talk.past.tokens[: kept[talk.stashed]]
    return back, found


@settings(max_examples=500, deadline=None)
@given(cases(), st.booleans(), st.sampled_from((0, 5, 40, 1000)), st.sampled_from((0.0, 0.003)))
def test_more_conversations_than_slots(case: Case, exact: bool, budget: int, lose: float) -> None:
    budget = 0 if case.settings.checkpoints else budget
    chaos = chaos_of(case, exact=exact, stash=budget, stash_longest=random.Random(case.seed).choice((12, 1000)))
    _, found = take_turns(chaos, random.Random(case.seed), 5, 12, lose)
    assert budget or not found


@pytest.mark.parametrize(("budget", "share"), [(0, 0.0), (30, 0.3), (1000, 1.0)])
def test_how_many_conversations_find_their_cells(budget: int, share: float) -> None:
    """All of them where there is room for all; some where there is for some."""
    back = found = 0
    for seed in range(20):
        asked = Settings("off", n_ctx=40, chunk=4, slots=SLOTS, exact=True, stash=budget)
        chaos = Chaos(ChaosWorld(seed, 0.7, 0.0), asked, [CostCurve.linear(0.02)] * 2, random.Random(seed))
        talks, rng = [Talk() for _ in range(5)], random.Random(seed)
        for i in range(20):
            talk = talks[i % 5]
            if talk.slot is None:
                move_in(chaos, talks, talk, i % SLOTS)
                held = len(chaos.engine.slots[i % SLOTS].cached)
                back, found = back + bool(talk.tokens), found + bool(held)
                assert held in (0, len(talk.tokens))
            assert talk.slot is not None
            chaos.begin(talk.slot, [*talk.tokens, rng.randrange(1, 7)], 3, goes_on=bool(talk.tokens))
            while not chaos.told[talk.slot].finished:
                chaos.step()
            check(chaos, talk.slot)
            # What is computed behind a state that came back is the new token and the answer, as in one that stayed.
            assert budget < 1000 or chaos.engine.slots[talk.slot].stats.rows <= 1 + 2
            talk.tokens = list(chaos.engine.slots[talk.slot].cached)
    assert back and (found == share * back if share in (0, 1) else found > share * back / 2)


def test_two_conversations_change_places() -> None:
    """With room for one of them beside the cache. What nobody holds is not kept; stages that are lost keep nothing."""
    asked = Settings("off", n_ctx=40, chunk=4, exact=True, stash=5)
    chaos = Chaos(ChaosWorld(1, 0.7, 0.0), asked, [CostCurve.linear(0.02)] * 2, random.Random(1))
    slot, talks = chaos.engine.slots[0], [Talk(), Talk()]

    def turn(talk: Talk) -> int:
        """Returns how much of it the stages had."""
        move_in(chaos, talks, talk, 0)
        held = len(slot.cached)
        chaos.turn([*talk.tokens, 1], 1, goes_on=True)
        talk.tokens = list(slot.cached)
        return held

    assert [turn(talks[i % 2]) for i in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert chaos.engine.kept == {talks[0].stashed: 4}
    chaos.lose()
    assert chaos.engine.kept == {} and turn(talks[0]) == 0
    assert slot.cached and slot.change(None, 0, keep=False) == 0
    assert chaos.engine.kept == {} and not slot.cached


def test_the_table_of_what_is_kept() -> None:
    kept = Stash(budget=100, longest=60)
    assert kept.put(0, 0) == (0, []) and kept.put(0, 61) == (0, [])
    one, ops = kept.put(0, 60)
    assert ops == [Op("stash", 0, 60, -1, one)]
    two, ops = kept.put(1, 40)
    assert ops == [Op("stash", 1, 40, -1, two)]
    three, ops = kept.put(2, 1)  # the oldest goes
    assert ops == [Op("drop", 0, 0, -1, one), Op("stash", 2, 1, -1, three)]
    assert (kept.take(one), kept.take(two), kept.take(two)) == (0, 40, 0)
    assert kept.drop(one) == [] and kept.drop(three) == [Op("drop", 0, 0, -1, three)]
    four, _ = kept.put(0, 9)
    kept.lost()
    assert kept.take(four) == 0 and len({one, two, three, four}) == 4


@settings(max_examples=300, deadline=None)
@given(cases())
def test_in_exact_mode_the_batch_of_a_row_depends_on_its_own_conversation_alone(case: Case) -> None:
    """Of a prompt, (chunk that a position was computed in) is a function of the prompt, also where it was copied."""
    chaos = chaos_of(case, exact=True)
    chunk = case.settings.chunk
    computed: list[dict[int, tuple[int, int]]] = [{} for _ in range(SLOTS)]
    carry_out = chaos._carry_out

    def watch(action: ev.Action) -> None:
        if isinstance(action, ev.Dispatch):
            for op in action.run.ops:
                if op.kind == "cp" and op.seq < SLOTS and op.src < SLOTS:
                    computed[op.seq] = dict(computed[op.src])
            if action.run.kind == "prefill":
                rows = action.run.rows
                computed[rows[0].slot].update({row.pos: (rows[0].pos, rows[-1].pos + 1) for row in rows})
        carry_out(action)

    chaos._carry_out = watch  # type: ignore[method-assign]
    rng = random.Random(case.seed)
    system = [rng.randrange(1, VOCABULARY) for _ in range(case.settings.n_ctx // 2)]
    for _ in range(6):
        slot = rng.randrange(SLOTS)
        tail = [rng.randrange(1, VOCABULARY) for _ in range(rng.randrange(1, 3))]
        prompt = [*system[: rng.randrange(len(system) + 1)], *tail][-(case.settings.n_ctx - 1) :]
        chaos.begin(slot, prompt, 3, owner="a")
        while not chaos.told[slot].finished:
            chaos.step()
        n = len(prompt)
        if not case.settings.checkpoints:
            expected = [(p - p % chunk, min(p - p % chunk + chunk, n)) for p in range(n)]
            assert [computed[slot][p] for p in range(n)] == expected


def test_what_begins_alike_is_copied_for_one_owner_alone() -> None:
    asked = Settings("off", n_ctx=64, chunk=4, exact=True, slots=2)
    prompt = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    for owners, rows in ((("a", "a"), 3), (("a", "b"), 11), (("", ""), 11)):
        chaos = Chaos(ChaosWorld(1, 1.0, 0.0), asked, [CostCurve.linear(0.02)] * 2, random.Random(1))
        chaos.begin(0, prompt, 4, owner=owners[0])
        while not chaos.told[0].finished:
            chaos.step()
        chaos.begin(1, [*prompt, 4, 4], 1, owner=owners[1])
        while not chaos.told[1].finished:
            chaos.step()
        assert chaos.engine.slots[1].stats.rows == rows, owners
        at = [sorted(c.pos for c in stage.cells if 1 in c.seqs) for stage in chaos.stages]
        assert at == [list(range(11))] * 2


def mix_up_slots(chaos: Chaos) -> None:
    """A copy takes one cell too many of the other conversation."""
    for slot in chaos.engine.slots:
        original = slot.cache.adopt
        slot.cache.adopt = lambda tokens, original=original: original([*tokens, 1])  # type: ignore[method-assign, misc]


def lose_all_of_everyone(chaos: Chaos) -> None:
    """The end of one turn kills the others' runs."""
    pipe = chaos.engine.pipe
    pipe.lose_all = lambda slot: [f.live.clear() for f in pipe.in_flight.values()] and None  # type: ignore


@pytest.mark.parametrize("break_it", [mix_up_slots, lose_all_of_everyone])
def test_the_driver_finds_what_is_wrong_between_slots(break_it: Callable[[Chaos], None]) -> None:
    for seed in range(30):
        asked = Settings("async", n_ctx=40, chunk=3, max_rows=4, slots=SLOTS, eog=frozenset({EOG}))
        chaos = Chaos(ChaosWorld(seed, 0.7, 0.0), asked, [CostCurve.linear(0.02)] * 3, random.Random(seed))
        break_it(chaos)
        try:
            converse(chaos, random.Random(seed), 7, 15)
        except (AssertionError, EngineError, KeyError, ValueError, IndexError):
            return
    pytest.fail("no run showed the fault")


def together(
    n: int, mode: str, acceptance: float = 0.7, further: float = 0.3, last: float = 1.0
) -> tuple[float, list[float]]:
    """Simulated: tokens per second of `n` conversations on four stages, of which the last takes `last` times as long
    as the others, and each one's seconds a token."""
    world = independent(2000, acceptance)
    asked = Settings(mode, n_ctx=400, slots=n, max_rows=8, exact=True)
    curves = [CostCurve.linear(0.02 * k, further * 0.02 * k) for k in (1.0, 1.0, 1.0, last)]
    cluster = VirtualCluster(world, curves, asked, draft_s=0.004, hop=0.0005)
    outcomes = cluster.generate_all([world.text[: 8 + i] for i in range(n)], 200)
    began = min(o.began + o.times[0] for o in outcomes)
    ended = max(o.began + o.times[-1] for o in outcomes)
    return 200 * n / (ended - began), [1 / o.tokens_per_s for o in outcomes]


@pytest.mark.parametrize("acceptance", [0.4, 0.8])
def test_more_conversations_are_more_tokens_per_second(acceptance: float) -> None:
    off, _ = together(1, "off")
    speeds = {}
    for n in (1, 2, 4, 8, 16):
        speeds[n], latencies = together(n, "async", acceptance)
        assert max(latencies) < 2 * sum(latencies) / n
    assert all(later > 0.99 * sooner for sooner, later in pairwise(speeds.values())), speeds
    assert speeds[8] > 3.5 * off


@pytest.mark.parametrize("mode", ["off", "async"])
@pytest.mark.parametrize("last", [1.05, 1.5])
def test_the_last_stage_may_be_the_slowest(mode: str, last: float) -> None:
    """Runs of several conversations take longer to it than those of one."""
    speeds = {n: together(n, mode, last=last)[0] for n in (1, 2, 4, 8, 16)}
    assert all(later > sooner for sooner, later in pairwise(speeds.values())), speeds
    assert speeds[16] > 0.85 * together(16, mode)[0] / last


@pytest.mark.parametrize("mode", ["off", "async"])
def test_late_news_of_the_stages_cost_a_full_pipeline_nothing(mode: str) -> None:
    """On a busy machine the coordinator hears late that a stage has passed a run on."""
    speeds = []
    for late_ms in (0.5, 20.0):
        world = independent(2000, 0.7)
        asked = Settings(mode, n_ctx=400, slots=16, max_rows=8, exact=True)
        curves = [CostCurve.linear(0.02 * k, 0.006 * k) for k in (1.0, 1.0, 1.0, 1.05)]
        cluster = VirtualCluster(world, curves, asked, draft_s=0.004, hop=0.0005)
        cluster._news = [Transit(LinkSpeed(latency_ms=late_ms)) for _ in range(4)]
        outcomes = cluster.generate_all([world.text[: 8 + i] for i in range(16)], 100)
        speeds.append(1600 / max(o.times[-1] for o in outcomes))
    assert speeds[1] > 0.97 * speeds[0], speeds


@pytest.mark.parametrize("mode", ["off", "async"])
def test_a_full_pipeline_reads_prompts(mode: str) -> None:
    """Where some final token always waits, the first ones of those who come do not: 16 short prompts, 0.2 s apart."""
    world = independent(2000, 0.7)
    asked = Settings(mode, n_ctx=400, slots=16, max_rows=8, exact=True)
    curves = [CostCurve.linear(0.02, 0.006)] * 3 + [CostCurve.linear(0.03, 0.009)]
    cluster = VirtualCluster(world, curves, asked, draft_s=0.004, hop=0.0005)
    outcomes = cluster.generate_all([world.text[: 17 + i % 2] for i in range(16)], 96, apart=0.2)
    assert max(o.times[0] for o in outcomes) < 4.0, [round(o.times[0], 1) for o in outcomes]


def test_a_slot_alone_is_as_fast_as_an_engine_of_one() -> None:
    world = independent(400, 0.7)
    speeds = []
    for slots in (1, 4):
        asked = Settings("async", n_ctx=400, slots=slots, max_rows=8)
        cluster = VirtualCluster(world, [CostCurve.linear(0.02, 0.006)] * 4, asked, draft_s=0.004, hop=0.0005)
        speeds.append(cluster.generate(world.text[:8], 200).tokens_per_s)
    assert speeds[0] == pytest.approx(speeds[1])


def test_a_long_prompt_stalls_nobody() -> None:
    """While one reads 640 tokens in chunks of 0.2 s, the others' tokens come no more than a chunk apart, and a bit."""
    world = independent(2000, 0.7)
    asked = Settings("off", n_ctx=1000, chunk=64, slots=3)
    cluster = VirtualCluster(world, [CostCurve({1: 0.02, 64: 0.2})] * 4, asked, hop=0.0005)
    cluster.clock.at(1.0, lambda: cluster.feed(ev.Prompt(tuple(world.text[:640]), 20, slot=2)))
    outcomes = cluster.generate_all([world.text[:8], world.text[:9]], 100)
    assert cluster.outcomes[2].tokens and cluster.outcomes[2].times[0] < 8
    for outcome in outcomes:
        assert max(b - a for a, b in pairwise(outcome.times)) < 4 * 0.2 + 0.2 + 0.1


def test_the_draft_worker_reads_another_owners_prompt_from_its_beginning() -> None:
    """What it still holds of the slot would make guesses come sooner: an owner could tell what was asked before."""
    asked = Settings(n_ctx=64, eog=frozenset({EOG}), chunk=4, slots=1)
    chaos = Chaos(ChaosWorld(1, 1.0, 0.0), asked, [CostCurve.linear(0.02)], random.Random(1))
    resets: list[ev.DraftReset] = []
    carry_out = chaos._carry_out

    def watch(action: ev.Action) -> None:
        if isinstance(action, ev.DraftReset) and action.keep == 0:
            resets.append(action)
        carry_out(action)

    chaos._carry_out = watch  # type: ignore[method-assign]
    prompt = [3, 1, 2, 5, 4, 6, 7, 8]
    for owner, said in (("a", [8]), ("a", [8]), ("b", [1, 8]), ("b", [8]), ("a", [1, 8])):
        resets.clear()
        chaos.begin(0, prompt, 2, owner=owner)
        while not chaos.told[0].finished:
            chaos.step()
        assert [len(reset.tokens) for reset in resets] == said, owner
