"""Noise for the final draw, keyed by (seed, position, token id): the same wherever it is computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = 0xFFFFFFFFFFFFFFFF
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_A, _B, _G = np.uint64(_MIX_1), np.uint64(_MIX_2), np.uint64(_GAMMA)
_S27, _S30, _S31, _S12 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(12)


def _mix(x: int) -> int:
    """splitmix64 of one counter value."""
    x = (x + _GAMMA) & _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)


def gumbel(seed: int, pos: int, ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """Standard Gumbel noise `float64[n]` for the token `ids` (`int[n]`) drawn at position `pos`.

    A token's noise depends on (seed, pos, its id) alone: not on the order of `ids`, nor on which
    others are there. So argmax(logit / temp + noise) is an exact draw from the softmax, and any
    process with the same seed makes the same one.
    """
    key = np.uint64(_mix(_mix(seed & _MASK) ^ (pos & _MASK)))
    x = ids.astype(np.uint64)
    x *= _G
    x += key
    x ^= x >> _S30
    x *= _A
    x ^= x >> _S27
    x *= _B
    x ^= x >> _S31
    x >>= _S12
    u = x.astype(np.float64)
    u += 0.5  # 52 bits and a half step: never 0, never 1
    u *= 2.0**-52
    np.log(u, out=u)
    np.negative(u, out=u)
    np.log(u, out=u)
    return np.negative(u, out=u)
