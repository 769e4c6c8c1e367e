"""What a model costs by width of a run, and up to which width a run gives the bits of single rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.llama.checkpoints import Checkpoints
from pipeinfer_cpp.llama.context import SliceContext

WIDEST = 8
"""Widest run that is tested."""
DEPTHS = (7, 250, 530)
"""Cache depths that runs are compared at: around the padding of the cache, and past 512."""
_BRIEF = 0.2
"""Seconds of a first look that is worth a second one for better times."""

Tick = Callable[[int, int], None]


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
    tick: Tick | None = None,
) -> Found:
    """Time runs of 1 to `widest` rows of random tokens (and hidden states) behind a random prefix of each depth.

    With `compare` they are held against single rows too, else `safe` is 1. A run of w rows is followed by one of
    the rows behind it, so that its KV cells are seen as well. Depths that do not fit the context are left out.
    """
    bench = _Bench(ctx, widest, [d for d in sorted(depths) if d + widest + 1 <= ctx.n_ctx])
    for i, depth in enumerate(bench.depths):
        if compare or i == 0:
            bench.advance(depth)
            began = time.perf_counter()
            singles = bench.singles()
            doubtful = bench.widths(singles)
            if doubtful and compare:
                bench.widest = bench.search(singles, doubtful)
            elif i == 0 and time.perf_counter() - began < _BRIEF:
                bench.widths(singles)  # once more for the times
        if tick:
            tick(i + 1, len(bench.depths))
    ctx.clear()
    # A pause of the machine is not the width's cost: a run never takes longer than its rows one by one.
    seconds = {w: min(s, w * bench.seconds[1]) for w, s in sorted(bench.seconds.items())}
    return Found(bench.widest if compare else 1, seconds)


class _Bench:
    """Rows at a position that the context can be brought back to."""

    def __init__(self, ctx: SliceContext, widest: int, depths: Sequence[int]) -> None:
        self._ctx, self.depths = ctx, depths
        self.widest = widest
        """What is tested: it becomes less where a width differs."""
        assert depths, "no depth fits the context"
        rng = np.random.default_rng(2)
        n = max(depths) + widest + 1
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
            self._decode(at, min(at + self._ctx.n_ubatch, depth), wanted=False)
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

    def singles(self) -> NDArray[np.float32]:
        """What the rows behind the depth give one at a time: one more than the widest run has."""
        out = [self._timed(i, 1)[0] for i in range(self.widest + 1)]
        self.back()
        return np.array(out)

    def widths(self, singles: NDArray[np.float32]) -> set[int]:
        """Every width once, two runs in a row that cover all rows. The widths of those that do not give the
        bits of single rows: one of the two at least."""
        doubtful = set()
        for width in {max(w, self.widest + 1 - w) for w in range(1, self.widest + 1)}:
            first = self.widest + 1 - width if width < self.widest else width
            second = self.widest + 1 - first
            parts = [self._timed(0, first), self._timed(first, second)]
            self.back()
            if not _same(np.concatenate(parts), singles[: self.widest + 1]):
                doubtful |= {first, second} - {1}
        return doubtful

    def search(self, singles: NDArray[np.float32], doubtful: set[int]) -> int:
        """The last width before the first one that differs."""
        for width in sorted(doubtful):
            run, behind = self._timed(0, width), self._timed(width, 1)
            self.back()
            if not _same(np.concatenate([run, behind]), singles[: width + 1]):
                return width - 1
        return self.widest

    def _timed(self, at: int, width: int) -> NDArray[np.float32]:
        """A run of `width` rows from the one `at` behind the depth on."""
        began = time.perf_counter()
        out = self._decode(self._depth + at, self._depth + at + width)
        seconds = time.perf_counter() - began
        self.seconds[width] = min(seconds, self.seconds.get(width, seconds))
        return out

    def _decode(self, a: int, b: int, wanted: bool = True) -> NDArray[np.float32]:
        out = self._ctx.decode(
            self._tokens[a:b],
            np.arange(a, b, dtype=np.int32),
            np.zeros(b - a, np.int32),
            np.full(b - a, wanted, np.int8),
            None if self._hidden is None else self._hidden[a:b],
        )
        return np.array(out)


def _same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Bit for bit."""
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))
