"""Is it slower than it was?"""

from __future__ import annotations

from collections.abc import Sequence

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.lab.sweep import Done

FALL = 2 / 3
"""Where there is no interval, as only one prompt was measured, so much is left of a speed-up that fell."""


def regressions(now: Sequence[Done], then: Sequence[Done]) -> list[str]:
    """A sentence for each arm whose speed-up fell out of both intervals. The first arm of each cell, which
    the others are compared with, is the yardstick: machines drift, ratios hardly do. With a single prompt
    there are no intervals, and only a fall by more than a third is told.

    Raises UserError when there is nothing to compare, or a receipt differs.
    """
    earlier = {done.key: done for done in then}
    if not any(done.key in earlier for done in now):
        raise UserError("The baseline has no result for this configuration: run it with the same options.")
    found = []
    for done in now:
        old = earlier.get(done.key)
        if old is None:
            continue
        if (why := done.comparison.receipt.comparable(old.comparison.receipt)) is not None:
            raise UserError(f"The baseline measured something else: {why}.")
        for name, ratio in done.comparison.ratios.items():
            before = old.comparison.ratios.get(name)
            if before is None:
                continue
            if before.low is None or ratio.high is None:
                fell = ratio.value < FALL * before.value
            else:
                fell = ratio.high < before.low
            if fell:
                found.append(f"{done.cell}: {name} was {before}, and is {ratio}.")
    return found
