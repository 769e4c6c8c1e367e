"""A long-running chat says when, and where, it has become slower."""

from __future__ import annotations

import os
import signal
import time

from pipeline_helpers import GREEDY, PROMPT, local

from pipeinfer_cpp.cluster.slowdown import Slowdown
from pipeinfer_cpp.engine import CostCurve
from pipeinfer_cpp.engine.pacing import Pace


def pace(stages: list[float], hop: float = 0.001) -> Pace:
    return Pace([CostCurve.linear(s) for s in stages], hop)


def test_a_stage_that_became_slow_is_named_once() -> None:
    watch = Slowdown()
    assert [watch.look(pace([0.02, 0.02])) for _ in range(4)] == [None] * 4
    assert watch.look(pace([0.02, 0.03])) is None  # a fifth slower
    said = watch.look(pace([0.02, 0.05]))
    assert said is not None and "59% of its speed" in said and "stage 1 takes 50.0 ms for a row instead of 20.0" in said
    assert watch.look(pace([0.02, 0.06])) is None
    assert watch.look(pace([0.02, 0.02])) is None
    assert watch.look(pace([0.07, 0.02])) is not None  # it had recovered


def test_slow_links_are_named() -> None:
    watch = Slowdown()
    for _ in range(3):
        watch.look(pace([0.01, 0.01]))
    said = watch.look(pace([0.011, 0.01], hop=0.02))
    assert said is not None and "a link takes 20.0 ms instead of 1.0 ms" in said


def test_a_real_stage_that_is_held_up() -> None:
    """Its process gets a fraction of the time it had."""
    with local(stages=2, draft=None) as p:
        said: list[str] = []

        def turn(i: int) -> None:
            said.extend(p.generate(f"{PROMPT} {i}", max_tokens=24, sampling=GREEDY).wait().warnings)

        for i in range(4):
            turn(i)
        assert not said
        pid = p.processes[1].pid
        for i in range(6):
            generation = p.generate(f"{PROMPT} again {i}", max_tokens=24, sampling=GREEDY)
            for _ in generation:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.03)
                os.kill(pid, signal.SIGCONT)
            assert generation.result is not None
            said += generation.result.warnings
            if said:
                break
    assert said and "of its speed at the start" in said[0]
