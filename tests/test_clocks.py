"""Machines whose clocks differ by a day, in both directions: no time of one is compared with another's."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipeline_helpers import GREEDY, PROMPT, TARGET, hand_stages, local, text_of, until

from pipeinfer_cpp.net.messages import Stretch

SLOW = {"stretch": Stretch(0.02), "draft_stretch": Stretch(0.004)}


@pytest.mark.parametrize("offset", [-100_000, 100_000])
def test_runs_are_cancelled_whatever_a_stage_s_clock_says(offset: int, tmp_path: Path) -> None:
    with local(stages=2, **SLOW) as p:
        expected = text_of(p, n=40)
    with hand_stages(tmp_path, 2, PIPEINFER_CLOCK_OFFSET=str(offset)) as stages:
        with local(stages=[stage.address for stage in stages], trace=True, **SLOW) as p:
            assert all(abs(stage.offset - offset) < 5 for stage in p.driver._stages)
            result = p.generate(PROMPT, max_tokens=40, sampling=GREEDY).wait()
            assert result.text == expected
            assert result.runs.cancelled > 3 and result.runs.aborted > 0
            # A prompt of many chunks is dropped at once.
            began = time.monotonic()
            generation = p.generate(PROMPT * 40, max_tokens=40, sampling=GREEDY)
            time.sleep(0.1)
            generation.cancel()
            assert time.monotonic() - began < 3
        assert until(lambda: all("the coordinator has left" in stage.said for stage in stages), 3) < 3


def test_a_coordinator_that_vanished_is_noticed(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pipeinfer_cpp import Pipeline\nfrom pipeinfer_cpp.net.messages import Stretch\n"
        "p = Pipeline.local(target=sys.argv[1], stages=[sys.argv[2]], stretch=Stretch(0.02))\n"
        "for token in p.generate('Once', max_tokens=900): print('.', end='', flush=True)\n"
    )
    with hand_stages(tmp_path, 1, PIPEINFER_CLOCK_OFFSET="-100000") as (stage,):
        command = [sys.executable, "-c", code, str(TARGET), stage.address]
        coordinator = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert coordinator.stdout is not None and coordinator.stdout.read(3)
        coordinator.send_signal(signal.SIGKILL)
        coordinator.wait()
        assert until(lambda: "the coordinator is gone" in stage.said, 6) < 6
