"""What llama.cpp's caches hold of each layer, read from a model's header.

Widths come from the tensors where these tell them, as llama.cpp's keys have defaults by architecture.
Recurrent layers keep a state of constant size for each sequence instead of cells for each position.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeinfer_cpp.gguf.constants import GGMLQuantizationType
from pipeinfer_cpp.gguf.encoding import tensor_bytes
from pipeinfer_cpp.gguf.header import Tensor
from pipeinfer_cpp.gguf.source import Source

KV_KINDS = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
}
"""Names of KV cache types, as the options have them."""

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_RECURRENT = ("ssm_", "shortconv", "time_mix")
_INDEXER_TYPES = "attention.indexer.types"
_CSA, _HCA = 4, 128
"""DeepSeek V4's compressed caches hold one cell for so many positions."""


@dataclass(frozen=True)
class LayerCache:
    """Of one layer: `rows` are the lengths of what is kept of each position (keys, values, indexer keys),
    `sparse` those of which one is kept for so many positions, as (length, positions). `state` counts the
    floats kept of each sequence. `streams`: every sequence has rows of its own (DeepSeek V4)."""

    rows: tuple[int, ...] = ()
    sparse: tuple[tuple[int, int], ...] = ()
    state: int = 0
    streams: bool = False

    def cell_bytes(self, kv_type: str) -> float:
        """Bytes of each position of the context."""
        return sum(_row_bytes(n, kv_type) for n in self.rows) + sum(_row_bytes(n, kv_type) / r for n, r in self.sparse)

    def bytes(self, cells: int, n_seq: int, kv_type: str) -> int:
        """Bytes of a cache of so many cells and sequences."""
        n = sum(_row_bytes(length, kv_type) * cells for length in self.rows)
        for length, ratio in self.sparse:
            sparse_cells = -(-cells // ratio)
            n += _row_bytes(length, kv_type) * (-(-sparse_cells // 256) * 256)
        return n * (n_seq if self.streams else 1) + 4 * self.state * n_seq


def layer_caches(source: Source) -> list[LayerCache]:
    """One for each layer of the trunk (of layers for multi-token prediction nothing is loaded)."""
    layers: list[dict[str, Tensor]] = [{} for _ in range(source.n_layers)]
    for name, tensor in source.tensors.items():
        match = _LAYER.fullmatch(name)
        if match and int(match[1]) < len(layers):
            layers[int(match[1])][match[2]] = tensor
    shared = int(source.get("{arch}.attention.shared_kv_layers", 0) or 0)
    own = len(layers) - shared
    return [_layer(source, i, tensors) if i < own else LayerCache() for i, tensors in enumerate(layers)]


def _layer(source: Source, i: int, tensors: dict[str, Tensor]) -> LayerCache:
    if source.architecture == "deepseek4":
        return _deepseek4(source, i)
    recurrent = any(name.startswith(_RECURRENT) for name in tensors)
    state = _state(source, tensors) if recurrent else 0
    if recurrent and source.architecture != "falcon-h1":  # whose layers have both
        return LayerCache(state=state)
    rows = _attention(source, i, tensors)
    if rows and any(name.startswith("indexer.") for name in tensors) and _number(source, _INDEXER_TYPES, i, 1):
        rows += _indexer(source)
    return LayerCache(rows=rows, state=state)


def _attention(source: Source, i: int, tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """Lengths of keys and values of a position."""
    heads = _number(source, "attention.head_count_kv", i, _number(source, "attention.head_count", i, 1))
    key = _number(source, "attention.key_length", i, _head(source, i))
    value = _value_length(source, i)
    if "attn_kv_a_mqa.weight" in tensors:
        if source.get("{arch}.attention.key_length_mla"):
            return (key * heads,)  # the latent, which gives keys and values
        return key * heads, value * heads
    k, v = tensors.get("attn_k.weight"), tensors.get("attn_v.weight")
    if k is not None:
        keys = k.shape[1]
        return keys, v.shape[1] if v is not None else keys
    if not any(name.startswith("attn_") and name != "attn_norm.weight" for name in tensors):
        return ()
    return key * heads, value * heads


def _value_length(source: Source, i: int) -> int:
    return _number(source, "attention.value_length", i, _head(source, i))


def _head(source: Source, i: int) -> int:
    return source.n_embd // max(_number(source, "attention.head_count", i, 1), 1)


def _indexer(source: Source) -> tuple[int, ...]:
    """One more key a position, for the layers that look for what to attend to."""
    n = _number(source, "attention.indexer.key_length", 0, 0)
    if source.architecture == "glm5-next":
        return (3 * n,)
    if source.architecture == "minimax-m3":
        return n, _value_length(source, 0)
    return (n,)


def _deepseek4(source: Source, i: int) -> LayerCache:
    key, indexer = _number(source, "attention.key_length", i, 0), _number(source, "attention.indexer.key_length", i, 0)
    ratio = _number(source, "attention.compress_ratios", i, 0)
    sparse: tuple[tuple[int, int], ...] = ()
    state = 0
    if ratio == _CSA:
        sparse, state = ((key, _CSA), (indexer, _CSA)), 2 * 2 * _CSA * (2 * key + 2 * indexer)
    elif ratio == _HCA:
        sparse, state = ((key, _HCA),), 2 * _HCA * key
    return LayerCache((key,), sparse, state, streams=True)


def _state(source: Source, tensors: dict[str, Tensor]) -> int:
    """Floats of a recurrent layer's state (llama_hparams::n_embd_r and n_embd_s)."""
    if any(name.startswith("time_mix") for name in tensors):
        return source.n_embd * (_number(source, "token_shift_count", 0, 2) + _number(source, "wkv.head_size", 0, 64))
    if any(name.startswith("shortconv") for name in tensors):
        return source.n_embd * (_number(source, "shortconv.l_cache", 0, 3) - 1)
    conv = _number(source, "ssm.conv_kernel", 0, 4) - 1
    if "ssm_conv1d_q.weight" in tensors:
        kda = _number(source, "kda.head_dim", 0, 0)
        heads = _number(source, "attention.head_count", 0, 1)
        return 3 * conv * heads * kda + kda * kda * heads
    inner, state = _number(source, "ssm.inner_size", 0, 0), _number(source, "ssm.state_size", 0, 0)
    groups = 0 if source.architecture in ("mamba", "jamba") else _number(source, "ssm.group_count", 0, 0)
    return conv * (inner + 2 * groups * state) + state * inner


def _number(source: Source, key: str, i: int, default: int) -> int:
    """A key's value, of layer i where it is a list."""
    value: Any = source.get("{arch}." + key)
    if isinstance(value, list):
        value = value[i] if i < len(value) else None
    return default if value is None else int(value)


def _row_bytes(length: int, kv_type: str) -> int:
    block = {"q8_0": 32, "q4_0": 32}.get(kv_type, 1)
    return tensor_bytes((-(-length // block) * block, 1), int(KV_KINDS[kv_type]))
