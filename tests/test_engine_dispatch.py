"""What leaves when, where several conversations share a pipeline; and what one of them leaves behind for the next."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from test_engine_parts import LEVEL, Watched
from test_engine_tables import Scene, begun

from pipeinfer_cpp.engine import CostCurve, Engine, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.sequences import cp, rm
from pipeinfer_cpp.sim.worlds import independent


class Several(Scene):
    """Slots over stages of these seconds. Guesses are certain, and rows cost nothing more."""

    def __init__(self, n: int, *stages: float, further: float = 0.0, **settings: Any) -> None:
        super().__init__()
        asked = Settings(n_ctx=64, slots=n, cutoff=0.0, **settings)
        self.engine = Engine(asked, [CostCurve.linear(seconds, further) for seconds in stages])
        self.paths: dict[int, int] = {}

    def feed(self, event: ev.Event) -> list[ev.Action]:
        super().feed(event)
        self.paths |= {action.slot: action.path for action in self.all(ev.DraftReset)}
        return self.out

    def left(self) -> list[tuple[str, list[int]]]:
        """Kind and slots of the runs that left just now."""
        return [(run.kind, [row.slot for row in run.rows]) for run in self.runs()]

    def back_one(self, run: int, *tokens: int) -> None:
        """From the only stage."""
        self.feed(ev.StageReady(0, run, 0.02))
        self.feed(ev.RunDone(run, tuple((t, -0.1) for t in tokens)))

    def begin(self, slot: int, *tokens: int, owner: str = "") -> None:
        self.feed(ev.Prompt(tokens, 20, slot=slot, owner=owner))


def widths(n: int, further: float, **settings: Any) -> Counter[int]:
    """How many conversations the runs of `n` carry, on two stages of 20 ms and `further` for each further row."""
    world = independent(200, 0.7)
    cluster = Watched(world, 2, CostCurve.linear(0.02, further), slots=n, **settings)
    cluster.generate_all([world.text[: 8 + i] for i in range(n)], 40)
    runs = [action.run for action in cluster.all(ev.Dispatch) if action.run.kind == "decode"]
    return Counter(len({row.slot for row in run.rows}) for run in runs)


@pytest.mark.parametrize(
    ("n", "further", "shared", "settings"),
    [
        (2, 0.0, 1, {"mode": "off"}),  # both are under way at once
        (4, 0.0, 2, {"mode": "off"}),
        (8, 0.0, 4, {"mode": "off"}),
        (4, 0.02, 1, {"mode": "off"}),  # a row more costs a run more
        (4, 0.0, 1, {"mode": "off", "checkpoints": True}),
        (4, 0.0, 1, {"mode": "sync"}),
        (4, 0.0, 1, {"mode": "off", "max_rows": 1}),
    ],
)
def test_as_many_share_a_run_as_the_pipeline_has_no_room_for(
    n: int, further: float, shared: int, settings: dict[str, Any]
) -> None:
    seen = widths(n, further, **settings)
    assert seen[shared] > 0.7 * seen.total(), seen


@pytest.mark.parametrize(("branches", "rows"), [(1, [0, 0, 1, 1]), (2, [0, 0, 0, 0, 1, 1])])
def test_conversations_with_cells_of_their_own_share_a_run_in_equal_parts(branches: int, rows: list[int]) -> None:
    """Rows of several sequences are one batch where each has as many. Three drafts here, one there."""
    scene = Several(2, 0.02, branches=branches)
    for slot in (0, 1):
        scene.begin(slot, 5, 6, 7)
        scene.feed(ev.StageReady(0, slot + 1, 0.02))
    for slot, tokens in ((0, (8, 9, 10, 11)), (1, (8, 9))):
        for pos, token in enumerate(tokens, 3):
            scene.draft(pos, token, path=scene.paths[slot])
    scene.feed(ev.RunDone(1, ((8, -0.1),)))
    assert not scene.runs()  # the other comes and goes with it
    scene.feed(ev.RunDone(2, ((8, -0.1),)))
    assert scene.left() == [("decode", rows)]


def test_who_waits_longest_leaves_first() -> None:
    scene = Several(3, *[0.02] * 4, mode="off")
    for run, slot in enumerate((1, 0, 2), 1):
        scene.begin(slot, 5, 6, 7)
        if run < 3:
            scene.feed(ev.StageReady(0, run, 0.02))
    scene.engine.pipe.pace.sent(99, 1, scene.now)  # the first stage is busy for a while
    scene.feed(ev.RunDone(1, ((8, -0.1),)))
    scene.feed(ev.RunDone(2, ((8, -0.1),)))
    assert not scene.runs() and [slot.waits for slot in scene.engine.slots] == [True, True, False]
    scene.engine.pipe.pace.gone(99)
    scene.engine.pipe.pace.gone(3)
    scene.feed(ev.Tick())
    assert scene.left() == [("decode", [1])]


def test_a_final_token_that_waits_lets_one_chunk_past() -> None:
    scene = Several(2, 0.01, 0.03, mode="off", chunk=3)
    scene.begin(0, 5, 6, 7)
    scene.feed(ev.StageReady(0, 1, 0.01))
    scene.begin(1, *range(1, 13))
    assert scene.left() == [("prefill", [1, 1, 1])]
    scene.feed(ev.StageReady(1, 1, 0.03))
    scene.feed(ev.RunDone(1, ((8, -0.1),)))
    assert scene.engine.slots[0].waits and not scene.runs()
    scene.feed(ev.StageReady(0, 2, 0.01))  # the slower stage has it now, and then the one that is let past
    assert scene.left() == [("prefill", [1, 1, 1])]
    scene.feed(ev.StageReady(0, 3, 0.01))
    assert scene.engine.slots[0].waits and not scene.runs()
    scene.feed(ev.StageReady(1, 2, 0.03))
    scene.feed(ev.StageReady(1, 3, 0.03))
    assert scene.left() == [("decode", [0]), ("prefill", [1, 1, 1])]


def test_a_conversation_alone_guesses_on_one_stage_too() -> None:
    scene = Several(1, 0.02)
    scene.begin(0, 5, 6, 7)
    scene.draft(3, 8)
    scene.now += 0.02
    scene.feed(ev.StageReady(0, 1, 0.02))
    assert scene.left() == [("decode", [0])]


def test_an_earlier_alarm_replaces_a_later_one() -> None:
    engine = Engine(Settings(), [LEVEL])
    for at in (1.0, 1.5, 0.995, 0.997):
        engine._wake(at)
    assert engine._out == [ev.Wake(1.0), ev.Wake(0.995)]


# ------------------------------------------------------------------------------------- cells of another conversation


@pytest.mark.parametrize(
    ("branches", "ops"), [(1, (rm(1, 0), cp(0, 1, 0, -1), rm(1, 3))), (2, (rm(1, 0), cp(0, 1, 0, 3)))]
)
def test_cells_are_copied_whole_where_each_conversation_has_its_own(branches: int, ops: tuple[Any, ...]) -> None:
    """A stream of llama.cpp is copied as a whole; within one only what is asked for."""
    scene = Several(2, 0.02, branches=branches, mode="off")
    scene.begin(0, 5, 6, 7, 8, owner="a")
    scene.back_one(1, 9)
    scene.begin(1, 5, 6, 7, 9, owner="a")
    copied = [op for op in scene.runs()[0].ops if op.seq == 1]
    assert tuple(copied[: len(ops)]) == ops


def test_nothing_is_copied_from_a_prompt_that_may_still_be_cancelled() -> None:
    for back in (False, True):
        scene = Several(2, 0.02, mode="off")
        scene.begin(0, 5, 6, 7, 8, owner="a")
        if back:
            scene.back_one(1, 9)
        else:
            scene.feed(ev.StageReady(0, 1, 0.02))
        scene.begin(1, 5, 6, 7, 9, owner="a")
        assert scene.engine.slots[1].turn.kept == (3 if back else 0)


def test_nothing_is_copied_that_the_stages_lost() -> None:
    scene = Several(2, 0.02, mode="off")
    scene.begin(0, 5, 6, 7, 8, owner="a")
    scene.back_one(1, 9)
    scene.feed(ev.Stop("cancelled"))
    scene.feed(ev.RunDone(2))
    scene.feed(ev.RunDone(3))
    assert scene.engine.idle and scene.engine.slots[0].shared((5, 6, 7, 9)) == 3
    scene.feed(ev.Lost())
    assert scene.engine.slots[0].shared((5, 6, 7, 9)) == 0
    scene.begin(0, 5, 6, 7, 8, owner="a")
    scene.back_one(scene.runs()[0].id, 9)
    scene.feed(ev.Lost())
    assert scene.engine.slots[0].shared((5, 6, 7, 9)) == 0


# -------------------------------------------------------------------------------------------------- one conversation


def test_a_turn_is_counted_by_itself() -> None:
    scene = begun(mode="off")
    for stats in (1, 2):
        scene.back(scene.engine.pipe._next - 1, 0)
        scene.feed(ev.RunDone(scene.engine.pipe._next - 1))
        assert scene.engine.idle and scene.engine.slots[0].stats.sent == 2, stats
        scene.feed(ev.Prompt((5, 6, 7), 20))


def test_the_draft_worker_hears_a_thing_once() -> None:
    scene = begun(branches=2)
    assert len(scene.all(ev.DraftRoom)) == 1
    scene.draft(3, 8, second=9, second_prob=0.4)
    scene.draft(4, 10)
    assert not scene.all(ev.DraftRoom)
    scene.back(1, 8)
    assert scene.all(ev.DraftDrop) == [ev.DraftDrop((2,))]
    scene.back(scene.engine.pipe._next - 1, 10, 4, 4)
    assert scene.tokens()[0] == (10, 4, "draft") and not scene.all(ev.DraftDrop)


def test_the_governor_hears_whether_the_next_run_had_left() -> None:
    told: list[bool] = []
    for sent in (True, False):
        scene = begun()
        scene.engine._common.governor.token = lambda now, ahead=False: told.append(ahead)  # type: ignore[method-assign]
        scene.draft(3, 8)
        if sent:
            scene.now += 0.02
            scene.feed(ev.StageReady(0, 1, 0.02))
        scene.feed(ev.RunDone(1, ((8, -0.1),)))
    assert told == [True, False]


def test_a_token_ends_what_was_refused_before_it() -> None:
    scene = begun(decay=0.1)
    scene.engine.slots[0].speculation.cutoff.refused()
    scene.feed(ev.RunDone(1, ((8, -0.1),)))
    assert scene.engine.slots[0].speculation.cutoff.shift == 0.0


def test_second_choices_are_counted_whatever_token_they_are() -> None:
    for second, said, counted in ((9, 9, 1.0), (9, 4, 0.0), (0, 4, 0.0), (-1, 4, None)):
        scene = begun()
        scene.draft(3, 8, second=second, second_prob=0.05)
        scene.feed(ev.RunDone(1, ((said, -0.1),)))
        assert scene.engine.slots[0].stats.sibling_hit == counted


def waits_to_compute_again() -> Scene:
    """The root waits for its draft, and two accepted rows behind a restored state wait with it."""
    scene = begun(mode="sync", checkpoints=True, draft_max=2)
    scene.back(1, 4)
    scene.draft(4, 8)
    scene.draft(5, 9)
    scene.back(2, 8, 2, 3)
    assert scene.tokens() == [(8, 4, "draft"), (2, 5, "target")] and not scene.runs()
    return scene


def next_rows(scene: Scene, pos: int) -> list[list[int]]:
    """A draft at `pos` comes true when the last chunk is back; then there are no more."""
    scene.draft(pos, 3)
    scene.back(scene.engine.pipe._next - 1, 3)
    scene.feed(ev.DraftLost())
    return [[row.pos for row in run.rows] for run in scene.runs()]


def test_a_stop_forgets_what_waited_to_be_computed_again() -> None:
    scene = waits_to_compute_again()
    scene.feed(ev.Stop("cancelled"))
    assert [(run.kind, [row.pos for row in run.rows]) for run in scene.runs()] == [("replay", [3, 4]), ("end", [])]
    for run in scene.runs():
        scene.feed(ev.RunDone(run.id))
    scene.feed(ev.Prompt((5, 6, 7, 4, 8, 1, 1), 20))
    assert next_rows(scene, 7) == [[7]]


def test_stages_that_are_lost_forget_it_too() -> None:
    scene = waits_to_compute_again()
    scene.feed(ev.Lost())
    assert [[row.pos for row in run.rows] for run in scene.runs()] == [[0, 1, 2], [3, 4, 5]]
    assert next_rows(scene, 6) == [[6]]
