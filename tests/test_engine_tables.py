"""What the engine does, step by step: one small scene each."""

from __future__ import annotations

from typing import Any

import pytest

from pipeinfer_cpp.engine import CostCurve, Engine, EngineError, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.sequences import cp, rm

EOG = 0
MAIN = 0


class Scene:
    """An engine with two stages whose rows cost nothing more, and what it asked for, by kind."""

    def __init__(self, further: float = 0.0, **settings: Any) -> None:
        settings.setdefault("cutoff", 0.0)
        self.engine = Engine(
            Settings(n_ctx=64, eog=frozenset({EOG}), **settings), [CostCurve.linear(0.02, further)] * 2
        )
        self.now = 0.0
        self.out: list[ev.Action] = []
        self.path = 0

    def feed(self, event: ev.Event) -> list[ev.Action]:
        self.now += 0.001
        self.out = self.engine.handle(event, self.now)
        for action in self.all(ev.DraftReset):
            self.path = action.path
        return self.out

    def all(self, kind: type) -> list[Any]:
        return [a for a in self.out if isinstance(a, kind)]

    def runs(self) -> list[Any]:
        return [a.run for a in self.all(ev.Dispatch)]

    def draft(self, pos: int, token: int, second: int = -1, second_prob: float = 0.0, path: int = 0) -> None:
        self.feed(ev.Drafted(path or self.path, pos, token, 0.9, second, second_prob, 0.002))

    def back(self, run: int, *tokens: int) -> None:
        for stage in (0, 1):
            self.feed(ev.StageReady(stage, run, 0.02))
        self.feed(ev.RunDone(run, tuple((t, -0.1) for t in tokens)))

    def tokens(self) -> list[tuple[int, int, str]]:
        return [(a.token, a.pos, a.origin) for a in self.all(ev.Emit)]


def begun(**settings: Any) -> Scene:
    """Prompt 5 6 7 sent as run 1; nothing is drafted yet."""
    scene = Scene(**settings)
    scene.feed(ev.Prompt((5, 6, 7), 20))
    return scene


def test_a_prompt_goes_out_in_chunks_that_fill_the_pipeline() -> None:
    scene = Scene(mode="off", chunk=2)
    scene.feed(ev.Prompt(tuple(range(1, 14)), 5))
    assert [[r.pos for r in run.rows] for run in scene.runs()] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    scene.feed(ev.StageReady(0, 1, 0.02))
    assert not scene.runs()
    scene.feed(ev.RunDone(1))
    assert [[r.pos for r in run.rows] for run in scene.runs()] == [[8, 9]]
    scene.feed(ev.RunDone(2))
    scene.feed(ev.RunDone(3))
    (last,) = scene.runs()
    assert [(r.token, r.draw) for r in last.rows] == [(13, True)]


def test_drafts_leave_before_the_prompt_is_back() -> None:
    scene = begun()
    assert [r.draw for r in scene.runs()[0].rows] == [False, False, True]
    assert scene.all(ev.DraftReset) and scene.all(ev.DraftRoom)
    scene.draft(3, 8)
    scene.now += 0.02
    scene.feed(ev.StageReady(0, 1, 0.02))
    (run,) = scene.runs()
    assert [(r.token, r.pos, r.seq) for r in run.rows] == [(8, 3, MAIN)]


def sent() -> Scene:
    """The draft 8 has left as run 2."""
    scene = begun()
    scene.draft(3, 8)
    scene.now += 0.02
    scene.feed(ev.StageReady(0, 1, 0.02))
    assert [run.id for run in scene.runs()] == [2]
    return scene


def test_a_hit_emits_and_cancels_nothing() -> None:
    scene = sent()
    scene.feed(ev.RunDone(1, ((8, -0.1),)))
    assert scene.tokens() == [(8, 3, "draft")]
    assert not scene.all(ev.Cancel) and not scene.runs()  # its run is under way already


def test_a_miss_cancels_and_dispatches_in_the_same_step() -> None:
    scene = sent()
    scene.draft(4, 9)
    scene.feed(ev.RunDone(1, ((4, -0.1),)))
    assert scene.tokens() == [(4, 3, "target")]
    assert scene.all(ev.Cancel) == [ev.Cancel((2,))]
    (run,) = scene.runs()
    assert run.ops == (rm(MAIN, 3),) and [(r.token, r.pos) for r in run.rows] == [(4, 3)]
    (reset,) = scene.all(ev.DraftReset)
    assert (reset.keep, reset.tokens) == (3, (4,))
    stats = scene.engine.slots[0].stats
    assert (stats.proposed, stats.accepted, stats.rejected, stats.wasted, stats.cancelled) == (2, 0, 1, 1, 1)


def test_a_final_token_takes_the_known_drafts_along() -> None:
    scene = begun()
    for pos, token in ((3, 8), (4, 9), (5, 10)):
        scene.draft(pos, token)
    scene.feed(ev.RunDone(1, ((8, -0.1),)))
    (run,) = scene.runs()
    assert [r.token for r in run.rows] == [8, 9, 10]


def test_what_a_dead_path_still_says_is_ignored() -> None:
    scene = sent()
    old = scene.path
    scene.feed(ev.RunDone(1, ((4, -0.1),)))
    before = scene.engine.slots[0].stats.proposed
    scene.draft(4, 9, path=old)
    assert scene.engine.slots[0].stats.proposed == before and not scene.runs()
    scene.draft(4, 11)
    assert scene.engine.slots[0].stats.proposed == before + 1


def test_a_second_choice_goes_along_and_wins() -> None:
    scene = begun(branches=2)
    scene.draft(3, 8, second=9, second_prob=0.4)
    (fork,) = scene.all(ev.DraftFork)
    assert (fork.keep, fork.token) == (3, 9)
    assert scene.engine.pool.taken == frozenset()  # a branch that does not leave takes no id
    scene.now += 0.02
    scene.feed(ev.StageReady(0, 1, 0.02))
    (run,) = scene.runs()
    assert [(r.token, r.seq) for r in run.rows] == [(8, 0), (9, 1)] and run.ops == (cp(MAIN, 1, 0, 3),)
    scene.feed(ev.RunDone(1, ((9, -0.1),)))
    assert scene.tokens() == [(9, 3, "sibling")]
    assert not scene.all(ev.Cancel)  # the run carries the winner too
    assert scene.engine.pool.taken == frozenset()
    assert scene.engine.pipe.ops == [rm(MAIN, 3), cp(1, MAIN, 3, -1), rm(1, 0)]  # with the next header


def test_sync_waits_until_its_draft_is_whole() -> None:
    scene = begun(mode="sync", draft_max=2)
    scene.back(1, 4)
    assert scene.tokens() == [(4, 3, "target")] and not scene.runs()
    scene.draft(4, 8)
    assert not scene.runs()
    scene.draft(5, 9)
    assert [[r.token for r in run.rows] for run in scene.runs()] == [[4, 8, 9]]
    scene.feed(ev.DraftLost())
    scene.back(2, 8, 2, 3)
    assert scene.tokens() == [(8, 4, "draft"), (2, 5, "target")]
    assert [[r.token for r in run.rows] for run in scene.runs()] == [[2]]


def test_the_end_of_generation_truncates_everywhere_and_waits() -> None:
    scene = sent()
    scene.feed(ev.RunDone(1, ((EOG, -0.1),)))
    assert not scene.tokens() and scene.all(ev.Cancel) == [ev.Cancel((2,))]
    (end,) = scene.runs()
    assert end.kind == "end" and end.ops[-1] == rm(MAIN, 3) and not scene.all(ev.Finish)
    scene.feed(ev.RunDone(2))
    assert not scene.all(ev.Finish)
    scene.feed(ev.RunDone(end.id))
    assert scene.all(ev.Finish) == [ev.Finish("stop")]
    assert scene.engine.slots[0].cached == [5, 6, 7]


def test_max_tokens_is_a_length() -> None:
    scene = Scene(mode="off")
    scene.feed(ev.Prompt((5, 6, 7), 2))
    scene.back(1, 4)
    scene.back(2, 3)
    assert scene.tokens() == [(3, 4, "target")]
    scene.back(3)
    assert scene.all(ev.Finish) == [ev.Finish("length")]
    assert scene.engine.slots[0].cached == [5, 6, 7, 4]  # the last token's cells come with the next turn


def test_the_next_turn_computes_what_is_new() -> None:
    scene = Scene(mode="off")
    scene.feed(ev.Prompt((5, 6, 7), 2))
    scene.back(1, 4)
    scene.back(2, 3)
    scene.back(3)
    scene.feed(ev.Prompt((5, 6, 9, 9), 2))
    (run,) = scene.runs()
    assert run.ops == (rm(MAIN, 4), rm(MAIN, 2)) or run.ops[-1] == rm(MAIN, 2)
    assert [r.pos for r in run.rows] == [2, 3]


def test_a_row_that_costs_too_much_does_not_go_along() -> None:
    wide, narrow = begun(further=0.0), begun(further=0.02)
    for scene in (wide, narrow):
        for pos in range(3, 9):
            scene.draft(pos, pos + 5)
        scene.now += 0.02
        scene.feed(ev.StageReady(0, 1, 0.02))
    assert len(wide.runs()[0].rows) > len(narrow.runs()[0].rows) == 1


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (ev.RunDone(9), "never left"),
        (ev.Prompt((1, 2), 3), "a prompt while"),
        (ev.RunDone(1, ((4, 0.0), (5, 0.0))), "2 draws for 1 rows"),
        (ev.RunDone(1, ((-1, 0.0),)), "refused a final token"),
    ],
)
def test_what_cannot_be_is_said_with_the_runs_story(event: ev.Event, message: str) -> None:
    scene = begun()
    with pytest.raises(EngineError, match=message):
        scene.feed(event)


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    with pytest.raises(EngineError, match="64 prompt tokens"):
        Scene().feed(ev.Prompt(tuple(range(64)), 3))
