"""What is said of a generation, measured, emulated or simulated alike."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np


class Measurement(msgspec.Struct, frozen=True):
    """One generation, or several pooled. Times in seconds; None: nothing to say.

    kind: `measured`, `emulated` or `simulated`. utilisation: by stage, the share of the decoding time it
    computed. link_bytes: a token, by link of the ring. memory_mb: by process.
    """

    kind: str
    mode: str
    tokens: int
    tokens_per_s: float
    ttft_s: float
    itl_mean_s: float
    itl_p50_s: float
    itl_p99_s: float
    acceptance: float | None
    accept_by_depth: list[float]
    sibling_hit: float | None
    runs_sent: int
    runs_cancelled: int
    runs_aborted: int
    rows_per_token: float
    in_flight: float
    utilisation: list[float] = []
    link_bytes: list[float] = []
    memory_mb: dict[str, float] = {}

    @property
    def tokens_per_s_per_gb(self) -> float | None:
        """Of all processes together."""
        gigabytes = sum(self.memory_mb.values()) / 1024
        return self.tokens_per_s / gigabytes if gigabytes else None


def pooled(parts: Sequence[Measurement]) -> Measurement:
    """Several generations of one arm as one: speeds by their total times, shares by tokens."""
    if len(parts) == 1:
        return parts[0]
    weights = np.array([p.tokens for p in parts], float)

    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=weights))

    def known(name: str) -> float | None:
        pairs = [(getattr(p, name), p.tokens) for p in parts if getattr(p, name) is not None]
        return sum(v * n for v, n in pairs) / sum(n for _, n in pairs) if pairs else None

    def columns(name: str) -> list[float]:
        lists = [getattr(p, name) for p in parts if getattr(p, name)]
        depth = max((len(v) for v in lists), default=0)
        return [float(np.mean([v[i] for v in lists if i < len(v)])) for i in range(depth)]

    return Measurement(
        kind=parts[0].kind,
        mode=parts[0].mode,
        tokens=sum(p.tokens for p in parts),
        tokens_per_s=sum(p.tokens - 1 for p in parts) / sum((p.tokens - 1) / p.tokens_per_s for p in parts),
        ttft_s=float(np.median([p.ttft_s for p in parts])),
        itl_mean_s=mean([p.itl_mean_s for p in parts]),
        itl_p50_s=mean([p.itl_p50_s for p in parts]),
        itl_p99_s=max(p.itl_p99_s for p in parts),
        acceptance=known("acceptance"),
        accept_by_depth=columns("accept_by_depth"),
        sibling_hit=known("sibling_hit"),
        runs_sent=sum(p.runs_sent for p in parts),
        runs_cancelled=sum(p.runs_cancelled for p in parts),
        runs_aborted=sum(p.runs_aborted for p in parts),
        rows_per_token=mean([p.rows_per_token for p in parts]),
        in_flight=mean([p.in_flight for p in parts]),
        utilisation=columns("utilisation"),
        link_bytes=columns("link_bytes"),
        memory_mb=parts[-1].memory_mb,
    )
