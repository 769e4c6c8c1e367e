"""What a slice costs by width, and up to which width a run gives the bits of single rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.llama.context import SliceContext

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
DEPTHS = (7, 250, 530)
"""Cache depths that the exactness test starts at: around the padding of the cache, and past 512."""

Tick = Callable[[int, int], None]


def measure_curve(ctx: SliceContext, repeats: int = 3, tick: Tick | None = None) -> dict[int, float]:
    """Seconds for a run of w rows on this slice, the median of `repeats`, at a cache depth of 64."""
    rows = _rows(ctx, 64 + max(WIDTHS), seed=1)
    ctx.clear()
    _decode(ctx, rows, 0, 64)
    widths = [w for w in WIDTHS if w <= ctx.n_ubatch]
    curve = {}
    for i, width in enumerate(widths):
        times = []
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            _decode(ctx, rows, 64, 64 + width)
            times.append(time.perf_counter() - begin)
            ctx.seq_rm(0, 64, -1)
        curve[width] = float(np.median(times[1:]))
        if tick:
            tick(i + 1, len(widths))
    ctx.clear()
    return curve


def safe_width(ctx: SliceContext, widest: int, depths: Sequence[int] = DEPTHS, tick: Tick | None = None) -> int:
    """The widest run, up to `widest` rows, whose outputs and KV cells have the bits of single rows.

    Random hidden states (or tokens) behind a random prefix, at several depths. Every width up to the
    answer was compared; a row behind each run shows that its KV cells are the same too.
    """
    best = widest
    depths = [d for d in depths if d + widest + 2 < ctx.n_ctx]
    rows = _rows(ctx, max(depths, default=0) + widest + 2, seed=2)
    for i, depth in enumerate(depths):
        ctx.clear()
        for at in range(0, depth, 64):
            _decode(ctx, rows, at, min(at + 64, depth))
        singles = [_decode(ctx, rows, depth + j, depth + j + 1)[0] for j in range(best + 1)]
        for width in range(2, best + 1):
            ctx.seq_rm(0, depth, -1)
            together = _decode(ctx, rows, depth, depth + width)
            behind = _decode(ctx, rows, depth + width, depth + width + 1)[0]
            same = all(np.array_equal(a, b) for a, b in zip(together, singles[:width], strict=True))
            if not (same and np.array_equal(behind, singles[width])):
                best = width - 1
                break
        if tick:
            tick(i + 1, len(depths))
        if best == 1:
            break
    ctx.clear()
    return max(best, 1) if depths else 1


def _rows(ctx: SliceContext, n: int, seed: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if ctx.first:
        return rng.integers(0, ctx.n_vocab, n).astype(np.int32)
    return rng.standard_normal((n, ctx.row_width)).astype(np.float32)


def _decode(ctx: SliceContext, rows: NDArray[Any], a: int, b: int) -> NDArray[np.float32]:
    pos, seq = np.arange(a, b, dtype=np.int32), np.zeros(b - a, np.int32)
    if ctx.first:
        return np.array(ctx.decode(rows[a:b], pos, seq))
    return np.array(ctx.decode(seq, pos, seq, hidden=rows[a:b]))
