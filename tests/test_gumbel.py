"""The noise of the final draw: right in distribution, keyed, independent of what else is asked."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeinfer_cpp.llama.gumbel import gumbel

EULER = 0.5772156649015329


def kolmogorov(noise: np.ndarray) -> float:
    """sqrt(n) times the largest distance to the Gumbel distribution function; 1.95 has p = 0.001."""
    u = np.sort(np.exp(-np.exp(-noise)))
    n = len(u)
    steps = np.arange(n + 1) / n
    return float(np.sqrt(n) * max((steps[1:] - u).max(), (u - steps[:-1]).max()))


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, -1, 2**63])
def test_noise_over_a_vocabulary_is_gumbel(seed: int) -> None:
    noise = gumbel(seed, 7, np.arange(100_000))
    assert kolmogorov(noise) < 1.95
    assert abs(noise.mean() - EULER) < 5 * np.pi / np.sqrt(6 * len(noise))


@pytest.mark.parametrize("of", ["seed", "pos"])
def test_noise_of_one_token_is_gumbel_over_seeds_and_positions(of: str) -> None:
    one = np.array([17])
    noise = np.array([gumbel(i, 3, one)[0] if of == "seed" else gumbel(3, i, one)[0] for i in range(20_000)])
    assert kolmogorov(noise) < 1.95


def test_neighbouring_seeds_positions_and_ids_are_uncorrelated() -> None:
    ids = np.arange(50_000)
    noise = gumbel(5, 9, ids)
    limit = 5 / np.sqrt(len(ids))
    for other in (gumbel(6, 9, ids), gumbel(5, 10, ids), gumbel(9, 5, ids), gumbel(5, 9, ids + 1)):
        assert abs(np.corrcoef(noise, other)[0, 1]) < limit


def test_noise_is_a_function_of_seed_position_and_id_only() -> None:
    ids = np.arange(8192, dtype=np.int32)
    noise = gumbel(3, 100, ids)
    some = np.random.default_rng(0).permutation(ids)[:100]
    assert np.array_equal(gumbel(3, 100, some), noise[some])
    assert np.array_equal(gumbel(3, 100, some.astype(np.int64)), noise[some])
    assert not np.array_equal(gumbel(4, 100, ids), noise)


def splitmix(x: int) -> int:
    """splitmix64's output function, after Vigna's splitmix64.c, on a state that was advanced already."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return x ^ (x >> 31)


@pytest.mark.parametrize(("seed", "pos", "token"), [(0, 0, 0), (42, 10, 8191), (-1, 1023, 151_935), (2**40, 1, 1)])
def test_noise_keeps_its_values(seed: int, pos: int, token: int) -> None:
    """A text must not change with a release: the definition once more, in plain integers."""
    gamma, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    key = splitmix((splitmix(((seed & mask) + gamma) & mask) ^ pos) + gamma & mask)
    u = ((splitmix((key + token * gamma) & mask) >> 12) + 0.5) / 2**52
    assert gumbel(seed, pos, np.array([token]))[0] == pytest.approx(-math.log(-math.log(u)), rel=1e-12)


def test_noise_is_finite() -> None:
    assert np.isfinite(gumbel(0, 0, np.arange(1_000_000))).all()


def test_argmax_with_noise_draws_from_the_softmax() -> None:
    p = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    ids = np.array([4, 900, 31, 7, 2])
    n = 20_000
    drawn = [int((np.log(p) + gumbel(seed, 50, ids)).argmax()) for seed in range(n)]
    counts = np.bincount(drawn, minlength=5)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 23.5  # chi-square, 4 degrees, p = 0.0001
