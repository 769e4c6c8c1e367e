"""What no engine can beat: the analytic limits of a cluster."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipeinfer_cpp.engine import CostCurve
from pipeinfer_cpp.net.transit import LinkSpeed


class Limits(msgspec.Struct, frozen=True):
    """Tokens a second. plain: one token at a time through all stages (`off`). pipeline: every token in a
    run, the slowest stage or link always busy with the best width. draft: all that the draft can say, and
    beside it what a plain pipeline writes. acceptance: every miss costs one way through the pipeline, at
    most 1 / (1 - a) tokens for each."""

    plain: float
    pipeline: float
    draft: float
    acceptance: float | None

    @property
    def bound(self) -> float:
        """The lowest of those that hold for speculation."""
        return min(x for x in (self.pipeline, self.draft, self.acceptance) if x is not None)


def limits(
    curves: Sequence[CostCurve],
    links: Sequence[LinkSpeed],
    row_bytes: int,
    draft_s: float,
    a: float | None,
    max_rows: int,
) -> Limits:
    """`a`: share of the tokens that a draft had right, its second choices included where there are branches for
    them (None: not known)."""
    latency = sum(curve(1) for curve in curves) + sum(
        link.seconds(row_bytes if 0 < i < len(links) - 1 else 56) for i, link in enumerate(links)
    )
    widths = range(1, max_rows + 1)
    stage = min(max(w / curve(w) for w in widths) for curve in curves)
    wires = [link.transmission(row_bytes) for link in links[1:-1] if link.mbit]
    wire = 1 / max(wires) if wires and max(wires) > 0 else float("inf")
    # Between two misses 1 / (1 - a) tokens become final, and the miss is known one latency after its run left.
    bound = None if a is None or a >= 1 else 1 / ((1 - a) * latency)
    return Limits(1 / latency, min(stage, wire), 1 / draft_s + 1 / latency, bound)
