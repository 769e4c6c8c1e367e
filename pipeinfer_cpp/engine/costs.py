"""What a run costs on a stage, by its number of rows: measured at start, corrected as runs come back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping


class CostCurve:
    """Seconds for a run of w rows: straight lines between the measured widths.

    The curve of a CPU is not smooth and may even fall; beyond the last width it goes on with the
    slope of the last piece (never below 0).
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        if not seconds or min(seconds) < 1:
            raise ValueError("a cost curve needs at least one width of 1 or more")
        self._points = dict(sorted(seconds.items()))
        self._index()

    @classmethod
    def linear(cls, first: float, further: float = 0.0) -> CostCurve:
        """`first` seconds for one row, `further` for each further one."""
        return cls({1: first, 2: first + further, 64: first + 63 * further})

    def __call__(self, width: int) -> float:
        exact = self._points.get(width)
        if exact is not None:
            return exact
        widths = self._widths
        if len(widths) == 1:
            return self._points[widths[0]]
        i = min(max(bisect_left(widths, width), 1), len(widths) - 1)
        a, b = widths[i - 1], widths[i]
        ca, cb = self._points[a], self._points[b]
        slope = (cb - ca) / (b - a)
        if width > b:
            slope = max(slope, 0.0)
        return max(ca + slope * (width - a), 0.0)

    def observe(self, width: int, seconds: float, weight: float = 0.1) -> bool:
        """A run of `width` rows took `seconds`; single slow ones (another program, a pause) are damped.
        False when that is what the curve says already."""
        known = self(width)
        corrected = known + weight * (min(seconds, 3.0 * known) - known)
        if self._points.get(width) == corrected:
            return False
        self._points[width] = corrected
        self._index()
        return True

    @property
    def points(self) -> dict[int, float]:
        return dict(self._points)

    def _index(self) -> None:
        self._points = dict(sorted(self._points.items()))
        self._widths = list(self._points)
