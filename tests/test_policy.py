"""How much is speculated: the authors' cutoff, the governor, cost curves that were measured at a bad time."""

from __future__ import annotations

import random

import pytest

from pipeinfer_cpp.engine import CostCurve, Engine, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.governor import Governor
from pipeinfer_cpp.engine.pacing import Pace
from pipeinfer_cpp.engine.speculation import Cutoff
from pipeinfer_cpp.sim.cluster import VirtualCluster
from pipeinfer_cpp.sim.worlds import Replay, independent


class Original:
    """The loop of PipeInfer's speculative.cpp, as far as its threshold goes: `iter` begins at 0 with each call of
    run_speculation_loop, which a result or a refused draft ends; `n_rejected` with each token of the target."""

    def __init__(self, p_accept: float, p_recovery: float, p_decay: float) -> None:
        self.p_accept, self.p_recovery, self.p_decay = p_accept, p_recovery, p_decay
        self.iter = self.n_rejected = 0

    def drafts(self, p: float) -> bool:
        threshold = self.p_accept + self.iter * self.p_recovery - max(self.n_rejected * self.p_decay, 0.0)
        return threshold < 1.0 and not p < threshold


@pytest.mark.parametrize("seed", range(20))
def test_the_cutoff_is_the_authors(seed: int) -> None:
    rng = random.Random(seed)
    values = rng.choice((0.1, 0.5, 0.8)), rng.choice((0.0, 0.02, 0.3)), rng.choice((0.0, 0.01, 0.3))
    original, cutoff = Original(*values), Cutoff(*values)
    decisions = set()
    for _ in range(300):
        p = rng.random()
        decisions.add(leaves := original.drafts(p))
        assert (p >= cutoff.level) == leaves
        if leaves:
            original.iter += 1
            cutoff.sent()
        else:
            original.n_rejected += 1
            original.iter = 0
            cutoff.refused()
        happened = rng.choice(("nothing", "nothing", "a dead run is back", "a token"))
        if happened != "nothing":
            original.iter = 0
            cutoff.returned()
        if happened == "a token":
            original.n_rejected = 0
            cutoff.final()
    assert decisions == {True, False}


def test_above_one_nothing_leaves() -> None:
    cutoff = Cutoff(0.9, 0.1, 0.0)
    assert cutoff.level == pytest.approx(0.9)
    cutoff.sent()
    assert cutoff.level > 1.0


def rows_sent(prob: float, **settings: float) -> list[float]:
    """When speculative rows leave that are this likely, while no result comes back. Seconds."""
    engine = Engine(Settings(n_ctx=64, max_rows=1, max_ahead=40, **settings), [CostCurve.linear(0.01)] * 8)  # type: ignore[arg-type]
    now, path, left = 0.0, 0, []
    wakes: list[float] = []

    def feed(event: ev.Event) -> None:
        nonlocal path
        for action in engine.handle(event, now):
            if isinstance(action, ev.DraftReset):
                path = action.path
            elif isinstance(action, ev.Dispatch) and action.run.kind == "decode":
                left.append(now)
                passing.append(action.run.id)
            elif isinstance(action, ev.Dispatch):
                passing.append(action.run.id)
            elif isinstance(action, ev.Wake):
                wakes.append(action.at)

    passing: list[int] = []
    feed(ev.Prompt((1, 2, 3), 40))
    for pos in range(3, 20):
        now += 0.001
        feed(ev.Drafted(path, pos, 9, prob, -1, 0.0, 0.002))
    for _ in range(300):
        now += 0.001
        if passing:  # the stages take runs at once: pacing never holds one back
            run = passing.pop(0)
            for stage in range(8):
                feed(ev.StageReady(stage, run, 0.001))
        if wakes and min(wakes) <= now:
            wakes.remove(min(wakes))
            feed(ev.Tick())
    return left


def test_each_run_that_left_asks_for_more_confidence() -> None:
    """0.1, 0.3, 0.5: the third run asks for more than 0.4. Frozen, all would leave; reversed, too."""
    assert len(rows_sent(0.4, cutoff=0.1, recovery=0.2, decay=0.0)) == 2
    assert len(rows_sent(0.4, cutoff=0.1, recovery=0.0, decay=0.0)) > 10


def test_drafts_that_waited_long_leave_with_less_confidence() -> None:
    """From 0.5 down by 0.02 with each look, every 2 ms: 0.4 is enough at the fifth."""
    assert not rows_sent(0.4, cutoff=0.5, recovery=0.0, decay=0.0)
    times = rows_sent(0.4, cutoff=0.5, recovery=0.0, decay=0.02)
    assert len(times) > 10 and times[0] < 0.1
    later = rows_sent(0.4, cutoff=0.5, recovery=0.0, decay=0.002)
    assert later and later[0] > times[0] + 0.05


def turns(governor: Governor, speculative: float, plain: float, n: int, length: int) -> list[bool]:
    """n turns of `length` tokens; a minute lies between two. Whether each token was speculated for."""
    now, said = 0.0, []
    for _ in range(n):
        now += 60
        governor.begin()
        for _ in range(length):
            now += speculative if governor.speculate else plain
            said.append(governor.speculate)
            governor.token(now)
    return said


@pytest.mark.parametrize("length", [5, 12, 200])
def test_answers_of_any_length_are_governed(length: int) -> None:
    said = turns(Governor(lambda: 0.01), 0.02, 0.01, 400 // length, length)
    assert sum(said) < 0.3 * len(said)
    said = turns(Governor(lambda: 0.01), 0.005, 0.01, 400 // length, length)
    assert all(said)


def test_a_probe_goes_on_in_the_next_turn() -> None:
    """The plain speed is said to be better than it is: one probe of ten tokens, in turns of four, finds that out."""
    said = turns(Governor(lambda: 0.001), 0.01, 0.02, 60, 4)
    assert 10 <= said.count(False) <= 14 and all(said[80:])


def test_what_was_under_way_when_a_probe_began_is_no_probe() -> None:
    """Runs that had left already make the first tokens quick; they say nothing of a plain pipeline."""
    governor = Governor(lambda: 0.001)
    now = 0.0
    for _ in range(26):
        now += 0.01
        governor.token(now)
    assert not governor.speculate
    for _ in range(30):
        governor.token(now, ahead=True)
    assert not governor.speculate
    for _ in range(10):
        now += 0.02
        governor.token(now)
    assert governor.speculate


def test_a_probe_that_is_a_little_slower_or_faster_decides() -> None:
    """Speculating takes 10 ms a token, and plain is said to take 10.5: too close to believe. It takes 15, or 9.5."""
    for plain, pays in ((0.015, True), (0.0095, False)):
        governor = Governor(lambda: 0.0105)
        said = turns(governor, 0.01, plain, 1, 24 + 1 + 10 + 1)
        assert said.count(False) == (10 if pays else 11) and governor.speculate == pays
    assert all(turns(Governor(lambda: 0.012), 0.01, 0.001, 1, 400))  # clear enough: nobody probes


def test_each_pause_that_was_right_is_twice_as_long_as_the_last() -> None:
    said = turns(Governor(lambda: 0.01), 0.02, 0.01, 1, 40_000)
    pauses = "".join("s" if s else " " for s in said).split("s")
    lengths = [len(pause) - 10 for pause in pauses if pause]  # without the probe's own tokens
    assert lengths[:-1] == [64, 128, 256, 512, 1024, 2048] + [4096] * 8


def plain_of(cluster: VirtualCluster) -> float:
    return cluster.engine.pipe.pace.plain


def test_plain_knows_what_links_take() -> None:
    """Links of 30 ms that nobody told the engine about."""
    world = independent(300, 0.7)
    cluster = VirtualCluster(world, [CostCurve.linear(0.02)] * 3, Settings(n_ctx=320), hop=0.03)
    cluster.engine.pipe.pace.hop = 0.0002
    cluster.generate(world.text[:8], 100)
    assert plain_of(cluster) == pytest.approx(3 * 0.02 + 4 * 0.03, rel=0.05)


def test_plain_is_measured_again_when_it_was_measured_on_a_busy_machine() -> None:
    """The engine was told three times what stages take, and speculation does not pay: it must still find out."""
    world = independent(700, 0.05)
    curves = [CostCurve.linear(0.02, 0.02)] * 3
    cluster = VirtualCluster(world, curves, Settings(n_ctx=720), draft_s=0.05)
    cluster.engine.pipe.pace.curves = [CostCurve.linear(0.06, 0.06) for _ in curves]
    cluster.generate(world.text[:8], 60)
    assert plain_of(cluster) == pytest.approx(0.06, rel=0.1)


def test_a_curve_from_a_busy_machine_is_not_kept_for_ever() -> None:
    """It said 3 times what is true. Only single rows come back: the other widths go along, in proportion."""
    curve = CostCurve({1: 0.06, 2: 0.063, 4: 0.09, 8: 0.12})
    for _ in range(60):
        curve.observe(1, 0.02)
    assert curve(1) == pytest.approx(0.02, rel=0.05)
    assert curve(4) == pytest.approx(0.03, rel=0.05) and curve(8) == pytest.approx(0.04, rel=0.05)
    for _ in range(60):
        curve.observe(4, 0.025)
        curve.observe(1, 0.02)
    assert curve(4) == pytest.approx(0.025, rel=0.05) and curve(1) == pytest.approx(0.02, rel=0.05)


def test_what_was_learnt_outlives_a_change_of_settings() -> None:
    old = Engine(Settings(), [CostCurve.linear(0.06)] * 2)
    for _ in range(60):
        old.pipe.pace.observe(0, 1, 0.02)
    old.pipe.pace.hop = 0.01
    new = Engine(Settings(mode="off"), [CostCurve.linear(0.06)] * 2)
    new.succeed(old)
    assert new.pipe.pace.curves[0](1) == pytest.approx(0.02, rel=0.05) and new.pipe.pace.hop == 0.01


def test_a_slow_wire_is_learnt() -> None:
    """Two runs that queued for a wire: 10 ms apart for two rows each."""
    pace = Pace([CostCurve.linear(0.001)] * 2)
    now = 0.0
    for run in range(1, 60):
        pace.sent(run, 2, now)
    for run in range(1, 60):
        pace.ready(0, run, 0.001 * run, 0.001)
    for run in range(1, 60):
        now = 0.1 + 0.01 * run
        pace.ready(1, run, now + 0.001, 0.001)
    assert pace.row == pytest.approx(0.005, rel=0.05)
    assert pace.bottleneck(2) == pytest.approx(0.01, rel=0.05)


def test_the_draft_runs_ahead_as_far_as_the_pipeline_is_long() -> None:
    """Half as many tokens again as it can draft while a run is under way, within max_ahead."""
    rooms = {}
    for n_stages, interval in ((2, 0.002), (8, 0.002), (8, 0.02), (8, 0.0005)):
        engine = Engine(Settings(n_ctx=500), [CostCurve.linear(0.01)] * n_stages)
        out = engine.handle(ev.Prompt((1, 2, 3), 400), 0.0)
        path = next(a.path for a in out if isinstance(a, ev.DraftReset))
        out = [*out, *engine.handle(ev.Drafted(path, 3, 9, 0.9, -1, 0.0, interval), 0.001)]
        rooms[n_stages, interval] = [a.pos for a in out if isinstance(a, ev.DraftRoom)][-1] - 2
    assert rooms == {(2, 0.002): 15, (8, 0.002): 60, (8, 0.02): 8, (8, 0.0005): 64}


def test_a_governor_can_be_told_to_let_go() -> None:
    """For ablations: what a technique is worth, not what is left when the governor has mended its absence."""
    world: Replay = independent(420, 0.1)
    curves = [CostCurve.linear(0.02, 0.02)] * 2

    def proposed(governor: bool) -> int:
        cluster = VirtualCluster(world, curves, Settings(n_ctx=440, ablate=frozenset({"cancel"}), governor=governor))
        cluster.generate(world.text[:8], 400)
        return cluster.engine.slots[0].stats.proposed

    assert proposed(True) < 0.7 * proposed(False)


def test_links_take_what_the_quickest_run_took() -> None:
    """Others waited for something."""
    pace = Pace([CostCurve.linear(0.01)] * 2)
    for seconds in (0.09, 0.05, 0.11):
        pace.travelled(1, seconds)
    assert pace.hop == pytest.approx(0.01) and pace.latency(1) == pytest.approx(0.05)


def test_a_run_is_awaited_at_the_next_stage_once_it_has_passed_one() -> None:
    pace = Pace([CostCurve.linear(0.01), CostCurve.linear(0.02)], hop=0.005)
    pace.sent(1, 1, 0.0)
    pace.ready(0, 1, 0.5)
    assert pace.wait(1, 0.5) == pytest.approx(0.5 + 0.005 + 0.02 - (0.5 + 0.005 + 0.01 + 0.005))


def test_only_async_forks_and_only_for_a_likely_second_choice() -> None:
    def forks(mode: str, second: int, prob: float) -> bool:
        asked = Settings(mode=mode, branches=2, split=0.3, eog=frozenset({7}))
        return Engine(asked, [CostCurve.linear(0.01)]).slots[0].speculation.forks(second, prob)

    assert forks("async", 5, 0.4)
    assert not forks("sync", 5, 0.4) and not forks("async", 5, 0.2)
    assert not forks("async", 7, 0.4) and not forks("async", -1, 0.4)


def test_beyond_the_last_width_a_curve_goes_on_and_never_falls() -> None:
    assert CostCurve({1: 0.01, 4: 0.04})(8) == pytest.approx(0.08)
    assert CostCurve({1: 0.04, 4: 0.03})(8) == pytest.approx(0.03)
    assert CostCurve({4: 0.03})(9) == 0.03 and CostCurve({1: 0.01, 3: 0.03})(2) == pytest.approx(0.02)
    assert CostCurve({1: 0.001, 3: 0.003})(2) == pytest.approx(0.002)
    with pytest.raises(ValueError, match="width of 1"):
        CostCurve({0: 0.01, 2: 0.02})
