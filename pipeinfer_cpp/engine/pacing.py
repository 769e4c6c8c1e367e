"""Pacing: what a run costs on a stage, when one that leaves now would meet the slowest stage, and whether it would have
to wait there.

Useless runs queue ahead of useful ones. So a speculative run leaves when it would reach the slowest
stage about when that becomes free; until then drafts gather into a wider one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence


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
            return cb + max(slope, 0.0) * (width - b)
        return max(ca + slope * (width - a), 0.0)


class Pace:
    """Predicts each stage's queue from what was sent, what came back, and the cost curves. Seconds."""

    def __init__(self, curves: Sequence[CostCurve], hop: float = 0.0) -> None:
        self.curves = list(curves)
        self.hop = hop
        """A link's time for a run of one row."""
        self.row = 0.0
        """What a row takes on the slowest wire, once runs have queued there: it is a stage of its own then."""
        self._rows = [0.0] * len(self.curves)
        """By stage: the same of the wire to it."""
        self._queues: list[dict[int, int]] = [{} for _ in curves]
        """By stage: run id -> rows (0: dead), in order."""
        self._since = [0.0] * len(self.curves)
        """By stage: when it ended its last run, or when the first of its queue could start."""
        self._travels: deque[float] = deque(maxlen=16)
        self._through: deque[float] = deque(maxlen=16)
        """What the last runs that had nothing to wait for took, from the first link to the last."""
        self._left: list[dict[int, float]] = [{} for _ in curves]
        """By stage: when it passed its last runs on."""
        self._wire = [0.0] * len(self.curves)
        """By stage: when its wire has sent all that it was given."""
        self._arrived = [0.0] * len(self.curves)
        """By stage: when the last run came that it had waited for."""
        self._known: dict[int, tuple[int, float, float]] = {}
        """By width, until a curve changes: the slowest stage, its time, the time through all."""

    def sent(self, run: int, width: int, now: float) -> None:
        if not self._queues[0]:
            self._since[0] = now + self.hop
        for queue in self._queues:
            queue[run] = width

    def ready(self, stage: int, run: int, now: float, seconds: float | None = None) -> None:
        """The stage has passed the run on; it took `seconds`, None for a dead run."""
        rows = self._queues[stage].get(run, 0)
        if seconds is not None and stage and rows:
            self._watch_wire(stage, run, rows, now - seconds)
        self._wire[stage] = max(self._wire[stage], now) + self.row * rows
        self._left[stage][run] = now
        if len(self._left[stage]) > 64:
            del self._left[stage][next(iter(self._left[stage]))]
        self._queues[stage].pop(run, None)
        self._since[stage] = now
        following = stage + 1
        if following < len(self._queues) and next(iter(self._queues[following]), None) == run:
            self._since[following] = max(self._since[following], now + self.hop)

    def _watch_wire(self, stage: int, run: int, rows: int, began: float) -> None:
        """Two runs that queued for the wire to this stage arrive as far apart as the second one's bytes take. That is
        no more than its whole way, whatever the word of the first one's arrival waited for on a busy machine."""
        waited = began > self._since[stage] + 0.2 * self.curves[stage](1)
        before, self._arrived[stage] = self._arrived[stage], began if waited else 0.0
        left = self._left[stage - 1].get(run)
        if left is None:
            return
        seen, weight = max(began - left, 0.0) / rows, 0.5
        if waited and before and left < before:
            seen, weight = min((began - before) / rows, seen), 0.2
        elif seen >= self._rows[stage]:
            return
        self._rows[stage] += weight * (seen - self._rows[stage])
        self.row = max(self._rows)
        self._known.clear()

    def dead(self, run: int) -> None:
        for queue in self._queues:
            if run in queue:
                queue[run] = 0

    def gone(self, run: int) -> None:
        """The run's header is back: whatever was not reported is over."""
        for queue in self._queues:
            queue.pop(run, None)

    def queue(self, stage: int) -> Sequence[int]:
        """Runs that the stage has not passed on yet, in order."""
        return [*self._queues[stage]]

    def clear(self) -> None:
        for queue in self._queues:
            queue.clear()

    def observe(self, stage: int, width: int, seconds: float) -> None:
        """A run of `width` rows took `seconds` there."""
        if self.curves[stage].observe(width, seconds):
            self._known.clear()

    def travelled(self, width: int, seconds: float) -> None:
        """A run that had nothing to wait for was under way so long: what no stage took, the links did."""
        link = (seconds - sum(curve(width) for curve in self.curves)) / (len(self.curves) + 1)
        self._travels.append(max(link - self.row * (width - 1), 0.0))
        self._through.append(seconds)
        self.hop = min(self._travels)
        self._known.clear()

    @property
    def plain(self) -> float:
        """A token's time without speculation. A run that was quicker than stages and links are said to be shows
        that they were measured on a busy machine: one of a single row takes no longer."""
        return min([self.latency(1), *self._through])

    def succeed(self, other: Pace) -> None:
        """The same stages and links: go on with what is known of them. No run is in flight."""
        if len(other.curves) != len(self.curves):
            return
        self.curves, self.hop, self.row = other.curves, other.hop, other.row
        self._rows, self._travels, self._through = other._rows, other._travels, other._through
        self._known.clear()

    def slowest(self, width: int = 1) -> int:
        """The first stage within 3% of the slowest."""
        return self._of(width)[0]

    def bottleneck(self, width: int) -> float:
        """A run's time on the slowest stage."""
        return self._of(width)[1]

    def latency(self, width: int) -> float:
        """One run alone, through all stages and back."""
        return self._of(width)[2]

    def _cost(self, stage: int, width: int) -> float:
        """A stage and its wire work at the same time: the slower of the two sets the pace."""
        return max(self.curves[stage](width), self.row * width)

    def _of(self, width: int) -> tuple[int, float, float]:
        known = self._known.get(width)
        if known is None:
            costs = [self._cost(stage, width) for stage in range(len(self.curves))]
            bottleneck = max(costs)
            slowest = next(i for i, cost in enumerate(costs) if cost >= 0.97 * bottleneck)
            link = self.hop + self.row * (width - 1)
            through = sum(curve(width) + link for curve in self.curves) + link
            known = self._known[width] = slowest, bottleneck, through
        return known

    def early(self, now: float, width: int = 1) -> float:
        """Seconds until a run of `width` rows should leave (negative: it is late): a little before the slowest stage
        is free, so that it waits there and not the stage."""
        return self.wait(width, now) - max(0.001, 0.04 * self.bottleneck(width))

    def wait(self, width: int, now: float) -> float:
        """Seconds that a run leaving now would wait before the slowest stage (negative: it is late)."""
        slowest = self.slowest(width)
        done: dict[int, float] = {}
        arrival = now + self.hop
        free = 0.0
        for stage in range(slowest + 1):
            free, ends = self._since[stage], {}
            for run, rows in self._queues[stage].items():
                cost = self.curves[stage](rows) if rows else 0.0
                free = max(max(free, done.get(run, 0.0)) + cost, now)
                ends[run] = free + self.hop
            done = ends
            if stage < slowest:
                arrival = max(arrival, free) + self.curves[stage](width) + self.hop
        # A run that the stage has done but its wire cannot take queues there, where nothing can cancel it.
        wire = self._wire[slowest] + self.row * sum(self._queues[slowest].values())
        return max(free - arrival, wire - max(arrival, free) - self.curves[slowest](width))
