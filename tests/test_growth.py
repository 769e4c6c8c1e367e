"""After 200 generations in one process nothing has grown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pipeline_helpers import DRAFT, TARGET, worker_pids

from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what /proc shows")


def resources(pids: list[int]) -> dict[str, int]:
    """Open files (sockets among them), threads and kilobytes of memory of each process."""
    found = {}
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        found[f"{pid} files"] = len(list((folder / "fd").iterdir()))
        found[f"{pid} threads"] = int(status["Threads"])
        found[f"{pid} kB"] = int(status["VmRSS"].split()[0])
    return found


def test_200_generations_leave_nothing_behind() -> None:
    with Pipeline.local(target=TARGET, draft=DRAFT, stages=2, ctx=256, branches=3) as p:
        pids = [os.getpid(), *worker_pids()]
        assert len(pids) == 4
        after: dict[int, dict[str, int]] = {}
        for i in range(1, 201):
            # New conversations, continued ones, cancelled ones, stopped ones, sampled ones, full contexts.
            prompt = f"Once there was a {('fox', 'king', 'girl')[i % 3]} number {i // 2} who"
            if i % 20 == 0:
                prompt = prompt * 14
            sampling = Sampling(temp=(0.0, 0.9)[i % 2], seed=i)
            generation = p.generate(prompt, max_tokens=200 if i % 20 == 0 else 10, sampling=sampling, stop=(" the",))
            for n, _ in enumerate(generation):
                if i % 7 == 0 and n == 3:
                    generation.cancel()
            generation.wait()
            engine = p.driver.engine
            assert not engine.pool.taken and not engine.pipe.in_flight and not engine.pipe.ops
            assert set(p.driver.held) == {"stage-0", "stage-1"}
            for main, *others in p.driver.held.values():
                assert main == len(engine.slots[0].cached) - 1 and set(others) == {-1}, f"generation {i}"
            if i in (60, 200):
                after[i] = resources(pids)
        for what, amount in after[200].items():
            if what.endswith("kB"):
                assert amount < after[60][what] * 1.03 + 2000, f"{what}: {after[60][what]} -> {amount}"
            else:
                assert amount <= after[60][what], f"{what}: {after[60][what]} -> {amount}"
        print({what: (after[60][what], amount) for what, amount in after[200].items()})
