"""What a model costs by width of a run, and up to which width a run gives the bits of single rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.llama.checkpoints import Checkpoints
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.node_values import NodeValues

WIDEST = 8
"""Widest run that is tested."""
DEPTHS = (7, 250, 300, 530)
"""Cache depths that runs are compared at: before, around and behind the first step of the cache's padding (256: with
several threads single rows take another kernel from 512 padded cells on), and past 512."""
BEHIND = 2
"""Rows that are used behind the widest run."""

OFF = 1.3
"""By more than this factor samples and slice do not differ unless one of them was disturbed."""
_BRIEF = 0.2
"""Seconds within which the times are taken a second time."""

Tick = Callable[[int, int], None]


def depths_within(n_ctx: int, widest: int) -> tuple[int, ...]:
    """Those of DEPTHS that a context of so many cells can reach, without what the deepest one tells as well."""
    fitting = [d for d in DEPTHS if d + widest + BEHIND <= n_ctx]
    return tuple(d for d in fitting if d != 300 or 530 not in fitting) or DEPTHS[:1]


@dataclass(frozen=True)
class Found:
    """`seconds`: of a run by its rows, the shortest that was seen. `safe`: the widest run whose outputs and KV cells
    have the bits of single rows; every width up to it was compared."""

    safe: int
    seconds: dict[int, float]


def examine(
    ctx: SliceContext,
    widest: int = WIDEST,
    depths: Sequence[int] = DEPTHS,
    *,
    compare: bool = True,
    one_layer: bool = False,
    tick: Tick | None = None,
) -> Found:
    """Time runs of 1 to `widest` rows of random tokens (and hidden states) behind a random prefix of each depth.

    With `compare` they are held against single rows too, in every node of the graph, else `safe` is 1. A run of w
    rows is followed by rows behind it, so that its KV cells are seen as well. Depths that do not fit the context are
    left out. Of `one_layer` the prefix needs its KV cells only.
    """
    fitting = [d for d in sorted(depths) if d + widest + BEHIND <= ctx.n_ctx]
    bench = _Bench(ctx, widest, fitting, only_cells=one_layer and not ctx.checkpointed)
    for i, depth in enumerate(bench.depths):
        if compare or i == 0:
            bench.advance(depth)
            if i == 0:
                bench.time_widths()
            if compare:
                bench.compare()
        if tick:
            tick(i + 1, len(bench.depths))
    ctx.clear()
    return Found(bench.widest if compare else 1, plausible(bench.seconds))


def plausible(seconds: Mapping[int, float]) -> dict[int, float]:
    """A pause of the machine is no width's cost: a run takes no longer than a wider one, nor than its rows one by
    one."""
    widths, found = sorted(seconds), dict(seconds)
    for narrow, wide in reversed([*pairwise(widths)]):
        found[narrow] = min(found[narrow], found[wide])
    return {w: min(found[w], w * found[widths[0]] / widths[0]) for w in widths}


def slice_seconds(ctx: SliceContext, few: int = 4, n: int = 3) -> dict[int, float]:
    """Seconds of one row and of a `few` on this context, the shortest of `n` each. It brings the pages in, too."""
    bench = _Bench(ctx, few, [7], only_cells=False)
    for _ in range(n):  # in turn, so that a busy moment hits both
        for width in sorted({1, few}):
            bench.time_rows(width)
    return bench.seconds


def bent(curve: Mapping[int, float], seen: Mapping[int, float]) -> tuple[dict[int, float], bool]:
    """A stage's curve of samples that were looked at once, as its slice itself says it is: `seen` are its own times
    of one row and of a few. The first sets the level. Where the few are off by more than OFF, what a further row
    costs is set by them, and True says that the samples were looked at on a machine that was busy now and then."""
    row, few = seen[1], max(seen)
    level = {w: s * row / curve[1] for w, s in curve.items()}
    if few not in level or 1 / OFF <= seen[few] / level[few] <= OFF:
        return level, False
    said, further = level[few] - row, max(seen[few] - row, 0.0)
    if said <= 0.0:
        return {w: row + further * (w - 1) / (few - 1) for w in level}, True
    return {w: max(row + (s - row) * further / said, row) for w, s in level.items()}, True


class _Bench:
    """Rows at a position that the context can be brought back to."""

    def __init__(self, ctx: SliceContext, widest: int, depths: Sequence[int], only_cells: bool) -> None:
        self._ctx, self.depths, self._only_cells = ctx, depths, only_cells
        self.widest = widest
        """What is tested: it becomes less where a width differs."""
        assert depths, "no depth fits the context"
        rng = np.random.default_rng(2)
        n = max(depths) + max(widest + BEHIND, 8)
        self._tokens = rng.integers(0, ctx.n_vocab, n).astype(np.int32)
        self._hidden = None if ctx.first else rng.standard_normal((n, ctx.row_width)).astype(np.float32)
        self._checkpoints = Checkpoints(ctx) if ctx.checkpointed else None
        self._depth = 0
        self.seconds: dict[int, float] = {}
        ctx.clear()

    def advance(self, depth: int) -> None:
        """Cache the rows up to `depth`: it is what `back` leads to from now on."""
        self.back()
        for at in range(self._depth, depth, self._ctx.n_ubatch):
            self._decode(at, min(at + self._ctx.n_ubatch, depth), prefix=True)
        self._depth = depth
        if self._checkpoints:
            self._checkpoints.save(0)
        if not self.seconds:  # the first ones of a context take longer
            for width in (1, self.widest):
                self._decode(depth, depth + width)
                self.back()

    def back(self) -> None:
        if self._checkpoints is None:
            self._ctx.seq_rm(0, self._depth, -1)
        elif self._depth:
            self._checkpoints.restore(0, self._depth)
        else:
            self._ctx.clear()

    def time_widths(self) -> None:
        """Every width once or twice."""
        began = time.perf_counter()
        for again in range(2):
            # A second time where that is quick, or where the first times cannot all be right.
            if again and time.perf_counter() - began > _BRIEF and not self._odd():
                break
            for first, second in self._pairs():
                self._timed(0, first)
                self._timed(first, second)
                self.back()
            self._timed(0, 1)
            self.back()

    def _odd(self) -> bool:
        """Some width took much longer than a wider one, or than its rows one by one."""
        likely = plausible(self.seconds)
        return any(seconds > 1.5 * likely[width] for width, seconds in self.seconds.items())

    def time_rows(self, width: int) -> None:
        """From an empty context on, which it leaves empty."""
        self._timed(0, width)
        self._ctx.clear()

    def compare(self) -> None:
        """Lessen `widest` to where every width gives the bits of single rows at this depth."""
        singles = [self._run(i, 1) for i in range(self.widest + BEHIND)]
        self.back()
        for first, second in self._pairs():
            if self._same((first, second, 1), singles):
                continue
            guilty = [width for width in (first, second) if width > 1 and not self._same((width, 1), singles)]
            # Where neither differs from here on, one did from where it stood behind the other: trust neither.
            self.widest = max(1, min(self.widest, min(guilty or [first, second]) - 1))

    def _pairs(self) -> list[tuple[int, int]]:
        """Runs one behind the other; every width but 1 is in one of them."""
        n = self.widest + 1
        firsts = {n - width if width < self.widest else width for width in range((n + 1) // 2, n)}
        return [(first, n - first) for first in sorted(firsts) if first]

    def _same(self, widths: tuple[int, ...], singles: list[NodeValues]) -> bool:
        """Whether runs of these widths, one behind the other, give the bits of single rows."""
        at, same = 0, True
        for width in widths:
            same = same and not self._run(at, width).differs_from(singles[at : at + width])
            at += width
        self.back()
        return same

    def _run(self, at: int, width: int) -> NodeValues:
        """What a run of `width` rows from the one `at` behind the depth on gives in all nodes."""
        values = NodeValues()
        # What stands behind attention does not know the depth: it is looked at once.
        short = self._only_cells and self._depth > self.depths[0]
        self._ctx.watch(values)
        out = self._decode(self._depth + at, self._depth + at + width, prefix=short)
        self._ctx.watch(None)
        if not short:
            values.by_name["result"] = out
        return values

    def _timed(self, at: int, width: int) -> None:
        began = time.perf_counter()
        self._decode(self._depth + at, self._depth + at + width)
        seconds = time.perf_counter() - began
        self.seconds[width] = min(seconds, self.seconds.get(width, seconds))

    def _decode(self, a: int, b: int, prefix: bool = False) -> NDArray[np.float32]:
        # What is behind the last attention knows no depth: the first one showed it for every row.
        wanted = np.full(b - a, not prefix and self._depth <= self.depths[0], np.int8)
        wanted[-1] = not prefix
        out = self._ctx.decode(
            self._tokens[a:b],
            np.arange(a, b, dtype=np.int32),
            np.zeros(b - a, np.int32),
            wanted,
            None if self._hidden is None else self._hidden[a:b],
            only_cells=prefix and self._only_cells,
        )
        return np.array(out)

