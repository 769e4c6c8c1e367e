"""What no engine can beat: the analytic limits of a cluster."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipeinfer_cpp.engine import CostCurve
from pipeinfer_cpp.net.transit import LinkSpeed

HEADER_BYTES, DRAW_BYTES = 56, 24
"""Of a run of one row on the first link, and of a draw on the last one."""


class Limits(msgspec.Struct, frozen=True):
    """Tokens a second, from the first token of a text to its last. plain: one token at a time through all stages
    (`off`). pipeline: every token in a run, the slowest stage or link always busy with the best width. draft: all that
    the draft can say, and beside it what a plain pipeline writes. acceptance: every miss costs one way through the
    pipeline, at most 1 / (1 - a) tokens for each. None: there is no such limit. Pipeline and draft count what is
    drafted and computed while the prompt is: a short text may be written faster than a long one."""

    plain: float
    pipeline: float
    draft: float | None
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
    *,
    n_tokens: float,
    ahead: int,
) -> Limits:
    """`a`: share of the tokens that a draft had right, its second choices included where there are branches for
    them (None: not known). `n_tokens`: length of a text. `ahead`: how many tokens may be drafted before its first one
    is out (Settings.max_ahead). Jitter of links is not counted."""
    widths = range(1, max_rows + 1)
    sizes = [HEADER_BYTES, *[row_bytes] * (len(links) - 2), DRAW_BYTES]
    ways = sum(link.seconds(size) for link, size in zip(links, sizes, strict=True))
    latency = sum(min(curve(w) for w in widths) for curve in curves) + ways
    *before, last = [max(w / curve(w) for w in widths) for curve in curves]
    before += [1 / seconds for link in links[1:-1] if (seconds := link.transmission(row_bytes)) > 0]
    # The prompt's last run leaves the last stage before all others, so no token of the text has passed it by then. The
    # other stages and the wires may be through with all that was drafted meanwhile.
    rest = n_tokens - 1
    later = rest - min(ahead, rest)
    slowest = min((rate * rest / later for rate in before), default=last) if later else last
    # Between two misses 1 / (1 - a) tokens become final, and the miss is known one latency after its run left.
    bound = None if a is None or a >= 1 else 1 / ((1 - a) * latency)
    draft = (1 / draft_s + 1 / latency) * rest / (later - 1) if later > 1 else None  # one may be half drafted
    return Limits(1 / (sum(curve(1) for curve in curves) + ways), min(slowest, last), draft, bound)
