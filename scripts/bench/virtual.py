"""The same recorded texts in virtual time. Simulated, no measurement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.timing import Timed, pooled

from pipeinfer_cpp.engine import CostCurve, Settings
from pipeinfer_cpp.lab.recording import Recording
from pipeinfer_cpp.sim.cluster import VirtualCluster
from pipeinfer_cpp.sim.worlds import independent


def virtual(records: list[Recording], curves: list[CostCurve], draft_s: float, settings: Settings) -> float:
    """Tokens a second of the virtual-time driver replaying the recorded texts."""
    parts = []
    for r in records:
        outcome = VirtualCluster(r.world(), curves, settings, draft_s=draft_s).generate(r.prompt, len(r.text))
        assert outcome.tokens == r.text
        parts.append(Timed(outcome.tokens, outcome.times))
    return pooled(parts)


def study_speeds(
    a: float, curves: list[CostCurve], draft_s: float, settings: Settings, lengths: list[int]
) -> dict[str, float]:
    """Independent acceptances of the same rate, in virtual time: what bursts cost is the difference."""
    n = 1500
    world = independent(n + 20, a)

    def speed(**changes: Any) -> float:
        wide = replace(settings, n_ctx=n + 50, eog=frozenset(), **changes)
        return VirtualCluster(world, curves, wide, draft_s=draft_s).generate(world.text[:8], n).tokens_per_s

    fast, off = speed(mode="async"), speed(mode="off")
    return {
        "independent_async_over_off": fast / off,
        "independent_async_over_sync": fast / max(speed(mode="sync", draft_max=k) for k in lengths),
    }
