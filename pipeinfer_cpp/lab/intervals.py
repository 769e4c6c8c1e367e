"""How sure a speed-up is: ratios of runs that stood side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t, 97.5%, for 1 to 15 degrees of freedom."""


def student(df: int) -> float:
    """The 97.5% quantile of Student's t; beyond the table by its series around the normal one."""
    if df <= len(_T):
        return _T[df - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


class Ratio(msgspec.Struct, frozen=True):
    """A speed-up with its 95% interval; without one where there is only one prompt."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.value:.2f} x" + ("" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})")


def speed_up(speeds: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> Ratio:
    """`speeds[i][j]`: tokens a second of prompt i in round j; `base` the same of the first arm.

    Each pair ran one after the other, so that drift of the machine hits both. The value is the ratio of
    the times for all tokens. The interval is for other prompts of the same kind: rounds of one prompt repeat
    what is special about it, so prompts are what is counted (Student's t for a ratio of sums, on a
    logarithmic scale).
    """
    times = np.array([[1 / v for v in row] for row in speeds]).sum(axis=1)
    others = np.array([[1 / v for v in row] for row in base]).sum(axis=1)
    n = len(times)
    value = float(others.sum() / times.sum())
    if n < 2:
        return Ratio(value, None, None)
    rest = others - value * times
    error = math.sqrt(n / (n - 1) * float((rest**2).sum())) / float(others.sum())
    width = math.exp(student(n - 1) * error)
    return Ratio(value, value / width, value * width)
