"""Generations on a cluster in virtual time: the real engine, everything else arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from pipeinfer_cpp.engine import CostCurve, Settings
from pipeinfer_cpp.lab.measurement import Measurement, pooled
from pipeinfer_cpp.net.transit import LinkSpeed
from pipeinfer_cpp.sim.cluster import VirtualCluster
from pipeinfer_cpp.sim.worlds import Replay


class Task(NamedTuple):
    """Generate `n_tokens` behind the first `n_prompt` tokens of the world's text."""

    world: Replay
    n_prompt: int
    n_tokens: int


def guessed(tasks: Sequence[Task], seconds: bool) -> float:
    """The share of the generated tokens that the draft has right, with its second choices if `seconds`."""
    right = total = 0
    for world, n_prompt, n_tokens in tasks:
        for pos in range(n_prompt, n_prompt + n_tokens - 1):  # what follows the last one is not waited for
            guess = world.guesses.get(pos)
            choices = () if guess is None else (guess.token, guess.second) if seconds else (guess.token,)
            right += world.text[pos] in choices
            total += 1
    return right / max(total, 1)


@dataclass(frozen=True)
class Virtual:
    """Nodes by their cost curves, the ring of links, bytes of a row on it, the draft's seconds a token."""

    curves: Sequence[CostCurve]
    links: Sequence[LinkSpeed]
    row_bytes: int
    draft_s: float

    def race(
        self, tasks: Sequence[Task], base: Settings, lengths: Sequence[int] = range(1, 9)
    ) -> dict[str, Measurement]:
        """`off`, `sync` with the best of these draft lengths, and `async`."""

        def arm(**changes: Any) -> Measurement:
            return pooled([self.run(task, replace(base, **changes)) for task in tasks])

        sync = {f"sync, draft {k}": arm(mode="sync", draft_max=k) for k in lengths}
        best = max(sync, key=lambda name: sync[name].tokens_per_s)
        return {"off": arm(mode="off"), best: sync[best], "async": arm(mode="async")}

    def run(self, task: Task, settings: Settings) -> Measurement:
        """One turn."""
        cluster = VirtualCluster(
            task.world, self.curves, settings, draft_s=self.draft_s, links=self.links, row_bytes=self.row_bytes
        )
        outcome = cluster.generate(task.world.text[: task.n_prompt], task.n_tokens)
        stats, times = cluster.engine.slots[0].stats, outcome.times
        gaps = np.diff(times) if len(times) > 1 else np.full(1, np.nan)
        return Measurement(
            kind="simulated",
            mode=settings.mode,
            tokens=len(times),
            tokens_per_s=1 / float(gaps.mean()),
            ttft_s=times[0],
            itl_mean_s=float(gaps.mean()),
            itl_p50_s=float(np.percentile(gaps, 50)),
            itl_p99_s=float(np.percentile(gaps, 99)),
            acceptance=stats.acceptance,
            accept_by_depth=stats.accept_by_depth(),
            sibling_hit=stats.sibling_hit,
            runs_sent=stats.sent,
            runs_cancelled=stats.cancelled,
            runs_aborted=len(cluster.aborted),
            rows_per_token=stats.rows / len(times),
            in_flight=stats.in_flight_mean,
            utilisation=[stage.busy / outcome.seconds for stage in cluster.stages],
            link_bytes=[n / len(times) for n in cluster.bytes_sent],
        )
