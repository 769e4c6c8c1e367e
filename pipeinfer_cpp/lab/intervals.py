"""How sure a speed-up is: ratios of runs that stood side by side."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np


class Ratio(msgspec.Struct, frozen=True):
    """A speed-up with its 95% interval (equal to it where there is only one pair)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} x ({self.low:.2f} to {self.high:.2f})"


def speed_up(speeds: Sequence[Sequence[float]], base: Sequence[Sequence[float]], resamples: int = 2000) -> Ratio:
    """`speeds[i][j]`: tokens a second of prompt i in round j; `base` the same of the first arm.

    Each pair ran one after the other, so that drift of the machine hits both. The value is the ratio of
    the times for all tokens; the interval is a bootstrap over prompts, with their rounds (seeded: the same
    figures give the same interval).
    """
    times = np.array([[1 / v for v in row] for row in speeds])
    others = np.array([[1 / v for v in row] for row in base])
    value = float(others.sum() / times.sum())
    if times.size == 1:
        return Ratio(value, value, value)
    rng = np.random.default_rng(0)
    n, m = times.shape
    samples = []
    for _ in range(resamples):
        i = rng.integers(0, n, n)[:, None]
        j = rng.integers(0, m, (n, m))
        samples.append(others[i, j].sum() / times[i, j].sum())
    low, high = np.percentile(samples, [2.5, 97.5])
    return Ratio(value, float(low), float(high))
