"""Q8_0 in ggml's layout: blocks of 32 values, each a half-precision scale and 32 signed bytes (34 bytes)."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from needs import stop
from numpy.typing import NDArray
from presets import Config

Tensors = dict[str, tuple["bytes | NDArray[np.float32]", tuple[int, ...]]]
"""GGUF name -> (Q8_0 bytes or float32 values, shape)."""

PIECE = 15 * 2**20
"""Bytes of one file: weights are cut into pieces that any file transfer takes."""


def quantize_q8_0(x: NDArray[np.float32]) -> bytes:
    """(rows, columns) float32 -> bytes; the columns are a multiple of 32."""
    blocks = np.ascontiguousarray(x, np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / 127
    quants = np.round(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)).astype(np.int8)
    out = np.empty((len(blocks), 34), np.uint8)
    out[:, :2] = scale.astype(np.float16).view(np.uint8)
    out[:, 2:] = quants.view(np.uint8)
    return out.tobytes()


def dequantize_q8_0(data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    blocks = np.frombuffer(data, np.uint8).reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (blocks[:, 2:].view(np.int8).astype(np.float32) * scale).reshape(shape)


def dump_q8(tensors: Iterable[NDArray[np.float32]], prefix: str) -> None:
    """Tensors in the order of Config.shapes, matrices as Q8_0 and vectors as float32, to PREFIX.000, PREFIX.001, ..."""
    data = b"".join(quantize_q8_0(x) if x.ndim == 2 else np.ascontiguousarray(x, np.float32).tobytes() for x in tensors)
    for i in range(0, len(data), PIECE):
        Path(f"{prefix}.{i // PIECE:03d}").write_bytes(data[i : i + PIECE])


def load_q8(config: Config, prefix: str) -> Tensors:
    """What `dump_q8` wrote."""
    data = b"".join(Path(f).read_bytes() for f in sorted(glob.glob(glob.escape(prefix) + ".[0-9]*")))
    out: Tensors = {}
    pos = 0
    for name, shape in config.shapes():
        n = int(np.prod(shape))
        size = n // 32 * 34 if len(shape) == 2 else n * 4
        raw = data[pos : pos + size]
        out[name] = (raw if len(shape) == 2 else np.frombuffer(raw, np.float32), shape)
        pos += size
    if pos != len(data):
        stop(f"{prefix}.* holds {len(data)} bytes, such a model {pos}: wrong NAME, or pieces missing.")
    return out
