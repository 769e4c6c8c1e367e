"""A generation on a cluster in virtual time: the real engine, everything else arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeinfer_cpp.engine import CostCurve, Settings
from pipeinfer_cpp.lab.measurement import Measurement
from pipeinfer_cpp.net.transit import LinkSpeed
from pipeinfer_cpp.sim.cluster import Cluster
from pipeinfer_cpp.sim.worlds import Replay


def simulate(
    world: Replay,
    n_prompt: int,
    n_tokens: int,
    settings: Settings,
    curves: Sequence[CostCurve],
    links: Sequence[LinkSpeed],
    row_bytes: int,
    draft_s: float,
) -> Measurement:
    """One turn of `n_tokens` behind the first `n_prompt` tokens of the world's text."""
    cluster = Cluster(world, curves, settings, draft_s=draft_s, links=links, row_bytes=row_bytes)
    outcome = cluster.generate(world.text[:n_prompt], n_tokens)
    stats, times = cluster.engine.stats, outcome.times
    decode = times[-1] - times[0]
    gaps = np.diff(times) if len(times) > 1 else np.zeros(1)
    return Measurement(
        kind="simulated",
        mode=settings.mode,
        tokens=len(outcome.tokens),
        tokens_per_s=(len(times) - 1) / decode if decode else float("nan"),
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
        rows_per_token=stats.rows / len(outcome.tokens),
        in_flight=stats.in_flight_mean,
        utilisation=[stage.busy / outcome.seconds for stage in cluster.stages],
        link_bytes=[n / len(outcome.tokens) for n in cluster.bytes_sent],
    )
