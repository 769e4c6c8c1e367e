"""Hidden states there and back again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.codecs import CODECS, codec

LIMIT = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8": 0.51 / 127 * 1.008, "q4": 0.51 / 7 * 1.008}
"""Largest error as a share of the largest value of the block (q8, q4) or of the value itself."""


def hidden(rows: int, width: int, seed: int = 0, outliers: float = 300.0) -> np.ndarray:
    """Like a model's: a few channels are hundreds of times larger than the rest, in every row."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    x[:, rng.choice(width, 3, replace=False)] *= outliers
    return x


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.sampled_from((32, 64, 512, 4096)),
    seed=st.integers(0, 1 << 20),
    scale=st.sampled_from((1e-30, 1e-3, 1.0, 30.0)),
)
def test_there_and_back(name: str, rows: int, width: int, seed: int, scale: float) -> None:
    if name == "f16" and scale < 1e-3:
        scale = 1e-2  # smaller ones lose bits
    x = hidden(rows, width, seed) * np.float32(scale)
    chosen = codec(name, width)
    data = chosen.encode(x)
    assert data.nbytes == rows * chosen.row_bytes(width)
    back = chosen.decode(memoryview(bytes(data)), rows, width)
    assert back.dtype == np.float32 and back.shape == x.shape
    if name in ("q8", "q4"):
        blocks = np.abs(x).reshape(rows, -1, 32).max(axis=2).repeat(32, axis=1)
        assert (np.abs(back - x) <= LIMIT[name] * blocks).all()
    else:
        assert (np.abs(back - x) <= LIMIT[name] * np.abs(x) + (6e-8 if name == "f16" else 0)).all()


@pytest.mark.parametrize("name", CODECS)
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    x = hidden(6, 512)
    chosen = codec(name, 512)
    n = chosen.row_bytes(512)
    whole = bytes(chosen.encode(x))
    assert [whole[i * n : (i + 1) * n] for i in range(6)] == [bytes(chosen.encode(x[i : i + 1])) for i in range(6)]


@pytest.mark.parametrize("name", CODECS)
def test_zeros_stay_zeros(name: str) -> None:
    zeros = np.zeros((2, 64), np.float32)
    assert (codec(name, 64).decode(codec(name, 64).encode(zeros), 2, 64) == 0).all()


def test_q4_keeps_outliers_out_of_the_blocks() -> None:
    """With outliers 300 times as large as the rest, everything in their blocks would be rounded to zero."""
    x = hidden(4, 512)
    small = np.abs(x) < 6
    error = np.abs(codec("q4", 512).decode(codec("q4", 512).encode(x), 4, 512) - x)
    assert error[small].max() < 0.4 and error[~small].max() < 1e-6


@pytest.mark.parametrize("value", [65520.0, -1e6])
def test_what_overflows_f16_is_refused(value: float) -> None:
    x = hidden(1, 64, outliers=1.0)
    x[0, 5] = value
    with pytest.raises(UserError, match=r"does not fit wire f16.*bf16"):
        codec("f16", 64).encode(x)
    x[0, 5] = 65503.0
    codec("f16", 64).encode(x)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_f16_gives_no_advice_for_what_no_codec_carries(value: float) -> None:
    x = hidden(1, 64, outliers=1.0)
    x[0, 5] = value
    with pytest.raises(UserError, match=r"not a finite number, which wire f16 cannot carry.*damaged"):
        codec("f16", 64).encode(x)


@pytest.mark.parametrize("name", ["bf16", "q8", "q4"])
def test_what_is_no_number_is_refused(name: str) -> None:
    x = hidden(1, 64)
    x[0, 0] = np.nan
    with pytest.raises(UserError, match="not a finite number"):
        codec(name, 64).encode(x)


def test_bytes_of_a_row() -> None:
    assert [codec(name, 4096).row_bytes(4096) for name in CODECS] == [16384, 8192, 8192, 4352, 3072]


def test_unknown_names_and_odd_widths() -> None:
    with pytest.raises(UserError, match=r"wire q5 is not one of f32, f16, bf16, q8, q4\."):
        codec("q5", 64)
    with pytest.raises(UserError, match="multiple of 32"):
        codec("q8", 48)
    assert codec("f16", 48).name == "f16"
