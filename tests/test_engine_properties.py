"""What holds for every order of events: the six properties of the engine."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from engine_driver import EOG, VOCABULARY, Chaos, ChaosWorld
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeinfer_cpp.engine import CostCurve, Engine, EngineError, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.settings import MODES, TECHNIQUES
from pipeinfer_cpp.llama.gumbel import gumbel
from pipeinfer_cpp.sim.worlds import Guess


@dataclass(frozen=True)
class Case:
    settings: Settings
    curves: tuple[tuple[float, float], ...]
    acceptance: float
    eog_share: float
    prompt: int
    max_tokens: int
    seed: int


@st.composite
def cases(draw: st.DrawFn, mode: str | None = None) -> Case:
    n_ctx = draw(st.integers(4, 48))
    checkpoints = draw(st.booleans())
    return Case(
        Settings(
            mode=mode or draw(st.sampled_from(MODES)),
            n_ctx=n_ctx,
            chunk=draw(st.integers(1, 9)),
            max_rows=draw(st.integers(1, 8)),
            branches=1 if checkpoints else draw(st.integers(1, 4)),
            cutoff=draw(st.sampled_from((0.0, 0.1, 0.5))),
            recovery=draw(st.sampled_from((0.0, 0.02, 0.3))),
            decay=draw(st.sampled_from((0.0, 0.01, 0.3))),
            split=draw(st.sampled_from((0.0, 0.2, 0.5))),
            draft_max=draw(st.integers(1, 8)),
            max_ahead=draw(st.integers(1, 20)),
            eog=frozenset({EOG}),
            ablate=frozenset(draw(st.lists(st.sampled_from(TECHNIQUES), max_size=1))),
            checkpoints=checkpoints,
            proposers=frozenset(draw(st.sampled_from((("draft",), ("draft",), ("ngram",), ("draft", "ngram"))))),
        ),
        tuple(
            draw(
                st.lists(
                    st.tuples(st.sampled_from((0.001, 0.02, 0.1)), st.sampled_from((0.0, 0.006))),
                    min_size=1,
                    max_size=4,
                )
            )
        ),
        acceptance=draw(st.sampled_from((0.0, 0.5, 0.8, 1.0))),
        eog_share=draw(st.sampled_from((0.0, 0.02, 0.2))),
        prompt=draw(st.integers(1, n_ctx - 1)),
        max_tokens=draw(st.integers(1, 40)),
        seed=draw(st.integers(0, 1 << 30)),
    )


def chaos_of(case: Case) -> tuple[Chaos, list[int]]:
    rng = random.Random(case.seed)
    world = ChaosWorld(case.seed, case.acceptance, case.eog_share)
    prompt = [rng.randrange(1, VOCABULARY) for _ in range(case.prompt)]
    return Chaos(world, case.settings, [CostCurve.linear(*c) for c in case.curves], rng), prompt


def check(chaos: Chaos, prompt: list[int], whole: list[int]) -> None:
    """What must hold when a turn that would say `whole` is over."""
    engine = chaos.engine
    final = prompt + chaos.emitted
    # 1. The target's own output (all of it, or its beginning when the turn was stopped).
    assert final == whole if chaos.finished != "cancelled" else final == whole[: len(final)]
    # 3. No row of the accepted path was cancelled; none was computed twice.
    kept = engine.slots[0].turn.tokens
    paths = {tuple(kept[:n]) for n in range(len(prompt), len(kept))}
    assert not [run for run, path in chaos.carried if run in chaos.cancelled and path in paths]
    assert max(Counter(path for _, path in chaos.carried if path in paths).values(), default=1) == 1
    # 4. At rest there is the canonical sequence, and nothing else.
    assert not engine.pool.taken and not engine.pipe.in_flight
    for stage in chaos.stages:
        assert stage.current is None and not stage.inbox
        assert sorted(c.pos for c in stage.cells) == list(range(len(engine.slots[0].cached)))
        assert all(c.seqs == {0} and c.token == engine.slots[0].cached[c.pos] for c in stage.cells)
        assert not stage.recurrent or stage.states.get(0, ()) == tuple(engine.slots[0].cached)
    # 6. No stage ran out of cells.
    assert max(s.peak for s in chaos.stages) <= engine.settings.kv_cells(len(chaos.stages))
    assert max(len(s.kept) for s in chaos.stages) <= engine.settings.states(len(chaos.stages))
    # Every draft has exactly one fate.
    stats = engine.slots[0].stats
    assert stats.proposed == stats.accepted + stats.rejected + stats.wasted
    assert min(stats.proposed, stats.accepted, stats.rejected, stats.wasted) >= 0


@settings(max_examples=1500, deadline=None)
@given(cases())
def test_a_turn(case: Case) -> None:
    chaos, prompt = chaos_of(case)
    whole = chaos.world.text(prompt, case.max_tokens, case.settings.n_ctx)
    chaos.turn(prompt, case.max_tokens)
    check(chaos, prompt, whole)
    ended = len(whole) - len(prompt) < case.max_tokens and len(whole) < case.settings.n_ctx
    assert chaos.finished == ("stop" if ended else "length")


@settings(max_examples=1000, deadline=None)
@given(cases(), st.lists(st.tuples(st.integers(0, 150), st.integers(0, 5) | st.none()), min_size=1, max_size=4))
def test_turns_that_are_stopped_anywhere(case: Case, stops: list[tuple[int, int | None]]) -> None:
    """Each next turn goes on from the last one, or from somewhere inside it."""
    chaos, prompt = chaos_of(case)
    rng = random.Random(case.seed + 1)
    for after, keep in [*stops, (-1, None)]:
        whole = chaos.world.text(prompt, case.max_tokens, case.settings.n_ctx)
        chaos.turn(prompt, case.max_tokens, stop_after=after, keep=keep)
        check(chaos, prompt, whole)
        prompt = [
            *chaos.engine.slots[0].turn.tokens[: rng.randrange(1, len(chaos.engine.slots[0].turn.tokens) + 1)],
            rng.randrange(1, VOCABULARY),
        ]
        prompt = prompt[: case.settings.n_ctx - 1]


@settings(max_examples=500, deadline=None)
@given(cases("async"), st.integers(0, 200))
def test_a_draft_worker_that_dies_takes_nothing_with_it(case: Case, after: int) -> None:
    chaos, prompt = chaos_of(case)
    whole = chaos.world.text(prompt, case.max_tokens, case.settings.n_ctx)
    steps = iter(range(1 << 20))
    step = chaos.step

    def dying() -> None:
        if next(steps) == after:
            chaos.draft.alive = False
            chaos.draft.says.clear()
            chaos.feed(ev.DraftLost())
        else:
            step()

    chaos.step = dying  # type: ignore[method-assign]
    chaos.turn(prompt, case.max_tokens)
    check(chaos, prompt, whole)


@settings(max_examples=300, deadline=None)
@given(cases(), st.lists(st.sampled_from(MODES), min_size=1, max_size=3))
def test_one_engine_succeeds_another(case: Case, modes: list[str]) -> None:
    """Other settings between two turns; the cached conversation stays."""
    chaos, prompt = chaos_of(case)
    for mode in modes:
        whole = chaos.world.text(prompt, case.max_tokens, case.settings.n_ctx)
        chaos.turn(prompt, case.max_tokens)
        check(chaos, prompt, whole)
        held = case.settings
        following = replace(held, mode=mode, branches=1, ablate=frozenset())
        engine = Engine(following, [CostCurve.linear(*c) for c in case.curves])
        engine.succeed(chaos.engine)
        chaos.engine = engine
        chaos.wakes.clear()
        prompt = chaos.emitted[-1:] + prompt if mode == "sync" else (prompt + chaos.emitted)[: held.n_ctx - 1]
        prompt = prompt[: held.n_ctx - 1]


class Sampled(ChaosWorld):
    """A target that draws as the last stage does: Gumbel noise keyed by seed, position and token on logits that
    depend on the token before. The draft draws with the same noise from logits of its own."""

    def probabilities(self, last: int) -> np.ndarray:
        weights = 1.0 + (np.arange(1, VOCABULARY) * 5 + last * 3) % 7
        return weights / weights.sum()  # type: ignore[no-any-return]

    def _draw(self, history: Sequence[int], sharper: float) -> int:
        noise = gumbel(self.seed, len(history), np.arange(1, VOCABULARY))
        return 1 + int((sharper * np.log(self.probabilities(history[-1])) + noise).argmax())

    def target(self, history: Sequence[int]) -> int:
        return self._draw(history, 1.0)

    def draft(self, history: Sequence[int]) -> Guess:
        first = self._draw(history, 4.0)
        return Guess(first, 0.7, first % (VOCABULARY - 1) + 1, 0.2)


class Biased(Sampled):
    """The draft's word is taken one time in two."""

    def target(self, history: Sequence[int]) -> int:
        taken = self._random(history, 3).random() < 0.5
        return self.draft(history).token if taken else super().target(history)


def chi_square(seeds: int, kind: type[Sampled] = Sampled) -> float:
    """Of pairs (second, third token), which were guessed at, against the target's distribution worked out here."""
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(seeds):
        asked = Settings(n_ctx=16, branches=1 + seed % 3, split=0.0)
        chaos = Chaos(kind(seed, 0.5), asked, [CostCurve.linear(0.02)] * 2, random.Random(seed))
        chaos.turn([1, 2], 4)
        counts[chaos.emitted[1], chaos.emitted[2]] += 1
    world, tokens = Sampled(0, 0.5), range(1, VOCABULARY)
    of = {t: world.probabilities(t) for t in tokens}
    second = sum(of[2][first - 1] * of[first] for first in tokens)
    expected = {(b, c): seeds * second[b - 1] * of[b][c - 1] for b in tokens for c in tokens}
    assert sum(expected.values()) == pytest.approx(seeds)
    return float(sum((counts[pair] - e) ** 2 / e for pair, e in expected.items()))


def test_sampled_tokens_follow_the_target() -> None:
    """2. Over seeds two tokens in a row have the target's distribution: 35 degrees of freedom, p = 0.001 at 66.6."""
    assert chi_square(2000) < 66.6


def test_a_biased_acceptance_is_seen() -> None:
    assert chi_square(1000, Biased) > 66.6


def skip_removals(chaos: Chaos) -> None:
    """Dead cells stay."""
    original = chaos.engine.pool.bury
    chaos.engine.pool.bury = lambda dead, root, main: original(dead, root, main)[:0]  # type: ignore[method-assign]


def cancel_the_living(chaos: Chaos) -> None:
    """A hit cancels the newest run too."""
    pipe = chaos.engine.pipe
    original = pipe.newly_dead

    def wrong(now: float) -> list[int]:
        for flight in list(pipe.in_flight.values())[-1:]:
            flight.live = {0: min(flight.live.get(0, 0), len(flight.run.rows) - 1)}
        return original(now)

    pipe.newly_dead = wrong  # type: ignore[method-assign]


def believe_the_draft(chaos: Chaos) -> None:
    """A wrong draft is accepted."""
    original = chaos.engine.slots[0]._verify

    def wrong() -> None:
        root = chaos.engine.slots[0].tree.root
        if root.draw is not None and root.children and root.draw != EOG:
            root.draw = root.children[0].token
        original()

    chaos.engine.slots[0]._verify = wrong  # type: ignore[method-assign]


def keep_ids(chaos: Chaos) -> None:
    """Sequence ids are not given back."""
    chaos.engine.pool._give = lambda seq: None  # type: ignore[method-assign]


def send_twice(chaos: Chaos) -> None:
    """A node does not remember that it left."""
    chaos.engine.pipe.carry = lambda run, nodes: None  # type: ignore[method-assign]


def expect_fault(
    settings: Settings, break_it: Callable[[Chaos], None], caught: tuple[type[Exception], ...]
) -> None:
    """Some run of an engine with that fault fails with one of `caught`."""
    for seed in range(30):
        chaos = Chaos(ChaosWorld(seed, 0.7, 0.0), settings, [CostCurve.linear(0.02)] * 3, random.Random(seed))
        break_it(chaos)
        try:
            chaos.turn([1, 2, 3], 30)
            check(chaos, [1, 2, 3], chaos.world.text([1, 2, 3], 30, 64))
        except caught:
            return
    pytest.fail("no run showed the fault")


def restore_too_late(chaos: Chaos) -> None:
    """A miss goes back to the newest state, wrong rows and all."""
    checkpoints = chaos.engine.slots[0].checkpoints
    assert checkpoints is not None
    original = checkpoints.reach
    checkpoints.reach = lambda n: max([*checkpoints.positions, original(n)])  # type: ignore[method-assign]


def forget_to_replay(chaos: Chaos) -> None:
    """Accepted rows of the run that missed are not computed again."""
    original = chaos.engine.slots[0]._truncate
    chaos.engine.slots[0]._truncate = lambda n: original(n)[:0]  # type: ignore[method-assign]


def give_up_early(chaos: Chaos) -> None:
    """States are given up while a run in flight may still need them."""
    checkpoints = chaos.engine.slots[0].checkpoints
    assert checkpoints is not None
    checkpoints.settle = lambda pos: checkpoints._drop(checkpoints.positions[:-1])  # type: ignore[method-assign]


@pytest.mark.parametrize("break_it", [restore_too_late, forget_to_replay, give_up_early])
def test_the_driver_finds_what_is_wrong_with_checkpoints(break_it: Callable[[Chaos], None]) -> None:
    settings = Settings(n_ctx=64, max_rows=3, checkpoints=True, eog=frozenset({EOG}))
    expect_fault(settings, break_it, (AssertionError, EngineError, KeyError, ValueError, IndexError))


def test_states_are_restored_and_rows_replayed_within_few_slots() -> None:
    """At most width - 1 rows are computed again behind a miss, and slots are as many as runs in flight, and a few."""
    replayed = restored = 0
    for seed in range(60):
        mode = ("async", "sync")[seed % 2]
        eog = frozenset({EOG})
        settings = Settings(mode, n_ctx=200, chunk=16, max_rows=2 + seed % 6, checkpoints=True, eog=eog)
        chaos = Chaos(ChaosWorld(seed, 0.8, 0.0), settings, [CostCurve.linear(0.02)] * 3, random.Random(seed))
        carry_out = chaos._carry_out

        def count(action: ev.Action, carry_out: Callable[[ev.Action], None] = carry_out) -> None:
            nonlocal restored
            if isinstance(action, ev.Dispatch) and action.run.kind != "prefill":
                restored += any(op.kind == "restore" for op in action.run.ops)
            carry_out(action)

        chaos._carry_out = count  # type: ignore[method-assign]
        chaos.turn([1 + i % 5 for i in range(40)], 60)
        replayed += chaos.engine.slots[0].stats.replayed
        assert chaos.engine.slots[0].checkpoints is not None
        assert chaos.engine.slots[0].checkpoints.n_states <= settings.states(3)
    assert restored > 200 and replayed > 200, (restored, replayed)


def test_a_turn_begins_at_a_state_that_is_still_kept() -> None:
    """The same prompt again: all but its last chunk is there. Another end: all but the chunk that differs."""
    settings = Settings(mode="off", n_ctx=200, chunk=16, checkpoints=True)
    chaos = Chaos(ChaosWorld(3, 0.8, 0.0), settings, [CostCurve.linear(0.02)] * 2, random.Random(3))
    prompt = [1 + i % 5 for i in range(40)]
    chaos.turn(prompt, 10)
    chaos.turn(prompt, 10)
    assert chaos.engine.slots[0].turn.kept == 32
    chaos.turn([*chaos.engine.slots[0].turn.tokens, 1, 2, 3], 10)
    assert chaos.engine.slots[0].turn.kept == 49
    chaos.turn(prompt[:35] + [6] * 10, 10)
    assert chaos.engine.slots[0].turn.kept == 32


@pytest.mark.parametrize("break_it", [skip_removals, cancel_the_living, believe_the_draft, keep_ids, send_twice])
def test_the_driver_finds_what_is_wrong(break_it: Callable[[Chaos], None]) -> None:
    """Engines with a fault, each caught by what the tests above check."""
    settings = Settings(n_ctx=64, max_rows=2, branches=3, split=0.0, eog=frozenset({EOG}))
    expect_fault(settings, break_it, (AssertionError, EngineError, KeyError, ValueError))


def test_random_orders_reach_every_corner() -> None:
    """The cases above do accept drafts and siblings, cancel runs early and late, and fill the pipeline."""
    seen: Counter[str] = Counter()
    for seed in range(150):
        settings = Settings(n_ctx=64, max_rows=1 + seed % 4, branches=1 + seed % 3, split=0.0)
        chaos = Chaos(ChaosWorld(seed, 0.6, 0.0), settings, [CostCurve.linear(0.02)] * 3, random.Random(seed))
        emit = chaos._carry_out

        def count(action: ev.Action, chaos: Chaos = chaos, emit: Callable[[ev.Action], None] = emit) -> None:
            if isinstance(action, ev.Emit):
                seen[action.origin] += 1
            seen["full pipe"] += len(chaos.engine.pipe) > 6
            seen["dead runs that are needed"] += any(
                not f.alive and not f.cancelled for f in chaos.engine.pipe.in_flight.values()
            )
            emit(action)

        chaos._carry_out = count  # type: ignore[method-assign]
        chaos.turn([1, 2, 3], 50)
        seen["cancelled"] += chaos.engine.slots[0].stats.cancelled
    assert all(seen[k] > 50 for k in ("draft", "sibling", "target", "full pipe", "cancelled")), seen
    assert seen["dead runs that are needed"] > 0, seen
