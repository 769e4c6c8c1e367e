"""Few candidates out of many: exact supersets of the best, found faster than by sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def top_superset(x: NDArray[np.float32], k: int) -> NDArray[Any]:
    """Ids, ascending, of at least the `k` largest of `x` (ties included) and seldom many more.

    The k-th largest of the maxima of disjoint groups is a bound that k elements reach.
    """
    n_groups = min(len(x) // 4, max(8 * k, 128))
    if n_groups <= k:
        return np.arange(len(x))
    per_group = len(x) // n_groups
    maxima: NDArray[np.float32] = x[: per_group * n_groups].reshape(per_group, n_groups).max(axis=0)
    maxima.partition(n_groups - k)
    return np.flatnonzero(x >= maxima[n_groups - k])


def above(x: NDArray[np.float32], ids: NDArray[Any] | None, bound: float) -> NDArray[Any]:
    """Those of `ids` (None: all) whose `x` is more than `bound`."""
    if ids is None:
        return np.flatnonzero(x > bound)
    kept: NDArray[Any] = ids[x[ids] > bound]
    return kept
