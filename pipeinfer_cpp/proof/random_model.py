"""Models of any metadata with random weights."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from pipeinfer_cpp.gguf.header import DEFAULT_ALIGNMENT
from pipeinfer_cpp.gguf.steps import ADDED, KeyStep, TensorStep
from pipeinfer_cpp.gguf.writer import lay_out
from pipeinfer_cpp.llama.tensor_list import wanted_tensors

Keys = Mapping[str, bytes]
"""Metadata by name: type and value as they stand in a GGUF (see gguf.encoding)."""


def write_random(
    path: Path,
    keys: Keys,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    n_experts: int = 1,
    seed: int = 1,
) -> Path:
    """Write a model with these keys and every tensor that llama.cpp asks for and `wanted` agrees to, filled with
    random weights of sane sizes. Matrices whose rows allow it are of `kind`, all else is F32.

    Raises UserError when llama.cpp makes no model of the keys.
    """
    write_gguf(path, keys)
    steps = [
        _tensor_step(name, shape, kind, n_experts, seed)
        for name, shape in wanted_tensors(path).items()
        if wanted(name)
    ]
    return write_gguf(path, keys, steps)


def write_gguf(path: Path, keys: Keys, tensors: Iterable[TensorStep] = ()) -> Path:
    """A GGUF of these keys and tensors, which hold their data."""
    steps = [KeyStep(name, ADDED, "", data=data) for name, data in keys.items()]
    header, layout = lay_out(steps, list(tensors), DEFAULT_ALIGNMENT)
    with path.open("wb") as file:
        file.write(header)
        for step, size in layout:
            file.write((step.data or b"").ljust(size, b"\0"))
    return path


def _tensor_step(
    name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, n_experts: int, seed: int
) -> TensorStep:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    own = GGMLQuantizationType.F32
    if "tid2eid" in name:
        data, own = rng.integers(0, n_experts, math.prod(shape), np.int32), GGMLQuantizationType.I32
    else:
        data = _values(name, shape, rng)
        fits = len(shape) > 1 and shape[0] % 32 == 0 and name.endswith("weight")
        if kind != own and fits and not any(part in name for part in ("conv", "norm", "gate_inp")):
            data, own = quantize(data.reshape(tuple(reversed(shape))), kind), kind
    raw = data.tobytes()
    return TensorStep(name, ADDED, "", name, shape, int(own), len(raw), None, raw)


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Sizes at which no layer drowns the others, nothing overflows, and every bias and scale shows."""
    n = math.prod(shape)
    base = name.split(".", 2)[2] if name.startswith("blk.") else name
    if base == "rope_freqs.weight" or base.startswith("rope_factors"):
        return np.linspace(1, 8, n, dtype=np.float32)
    x: NDArray[np.float32] = rng.standard_normal(n, np.float32)
    if base.startswith("ssm_a"):
        decay: NDArray[np.float32] = -np.exp(x / np.float32(2))
        return decay
    if base.startswith("ssm_dt") and base.endswith("bias"):
        return x / np.float32(2) - np.float32(1)
    if base.endswith(("scale", "scale.weight")) or ("norm" in base and base.endswith("weight")):
        return np.float32(1) + np.float32(0.3) * x
    if len(shape) == 1:
        middle = 0.0 if base.endswith("bias") or "sinks" in base or "probs_b" in base else 0.5
        return np.float32(middle) + np.float32(0.3) * x
    if base.startswith(("token_embd", "output")):
        return x
    return x * np.float32(1.5 / math.sqrt(shape[0]))
