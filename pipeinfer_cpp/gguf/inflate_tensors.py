"""The tensors of a bigger model with the same outputs.

The added part of the residual stream is zero or repeats the old one, and norm weights of zero keep
it from being read. An RMS norm then averages the same squares, `repeats` times, over D elements
instead of d, so eps and the weights are scaled by d * repeats / D and its root. That is exact for a
power of four: `repeats` is the least number that makes it one. Where D is no multiple of d the
weights are rounded once more.

Added heads lie behind the old ones, as many to a KV head as before, so that old heads keep theirs;
rope and the attention scale depend on the size of a head, which stays. The output projection is
zero in the columns of added heads and FFN units, and as a whole in added layers; what these
compute before it are the weights of the last real layer before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from gguf.quants import dequantize

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.constants import GGMLQuantizationType
from pipeinfer_cpp.gguf.encoding import tensor_bytes
from pipeinfer_cpp.gguf.header import Tensor
from pipeinfer_cpp.gguf.inflate_sizes import Sizes
from pipeinfer_cpp.gguf.source import Source
from pipeinfer_cpp.gguf.steps import ADDED, COPIED, REWRITTEN, TensorStep

Axes = tuple[str, ...]

_QKV = {"attn_q": "q", "attn_k": "kv", "attn_v": "kv"}
_OUTPUTS = {"attn_output": "q", "ffn_down": "ffn"}
_LAYER_AXES: dict[str, Axes] = {
    **{f"{name}.weight": ("width", axis) for name, axis in _QKV.items()},
    **{f"{name}.bias": (axis,) for name, axis in _QKV.items()},
    **{f"{name}.weight": ("width", "ffn") for name in ("ffn_gate", "ffn_up")},
    **{f"{name}.bias": ("ffn",) for name in ("ffn_gate", "ffn_up")},
    **{f"{name}.weight": (axis, "width") for name, axis in _OUTPUTS.items()},
    **{f"{name}.bias": ("width",) for name in _OUTPUTS},
    **{f"{name}.weight": ("width",) for name in ("attn_norm", "ffn_norm")},
    **{f"{name}.weight": ("head",) for name in ("attn_q_norm", "attn_k_norm")},
}
_AXES: dict[str, Axes] = {
    "token_embd.weight": ("width", "vocab"),
    "output.weight": ("width", "vocab"),
    "output.bias": ("vocab",),
    "output_norm.weight": ("width",),
}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_F32 = int(GGMLQuantizationType.F32)


@dataclass(frozen=True)
class InflatedTensor(TensorStep):
    """One tensor: `data`, else the origin repeated along each axis as `repeats` says, else nothing;
    and zeros behind that on each axis."""

    repeats: tuple[int, ...] = ()


_UNSIZED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def axes_of(source: Source, tensor: Tensor, old: Sizes) -> Axes:
    """What the axes of a tensor are, () for one that is copied as it is. Raises UserError for a
    tensor or a shape that no rule covers."""
    layer = _LAYER.fullmatch(tensor.name)
    if not layer and tensor.name in _UNSIZED:
        return ()
    axes = _LAYER_AXES.get(layer[2]) if layer else _AXES.get(tensor.name)
    if axes is None or (layer and int(layer[1]) >= old.layers):
        raise UserError(f"{source.path} holds the tensor {tensor.name}, which no rule covers: it is not inflated.")
    if tensor.shape != tuple(old.along(axis) for axis in axes):
        raise UserError(f"{source.path} is damaged: {tensor.name} does not have the shape that its keys give.")
    return axes


def inflated_tensors(
    source: Source, axes: Mapping[str, Axes], old: Sizes, new: Sizes, repeats: int
) -> Iterator[InflatedTensor]:
    """One step for each tensor of the bigger model."""
    by_layer: dict[int, list[tuple[str, Tensor]]] = {i: [] for i in range(old.layers)}
    for tensor in source.tensors.values():
        layer = _LAYER.fullmatch(tensor.name)
        if layer:
            by_layer[int(layer[1])].append((layer[2], tensor))
        else:
            yield _step(tensor, tensor.name, axes[tensor.name], old, new, repeats)
    if not all(by_layer.values()):
        raise UserError(f"{source.path} names {old.layers} layers, but holds tensors of fewer: fetch it again.")
    places = real_layers(old.layers, new.layers)
    for i in range(new.layers):
        origin = max(k for k, place in enumerate(places) if place <= i)
        for rest, tensor in by_layer[origin]:
            step = _step(tensor, f"blk.{i}.{rest}", axes[tensor.name], old, new, repeats)
            if i not in places and rest.partition(".")[0] in _OUTPUTS:
                step = replace(step, action=ADDED, reason="zero: this layer changes nothing", origin=None)
            yield step


def real_layers(old: int, new: int) -> list[int]:
    """Where the source's layers lie in the bigger model: evenly, the first one first, so that
    every slice holds its share of them."""
    return [i * new // old for i in range(old)]


def _step(tensor: Tensor, target: str, axes: Axes, old: Sizes, new: Sizes, repeats: int) -> InflatedTensor:
    shape = tuple(new.along(axis) for axis in axes) or tensor.shape
    if axes == ("width",) and target.endswith("_norm.weight") and old.width != new.width:
        data = _norm(tensor, sqrt(old.width * repeats / new.width))
        reason = "zero where nothing is to be read, and scaled for the new mean"
        return InflatedTensor(
            tensor.name, REWRITTEN, reason, target, shape, _F32, tensor_bytes(shape, _F32), tensor, data
        )
    writes = tensor.name == "token_embd.weight" or target.split(".")[-2] in _OUTPUTS
    times = tuple(repeats if writes and axis == "width" else 1 for axis in axes)
    action, reason = (COPIED, "keeps its shape") if shape == tensor.shape else (REWRITTEN, "padded with zeros")
    n_bytes = tensor_bytes(shape, tensor.kind)
    return InflatedTensor(
        tensor.name, action, reason, target, shape, tensor.kind, n_bytes, origin=tensor, repeats=times
    )


def _norm(tensor: Tensor, factor: float) -> bytes:
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        raw = np.frombuffer(file.read(tensor.n_bytes), np.uint8)
    values = dequantize(raw, GGMLQuantizationType(tensor.kind)).astype(np.float64)
    return bytes((values * factor).astype("<f4").tobytes())
