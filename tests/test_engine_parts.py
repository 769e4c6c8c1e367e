"""The engine's parts, where a fault shows in no text: what is counted, learnt, predicted, cancelled and let go."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pipeinfer_cpp.engine import CostCurve, Engine, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.checkpoints import Checkpoints
from pipeinfer_cpp.engine.governor import Governor
from pipeinfer_cpp.engine.pacing import Pace
from pipeinfer_cpp.engine.pipe import Pipe
from pipeinfer_cpp.engine.run import Row
from pipeinfer_cpp.engine.speculation import Calibration, Trust, plan_width, select
from pipeinfer_cpp.engine.stats import Stats
from pipeinfer_cpp.engine.tree import Node, Tree
from pipeinfer_cpp.sim.cluster import VirtualCluster
from pipeinfer_cpp.sim.worlds import Replay, independent

LEVEL = CostCurve.linear(0.02)


class Watched(VirtualCluster):
    """A simulated pipeline that remembers what its engine asked for."""

    def __init__(self, world: Replay, n_stages: int = 3, curve: CostCurve = LEVEL, **settings: Any) -> None:
        super().__init__(world, [curve] * n_stages, Settings(n_ctx=500, **settings))
        self.asked: list[ev.Action] = []

    def _carry_out(self, action: ev.Action) -> None:
        self.asked.append(action)
        super()._carry_out(action)

    def all(self, kind: type) -> list[Any]:
        return [action for action in self.asked if isinstance(action, kind)]


# ---------------------------------------------------------------------------------------- what is counted


def test_rows_and_runs_are_counted_as_they_leave() -> None:
    cluster = Watched(independent(300, 0.6), branches=2)
    cluster.generate(cluster.world.text[:20], 100)  # type: ignore[attr-defined]
    runs, stats = [action.run for action in cluster.all(ev.Dispatch)], cluster.engine.slots[0].stats
    assert (stats.sent, stats.rows) == (len(runs), sum(len(run.rows) for run in runs))
    assert stats.replayed == 0 and stats.proposed == stats.accepted + stats.rejected + stats.wasted
    assert sum(hit for hit, _ in stats.by_depth.values()) == stats.accepted
    assert sum(asked for _, asked in stats.by_depth.values()) == stats.accepted + stats.rejected


def test_one_run_is_in_flight_where_nothing_is_drafted() -> None:
    cluster = Watched(independent(300, 0.6), mode="off")
    cluster.generate([1, 2, 3], 1)
    cluster = Watched(independent(300, 0.6), mode="off")
    cluster.generate(cluster.world.text[:8], 50)  # type: ignore[attr-defined]
    assert cluster.engine.slots[0].stats.in_flight_mean == pytest.approx(1.0, abs=0.05)


def test_acceptance_by_depth_has_no_gap() -> None:
    stats = Stats()
    for depth, accepted in ((1, True), (1, False), (3, True), (3, True), (4, False)):
        stats.verdict(depth, accepted)
    assert stats.accept_by_depth() == [0.5, 0.0, 1.0, 0.0] and stats.acceptance == 0.6
    assert Stats().accept_by_depth() == []


# ----------------------------------------------------------------------------------------- what is learnt


def test_old_verdicts_weigh_less() -> None:
    calibration = Calibration(prior=4, memory=0.5)
    assert calibration(0.55) == pytest.approx(0.55)
    calibration.learn(0.55, True)
    assert calibration(0.55) == pytest.approx((4 * 0.55 * 0.5 + 1) / (4 * 0.5 + 1)) and calibration(0.65) == 0.65
    calibration.learn(0.55, False)
    assert calibration(0.55) == pytest.approx((4 * 0.55 * 0.25 + 0.5) / (4 * 0.25 + 1.5))


def test_a_draft_that_is_surer_or_less_sure_than_right_is_calibrated() -> None:
    for a, low, high in ((0.95, 0.8, 1.0), (0.05, 0.0, 0.2)):
        world = independent(400, a)
        world.guesses = {i: guess._replace(prob=0.55) for i, guess in world.guesses.items()}
        cluster = Watched(world, governor=False)
        cluster.generate(world.text[:8], 380)
        assert low < cluster.engine.slots[0].speculation.trust.draft(0.55) < high


def test_the_pause_between_turns_is_no_tokens_time() -> None:
    """Speculation pays. A minute between turns of eight tokens must not look like slow tokens."""
    world = independent(400, 0.95)
    cluster = Watched(world)
    for end in range(16, 400, 8):
        cluster.clock.now += 60
        cluster.generate(world.text[:end], 8)
        assert cluster.engine.slots[0].speculation.governor.speculate


def test_a_governor_that_sees_a_probe_begins_with_nothing() -> None:
    governor = Governor(lambda: 0.01)
    for i in range(26):
        governor.token(0.02 * i)
    assert not governor.speculate and (governor._seconds, governor._tokens) == (pytest.approx(0.02), 1)


# --------------------------------------------------------------------------------------- what is predicted


def test_plain_is_a_run_of_one_row() -> None:
    assert Pace([CostCurve.linear(0.01)] * 3).plain == pytest.approx(3 * 0.01)
    assert Pace([CostCurve.linear(0.01, 0.02)] * 3, hop=0.001).plain == pytest.approx(3 * 0.01 + 4 * 0.001)


def test_wider_runs_take_longer_on_a_slow_wire() -> None:
    pace = Pace([CostCurve.linear(0.01)] * 2, hop=0.001)
    pace.row = 0.004
    assert pace.latency(1) == pytest.approx(2 * 0.01 + 3 * 0.001)
    assert pace.latency(3) == pytest.approx(2 * 0.01 + 3 * (0.001 + 2 * 0.004))
    pace.travelled(3, 2 * 0.01 + 3 * (0.002 + 2 * 0.004))
    assert pace.hop == pytest.approx(0.002)


def test_a_run_waits_for_those_before_it_that_live() -> None:
    pace = Pace([CostCurve.linear(0.01), CostCurve.linear(0.03)], hop=0.002)
    pace.sent(1, 1, 0.0)
    pace.sent(2, 1, 0.001)
    # Run 1: stage 0 until 0.012, stage 1 from 0.014 to 0.044; run 2 behind it until 0.074. A third is there at 0.034.
    assert pace.wait(1, 0.001) == pytest.approx(0.074 - 0.034)
    pace.dead(2)
    assert pace.wait(1, 0.001) == pytest.approx(0.044 - 0.024)
    pace.gone(1)
    pace.gone(2)
    assert pace.wait(1, 1.0) < 0


def test_a_wire_is_slow_only_where_runs_waited_for_it() -> None:
    """The second stage is always busy when a run comes: how far apart they began says nothing of the wire."""
    pace = Pace([CostCurve.linear(0.01)] * 2)
    for run in range(1, 30):
        pace.sent(run, 2, 0.0)
    for run in range(1, 30):
        pace.ready(0, run, 0.001 * run, 0.001)
    for run in range(1, 30):
        pace.ready(1, run, 0.1 + 0.01 * run, 0.01)
    assert pace.row == 0.0


def test_late_news_are_no_slow_wire() -> None:
    """Runs of four rows, 25 ms apart, through two stages of 20 ms over a quick wire. A third of what the coordinator
    hears of the second stage comes 30 ms late: on a busy machine, anything does."""
    pace, rng, news = Pace([CostCurve.linear(0.02)] * 2), random.Random(1), []
    told = 0.0
    for run in range(1, 300):
        left = 0.025 * run
        pace.sent(run, 4, 0.0)
        told = max(told, left + 0.021 + rng.choice((0.0, 0.0, 0.03)))
        news += [(left, 0, run), (told, 1, run)]
    rows = []
    for at, stage, run in sorted(news):
        pace.ready(stage, run, at, 0.02)
        rows.append(pace.row)
    assert sum(rows) / len(rows) < 0.001


@pytest.mark.parametrize(
    ("alive", "ahead", "rows"),
    [
        ([1.0, 0.6, 0.36], 0, 1),  # 20 x 1.6 + 20 x 0.64 = 44.8 ms, together 30 + 30 x 0.64 = 49.2
        ([1.0, 0.9, 0.81], 0, 2),  # 20 x 1.9 + 20 x 0.19 = 41.8 ms, together 30 + 30 x 0.19 = 35.7
        ([1.0, 0.6, 0.36], 2, 2),  # behind two rows a single one is late too: 20 x 1.6 + 30 x 0.64 = 51.2
        ([1.0, 0.95, 0.0], 0, 1),  # nothing follows: the second row is known after 60 ms in either case, the first 40
        ([1.0, 1.0, 1.0, 1.0], 0, 3),  # 60, 30 x 1.5, 40 ms
    ],
)
def test_what_a_plan_takes_by_hand(alive: list[float], ahead: int, rows: int) -> None:
    """Two stages of 20 ms and 10 ms for a further row."""
    assert plan_width(alive, Pace([CostCurve.linear(0.02, 0.01)] * 2), 8, ahead) == rows


def test_a_plan_pays_for_the_wire() -> None:
    """Rows are free on the stages, and take 50 ms each on the slowest link."""
    pace = Pace([CostCurve.linear(0.02)] * 2)
    alive = [0.8**k for k in range(9)]
    assert plan_width(alive, pace, 4) == 4
    pace.row = 0.05
    pace._known.clear()
    assert plan_width(alive, pace, 4) == 1


@pytest.mark.parametrize(("prob", "rows"), [(0.55, 1), (0.95, 2)])
def test_a_draft_goes_with_the_root_where_that_is_worth_it(prob: float, rows: int) -> None:
    """Two drafts of which nothing is known: alone 20 x (1 + 0.95 + 0.9) + 20 = 77 ms, in twos 30 x 1.45 + 30 = 73.5."""
    tree = Tree(1, 5)
    tree.add(tree.add(tree.root, 2, prob), 3, prob)
    pace = Pace([CostCurve.linear(0.02, 0.01)] * 2)
    chosen = select(tree.root, pace=pace, trust=Trust(), level=0.0, max_rows=8, last_row=7, eog=frozenset())
    assert [node.token for node in chosen] == [1, 2, 3][:rows]


def test_what_will_be_drafted_is_part_of_the_plan() -> None:
    """Two sure drafts at the end of a text leave one by one; where more of them follow, in one run."""
    tree = Tree(1, 5)
    tree.add(tree.root, 2, 0.95)
    pace, trust = Pace([CostCurve.linear(0.02, 0.01)] * 2), Trust()
    for _ in range(500):
        trust.draft.learn(0.95, True)

    def rows(last_row: int) -> int:
        chosen = select(
            tree.root, pace=pace, trust=trust, level=0.0, max_rows=8, last_row=last_row, eog=frozenset()
        )
        return len(chosen)

    assert rows(6) == 1 and rows(30) == 2


@pytest.mark.parametrize(("first", "second"), [(0.35, 0.3), (0.95, 0.99)])
def test_a_second_choice_is_as_likely_as_the_draft_says_and_never_sure(first: float, second: float) -> None:
    tree = Tree(1, 5)
    tree.root.run = 1
    tree.add(tree.root, 3, second, side=True, origin="sibling")
    tree.add(tree.root, 2, first)
    chosen = select(
        tree.root, pace=Pace([LEVEL]), calibration=Calibration(), level=0.0, max_rows=1, last_row=90, eog=frozenset()
    )
    assert [node.token for node in chosen] == [2]


def test_a_drafted_token_takes_what_most_of_them_took() -> None:
    engine = Engine(Settings(n_ctx=64), [LEVEL])
    engine.handle(ev.Prompt((1, 2, 3), 20), 0.0)
    for pos, seconds in ((3, 0.002), (4, 0.004), (5, 0.0)):
        engine.handle(ev.Drafted(1, pos, 9, 0.9, seconds=seconds), 0.01)
    assert engine.worker.interval == pytest.approx(0.0022)


def test_second_choices_are_asked_for_more_when_first_ones_are() -> None:
    engine = Engine(Settings(split=0.3, recovery=0.1, branches=2), [LEVEL])
    assert engine.slots[0].speculation.forks(5, 0.35)
    engine.slots[0].speculation.cutoff.sent()
    assert not engine.slots[0].speculation.forks(5, 0.35) and engine.slots[0].speculation.forks(5, 0.45)


# ------------------------------------------------------------------------------ what is cancelled and let go


def test_a_stop_within_the_prompt_cancels_what_is_left_of_it() -> None:
    engine = Engine(Settings(chunk=4, n_ctx=100), [LEVEL] * 3)
    engine.handle(ev.Prompt(tuple(range(1, 60)), 5), 0.0)
    out = engine.handle(ev.Stop("cancelled"), 0.01)
    assert ev.Cancel((1, 2, 3, 4, 5)) in out
    assert [action.run.kind for action in out if isinstance(action, ev.Dispatch)] == ["end"]


def test_a_stop_keeps_the_tokens_that_were_taken() -> None:
    """Three tokens are out, the reader has taken two: the stages keep all before the second, which has no cell."""
    world = independent(60, 1.0)
    cluster = Watched(world, mode="off")
    cluster.feed(ev.Prompt(tuple(world.text[:8]), 40))
    while len(cluster.outcome.tokens) < 3:
        cluster.clock.step()
    cluster.feed(ev.Stop("cancelled", 2))
    while cluster.clock.step():
        pass
    assert cluster.engine.slots[0].cached == world.text[:9]
    assert all(list(stage.kv[0].values()) == world.text[:9] for stage in cluster.stages)


def test_the_draft_worker_stops_with_the_turn_and_begins_with_the_next() -> None:
    """Also where both turns let it draft equally far."""
    world = independent(60, 1.0)
    cluster = Watched(world)
    for _ in range(2):
        cluster.asked.clear()
        cluster.generate(world.text[:8], 10)
        rooms = [action.pos for action in cluster.all(ev.DraftRoom)]
        assert max(rooms) == 16 and rooms[-1] == -1


def test_what_is_final_is_let_go() -> None:
    """A long text must not hold all of its tokens' nodes."""
    tree = Tree(1, 0)
    child = tree.add(tree.root, 2, 0.9)
    tree.accept(child)
    assert tree.root is child and child.parent is None and child.parent_id == 0


def test_a_dead_run_is_computed_while_a_live_one_builds_on_it() -> None:
    """Run 3 lives and builds on 2, which is dead and builds on 1, which is dead: neither may be skipped. 4 may."""
    pipe = Pipe(Pace([LEVEL]))
    above: Node | None = None
    nodes = []
    for i in range(4):
        node = Node(i + 1, 7, i, 0, parent=above if i < 3 else None)
        run = pipe.send("decode", [Row(7, i, 0, node.id, 0, True)], (), 0.0)
        pipe.carry(run.id, [node])
        nodes.append(node)
        above = node
    pipe.lose([nodes[0], nodes[1], nodes[3]], 0)
    assert pipe.newly_dead(0.0) == [4]
    assert pipe.newly_dead(0.0) == []
    pipe.lose([nodes[2]], 0)
    assert pipe.newly_dead(0.0) == [1, 2, 3]


def test_states_are_not_kept_for_ever() -> None:
    """Twenty turns whose prompts begin at a state each: the newest two stay, and slots are used again."""
    kept = Checkpoints()
    for turn in range(1, 21):
        kept.begin(10 * turn)
        kept.send(10 * turn, 5, pin=True)
        kept.settle(10 * turn + 5)
    assert kept.positions == [180, 190, 200] and kept.n_states <= 4


def test_an_alarm_that_rang_too_early_is_set_again() -> None:
    """A draft waits for its time. The clock of whoever wakes the engine may be a little ahead."""
    engine = Engine(Settings(n_ctx=64, cutoff=0.0), [LEVEL] * 2)
    (wake,) = [a for a in engine.handle(ev.Prompt((1, 2, 3), 20), 0.0) if isinstance(a, ev.Wake)]
    again = [a for a in engine.handle(ev.Tick(), wake.at - 0.0005) if isinstance(a, ev.Wake)]
    assert again and again[0].at == pytest.approx(wake.at, abs=1e-3)


def test_a_story_is_that_of_one_run() -> None:
    pipe = Pipe(Pace([LEVEL]))
    pipe.send("decode", [Row(7, 3, 0, 1, 0, True)], (), 0.5)
    pipe.send("end", [], (), 0.6, slot=0)
    assert pipe.story(1) == "0.500000 run 1: decode of 1 rows from 3" and pipe.story(2).startswith("0.600000 run 2: ")


def test_any_result_ends_what_runs_asked_of_confidence() -> None:
    engine = Engine(Settings(cutoff=0.1, recovery=0.3, chunk=4), [LEVEL])
    engine.handle(ev.Prompt(tuple(range(1, 9)), 5), 0.0)
    engine.slots[0].speculation.cutoff.sent()
    assert engine.slots[0].speculation.cutoff.level == pytest.approx(0.4)
    engine.handle(ev.RunDone(1), 0.1)
    assert engine.slots[0].speculation.cutoff.level == pytest.approx(0.1)


def test_an_idle_stage_begins_when_a_run_is_there() -> None:
    pace = Pace([CostCurve.linear(0.01)], hop=0.002)
    pace.sent(1, 1, 5.0)
    assert pace.wait(1, 5.0) == pytest.approx(0.010)
    pace.sent(2, 1, 5.005)
    assert pace.wait(1, 5.005) == pytest.approx(0.015)


def test_what_a_slow_wire_still_has_to_send_is_waited_for() -> None:
    pace = Pace([CostCurve.linear(0.01)], hop=0.002)
    pace.row = 0.05
    pace.sent(1, 2, 4.0)
    pace.ready(0, 1, 5.0, 0.01)
    assert pace.wait(1, 5.0) == pytest.approx(0.1 - 0.002 - 0.01)
