"""How much of what the stages hold a prompt may use: no text depends on what was asked before."""

from __future__ import annotations

import random

import pytest
from engine_driver import Chaos, ChaosWorld
from hypothesis import given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st

from pipeinfer_cpp.engine import CostCurve, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.cached import Cached, Past

CHUNK = 4


def kept(cached: Cached, prompt: list[int], exact: bool = True, goes_on: bool = False) -> int:
    return cached.begin(prompt, CHUNK, 2, exact, goes_on, lambda n: n)[0]


def after(prompt: list[int], answer: list[int]) -> Cached:
    cached = Cached()
    assert kept(cached, prompt) == 0
    cached.end(prompt + answer)
    return cached


FIRST = [*range(100, 110)]  # chunks 0-4, 4-8, 8-10


@pytest.mark.parametrize(
    ("prompt", "exact", "goes_on", "expected"),
    [
        ([100, 1, 2, 3, 4], True, False, 0),  # a shared first token moves no grid
        ([100, 1, 2, 3, 4], False, False, 1),
        ([*FIRST[:7], 1, 2, 3, 4], True, False, 4),
        (FIRST, True, False, 8),  # again: its last chunk was not whole
        (FIRST, False, False, 9),
        ([*FIRST, 1, 2, 3], True, False, 8),  # another prompt that happens to begin with the text so far
        ([*FIRST, 1, 2, 3], True, True, 12),  # the next turn
        (FIRST, True, True, 8),
        ([*FIRST, 1, 7, 7, 7, 7], True, True, 8),
        ([7], True, True, 0),
    ],
)
def test_what_is_kept(prompt: list[int], exact: bool, goes_on: bool, expected: int) -> None:
    assert kept(after(FIRST, [1, 2]), prompt, exact, goes_on) == expected


def test_a_turn_again_begins_where_it_began() -> None:
    cached = after(FIRST, [1, 2])
    second = [*FIRST, 1, 2, 3, 4, 5, 6, 7]
    assert kept(cached, second, goes_on=True) == 12
    cached.end([*second, 9, 9])
    assert kept(cached, second, goes_on=True) == 16
    cached.end([*second, 9, 9])
    assert kept(cached, [*second[:13], 8, 8, 8, 8], goes_on=True) == 12
    cached.end([*second[:13], 8, 8, 8, 8])
    assert kept(cached, second) == 8  # alone: on the grid from its beginning


def batches(chaos: Chaos) -> dict[int, tuple[int, int]]:
    """Position -> the rows that it is computed with last, kept current while the engine works."""
    computed: dict[int, tuple[int, int]] = {}
    carry_out = chaos._carry_out

    def watch(action: ev.Action) -> None:
        if isinstance(action, ev.Dispatch) and action.run.rows:
            rows = action.run.rows
            computed.update({row.pos: (rows[0].pos, rows[-1].pos + 1) for row in rows})
        carry_out(action)

    chaos._carry_out = watch  # type: ignore[method-assign]
    return computed


@of_hypothesis(deadline=None)
@given(st.integers(0, 1 << 30), st.booleans())
def test_the_chunk_of_a_row_depends_on_the_prompt_alone(seed: int, recurrent: bool) -> None:
    """Of a prompt, (chunk that a position was computed in) is a function of the prompt alone."""
    rng = random.Random(seed)
    settings = Settings("off", n_ctx=64, chunk=CHUNK, exact=True, checkpoints=recurrent)
    chaos = Chaos(ChaosWorld(1, 1.0, 0.0), settings, [CostCurve.linear(0.02)] * 2, rng)
    computed = batches(chaos)
    texts = [[1, 2, 3, 4, 5, 6, 1, 2, 3], [1, 2, 3, 4, 5, 5, 5, 5, 5, 5], [1, 6, 6, 6, 6], [1, 2, 3, 4]]
    for _ in range(6):
        prompt = rng.choice(texts)
        if rng.random() < 0.3 and chaos.engine.slots[0].cached:
            prompt = [*chaos.engine.slots[0].cached[: rng.randrange(1, len(chaos.engine.slots[0].cached) + 1)], 3]
        chaos.turn(prompt, rng.randrange(1, 6), stop_after=rng.choice((None, 3, 20)), keep=None)
        n = chaos.engine.slots[0].turn.n_prompt
        if chaos.finished != "cancelled":
            assert all(computed[p] == (p - p % CHUNK, min(p - p % CHUNK + CHUNK, n)) for p in range(n)), computed


def test_lost_cells_are_computed_in_the_batches_that_they_first_had() -> None:
    cached = after(FIRST, [1, 2, 3])
    assert cached.spans == [(0, 10, False), (10, 13, True)]
    cached.recall(cached.tokens, cached.spans)
    kept, ranges = cached.begin([*FIRST, 1, 2, 3, 4, 5], CHUNK, 2, True, True, lambda n: n)
    assert (kept, ranges) == (0, [(0, 4), (4, 8), (8, 10), (10, 12), (12, 13), (13, 15)])
    cached.end([*FIRST, 1, 2, 3, 4, 5])
    assert cached.spans == [(0, 10, False), (10, 13, True), (13, 15, False)]


def test_a_turn_that_ends_within_its_prompt_leaves_no_trace() -> None:
    cached = after(FIRST, [1, 2, 3])
    before = list(cached.tokens), list(cached.spans)
    assert kept(cached, [*FIRST[:5], *range(20)], goes_on=True) == 4
    cached.end(FIRST[:4])
    assert (cached.tokens, cached.spans) == before
    kept_now, ranges = cached.begin([*FIRST, 1, 2, 3, 4, 5], CHUNK, 2, True, True, lambda n: n)
    assert (kept_now, ranges) == (4, [(4, 8), (8, 10), (10, 12), (12, 13), (13, 15)])


@of_hypothesis(deadline=None)
@given(st.integers(0, 1 << 30), st.booleans(), st.sampled_from(["off", "async"]))
def test_a_conversation_on_another_pipeline_is_computed_in_the_same_batches(
    seed: int, recurrent: bool, mode: str
) -> None:
    """Two turns, then a third one: there, and on a fresh engine that recalls the two."""
    rng = random.Random(seed)
    settings = Settings(mode, n_ctx=64, chunk=CHUNK, max_rows=3, exact=True, checkpoints=recurrent)
    world = ChaosWorld(seed, 0.6, 0.0)
    first = Chaos(world, settings, [CostCurve.linear(0.02)] * 2, random.Random(seed))
    there = batches(first)
    conversation: list[int] = []
    for _ in range(2):
        more = [rng.randrange(1, 7) for _ in range(6)]
        first.turn([*conversation[: rng.randrange(len(conversation) + 1)], *more], 5, goes_on=bool(conversation))
        conversation = list(first.engine.slots[0].turn.tokens)
    past = Past.from_json(first.engine.slots[0].past.to_json())
    fresh = Chaos(world, settings, [CostCurve.linear(0.02)] * 2, random.Random(seed + 1))
    here = batches(fresh)
    fresh.engine.slots[0].recall(past)
    third = [*conversation, 1, 2, 3, 4, 5, 6]
    for chaos in (first, fresh):
        chaos.turn(third, 6, goes_on=True)
    assert fresh.engine.slots[0].past == first.engine.slots[0].past
    assert fresh.engine.slots[0].turn.tokens == first.engine.slots[0].turn.tokens
    for begin, end, drawn in first.engine.slots[0].past.spans:
        alike = range(begin, end)
        if drawn:
            assert all(here[p][1] - here[p][0] <= settings.max_rows for p in alike)
        else:
            assert [here[p] for p in alike] == [there[p] for p in alike]
