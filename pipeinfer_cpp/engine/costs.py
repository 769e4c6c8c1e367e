"""What a run costs on a stage, by its number of rows: measured at start, corrected as runs come back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping


class CostCurve:
    """Seconds for a run of w rows: straight lines between the measured widths.

    The curve of a CPU is not smooth and may even fall; beyond the last width it goes on with the
    slope of the last piece (never below 0). What comes back of some widths moves those that no run had yet
    by the same factor: a curve that was measured on a busy machine is not believed for ever.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        if not seconds or min(seconds) < 1:
            raise ValueError("a cost curve needs at least one width of 1 or more")
        self._lines = self._began = _Lines(dict(sorted(seconds.items())))
        self._seen: set[int] = set()
        self._scale = 1.0
        """By how much what came back differs from what was measured at start."""

    @classmethod
    def linear(cls, first: float, further: float = 0.0) -> CostCurve:
        """`first` seconds for one row, `further` for each further one."""
        return cls({1: first, 2: first + further, 64: first + 63 * further})

    def __call__(self, width: int) -> float:
        return self._lines(width)

    def observe(self, width: int, seconds: float, weight: float = 0.1) -> bool:
        """A run of `width` rows took `seconds`; single slow ones (another program, a pause) are damped.
        False when that is what the curve says already."""
        known = self(width)
        seconds = min(seconds, 3.0 * known)
        corrected = known + weight * (seconds - known)
        if self._lines.points.get(width) == corrected:
            return False
        points, began = self.points, self._began(width)
        self._seen.add(width)
        if began > 0:
            self._scale += weight * (seconds / began - self._scale)
            points.update({w: s * self._scale for w, s in self._began.points.items() if w not in self._seen})
        points[width] = corrected
        self._lines = _Lines(dict(sorted(points.items())))
        return True

    @property
    def points(self) -> dict[int, float]:
        return dict(self._lines.points)


class _Lines:
    """Straight lines between points that are in order."""

    def __init__(self, points: dict[int, float]) -> None:
        self.points, self._widths = points, list(points)

    def __call__(self, width: int) -> float:
        exact = self.points.get(width)
        if exact is not None:
            return exact
        widths = self._widths
        if len(widths) == 1:
            return self.points[widths[0]]
        i = min(max(bisect_left(widths, width), 1), len(widths) - 1)
        a, b = widths[i - 1], widths[i]
        ca, cb = self.points[a], self.points[b]
        slope = (cb - ca) / (b - a)
        if width > b:
            slope = max(slope, 0.0)
        return max(ca + slope * (width - a), 0.0)
