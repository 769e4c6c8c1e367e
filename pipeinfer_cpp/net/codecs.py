"""How hidden states travel between stages: float32 as they are, or rounded to fewer bytes.

Each codec turns float32[rows, width] into bytes and back, row by row, so that a row's bytes do not depend
on what travels with it. Hidden states have outlier channels, some hundred times larger than the rest: `q8`
scales blocks of 32 channels each by itself, `q4` also sends the largest channels of each row apart.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.messages import WIRES

BLOCK = 32
F32: TypeAlias = NDArray[np.float32]
U8: TypeAlias = NDArray[np.uint8]


class Codec(Protocol):
    """One way to send hidden states."""

    name: str

    def row_bytes(self, width: int) -> int:
        """Bytes of one row."""

    def encode(self, hidden: F32) -> memoryview:
        """float32[rows, width] as bytes. Raises UserError where the values do not fit."""

    def decode(self, data: memoryview, rows: int, width: int) -> F32:
        """float32[rows, width] again."""


class _F32:
    name = "f32"

    def row_bytes(self, width: int) -> int:
        return 4 * width

    def encode(self, hidden: F32) -> memoryview:
        return _bytes(hidden)

    def decode(self, data: memoryview, rows: int, width: int) -> F32:
        return np.frombuffer(data, np.float32).reshape(rows, width)


class _F16:
    name = "f16"

    def row_bytes(self, width: int) -> int:
        return 2 * width

    def encode(self, hidden: F32) -> memoryview:
        largest = float(np.abs(hidden).max(initial=0.0))
        _refuse_infinite(hidden, self.name)
        if not largest < 65520.0:
            raise UserError(
                f"A hidden state of {largest:.0f} does not fit --wire f16 (at most 65504): use --wire bf16 or q8."
            )
        return _bytes(hidden.astype(np.float16))

    def decode(self, data: memoryview, rows: int, width: int) -> F32:
        return np.frombuffer(data, np.float16).astype(np.float32).reshape(rows, width)


class _BF16:
    name = "bf16"

    def row_bytes(self, width: int) -> int:
        return 2 * width

    def encode(self, hidden: F32) -> memoryview:
        _refuse_infinite(hidden, self.name)
        return _bytes(_to_bf16(hidden))

    def decode(self, data: memoryview, rows: int, width: int) -> F32:
        return _from_bf16(np.frombuffer(data, np.uint16)).reshape(rows, width)


class _Q8:
    """Blocks of 32 channels: a bfloat16 scale and a signed byte each. 8.5 bits a value."""

    name = "q8"

    def row_bytes(self, width: int) -> int:
        return width + 2 * (width // BLOCK)

    def encode(self, hidden: F32) -> memoryview:
        _refuse_infinite(hidden, self.name)
        values, scales = _quantise(hidden, 127)
        return _pack(scales, values.astype(np.int8))

    def decode(self, data: memoryview, rows: int, width: int) -> F32:
        scales, values = _unpack(data, rows, width // BLOCK, width)
        return _scaled(values.view(np.int8), scales)


class _Q4:
    """The largest channels of each row (one of 32) as they are, the others in blocks of 32: a bfloat16
    scale and four bits each. 5.9 bits a value."""

    name = "q4"

    def _apart(self, width: int) -> int:
        return max(1, width // 32)

    def row_bytes(self, width: int) -> int:
        return width // 2 + 2 * (width // BLOCK) + 6 * self._apart(width)

    def encode(self, hidden: F32) -> memoryview:
        _refuse_infinite(hidden, self.name)
        width = hidden.shape[1]
        n = self._apart(width)
        at = np.sort(np.argpartition(np.abs(hidden), width - n, axis=1)[:, width - n :], axis=1)
        large = np.take_along_axis(hidden, at, axis=1)
        rest = hidden.copy()
        np.put_along_axis(rest, at, np.float32(0), axis=1)
        values, scales = _quantise(rest, 7)
        nibbles = (values + 8).astype(np.uint8)
        return _pack(scales, nibbles[:, ::2] | nibbles[:, 1::2] << 4, at.astype(np.uint16), large)

    def decode(self, data: memoryview, rows: int, width: int) -> F32:
        n = self._apart(width)
        scales, rest = _unpack(data, rows, width // BLOCK, width // 2 + 6 * n)
        nibbles = np.empty((rows, width), np.int8)
        nibbles[:, ::2] = rest[:, : width // 2] & 15
        nibbles[:, 1::2] = rest[:, : width // 2] >> 4
        out = _scaled(nibbles - 8, scales)
        at = np.ascontiguousarray(rest[:, width // 2 : width // 2 + 2 * n]).view(np.uint16)
        large = np.ascontiguousarray(rest[:, width // 2 + 2 * n :]).view(np.float32)
        np.put_along_axis(out, at.astype(np.int64), large, axis=1)
        return out


CODECS: dict[str, Codec] = dict(zip(WIRES, (_F32(), _F16(), _BF16(), _Q8(), _Q4()), strict=True))


def codec(name: str, width: int) -> Codec:
    """The codec of that name for rows of `width` channels. Raises UserError."""
    if name not in CODECS:
        raise UserError(f"--wire {name} is not one of {', '.join(CODECS)}.")
    if name in ("q8", "q4") and width % BLOCK:
        raise UserError(f"--wire {name} needs a model whose width is a multiple of {BLOCK}, and this has {width}.")
    return CODECS[name]


def _refuse_infinite(hidden: F32, name: str) -> None:
    if not np.isfinite(hidden).all():
        raise UserError(
            f"A hidden state is not a finite number, which --wire {name} cannot carry: the model's file may be damaged."
        )


def _quantise(x: F32, steps: int) -> tuple[F32, NDArray[np.uint16]]:
    """Whole numbers of at most `steps` as float32, and each block's scale."""
    blocks = x.reshape(x.shape[0], -1, BLOCK)
    exact = np.abs(blocks).max(axis=2) / np.float32(steps)
    # Rounded up: a scale below the exact one would need more than `steps` steps.
    scales = ((exact.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)
    used = _from_bf16(scales).reshape(exact.shape)
    inverse = np.divide(np.float32(1), used, out=np.zeros_like(used), where=used > 1e-37)
    return np.rint(blocks * inverse[:, :, None]).reshape(x.shape), scales


def _scaled(values: NDArray[np.int8], scales: NDArray[np.uint16]) -> F32:
    rows, width = values.shape
    blocks = values.reshape(rows, -1, BLOCK).astype(np.float32)
    blocks *= _from_bf16(scales).reshape(rows, -1, 1)
    return blocks.reshape(rows, width)


def _to_bf16(x: F32) -> NDArray[np.uint16]:
    """Round to nearest, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _from_bf16(x: NDArray[np.uint16]) -> F32:
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _pack(*parts: NDArray[Any]) -> memoryview:
    """The parts of each row side by side."""
    rows = parts[0].shape[0]
    return _bytes(np.hstack([np.ascontiguousarray(p).view(np.uint8).reshape(rows, -1) for p in parts]))


def _bytes(x: NDArray[Any]) -> memoryview:
    return memoryview(np.ascontiguousarray(x)).cast("B")  # type: ignore[arg-type]


def _unpack(data: memoryview, rows: int, n_scales: int, rest: int) -> tuple[NDArray[np.uint16], U8]:
    table = np.frombuffer(data, np.uint8).reshape(rows, 2 * n_scales + rest)
    return np.ascontiguousarray(table[:, : 2 * n_scales]).view(np.uint16), np.ascontiguousarray(
        table[:, 2 * n_scales :]
    )
