"""A bigger model with the same outputs, planned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import lcm

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.architectures import rules_for
from pipeinfer_cpp.gguf.constants import GGUFValueType
from pipeinfer_cpp.gguf.encoding import STRING, encode_value
from pipeinfer_cpp.gguf.header import Key
from pipeinfer_cpp.gguf.inflate_sizes import Sizes, grown, repeats_for, row_block, sizes_of
from pipeinfer_cpp.gguf.inflate_tensors import InflatedTensor, axes_of, inflated_tensors
from pipeinfer_cpp.gguf.source import Source
from pipeinfer_cpp.gguf.steps import ADDED, COPIED, LEFT_OUT, REWRITTEN, KeyStep

INFLATABLE = ("llama", "qwen2", "qwen3")
_REASONS = {
    "gemma3": "llama.cpp scales its embeddings by the width",
    "qwen3moe": "no test covers a mixture of experts",
}
_U32, _F32 = int(GGUFValueType.UINT32), int(GGUFValueType.FLOAT32)


@dataclass(frozen=True)
class Inflation:
    """A bigger model, ready to be written."""

    source: Source = field(repr=False)
    old: Sizes
    new: Sizes
    keys: tuple[KeyStep, ...] = field(repr=False)
    tensors: tuple[InflatedTensor, ...] = field(repr=False)

    @property
    def data_bytes(self) -> int:
        return sum(step.n_bytes for step in self.tensors)

    @property
    def is_exact(self) -> bool:
        """Whether the outputs keep their bits; else they agree up to rounding.

        True on CPUs where unquantised rows were whole SIMD steps already (64 elements are)."""
        return self.new.width % self.old.width == 0


def inflation(
    source: Source,
    *,
    layers: int | None = None,
    width: int | None = None,
    ffn: int | None = None,
    heads: int | None = None,
) -> Inflation:
    """Plan a model of these sizes (see `grown`) with the source's outputs.

    Raises UserError for an architecture or variant where the outputs would change, and for sizes
    that are smaller than the source's or do not fit its heads and quantisation blocks.
    """
    _check_kind(source)
    old = sizes_of(source)
    axes = {name: axes_of(source, tensor, old) for name, tensor in source.tensors.items()}
    blocks = {"width": 1, "q": 1, "ffn": 1}
    for name, (along, *_) in ((name, found) for name, found in axes.items() if found):
        if along in blocks:
            blocks[along] = lcm(blocks[along], row_block(source.tensors[name]))
    new = grown(source, old, blocks, layers=layers, width=width, ffn=ffn, heads=heads)
    repeats = repeats_for(source.architecture, old.width, new.width)
    tensors = tuple(inflated_tensors(source, axes, old, new, repeats))
    return Inflation(source, old, new, tuple(_keys(source, old, new, repeats)), tensors)


def _check_kind(source: Source) -> None:
    name = source.architecture
    if name not in INFLATABLE or source.get("{arch}.expert_count"):
        why = _REASONS.get("qwen3moe" if name in INFLATABLE else name, "no test shows that its outputs stay the same")
        known = ", ".join(INFLATABLE)
        raise UserError(f"{source.path.name}, of architecture {name!r}, is not inflated: {why} (supported: {known}).")
    rules_for(source)
    if source.n_layers_beyond:
        raise UserError(f"{source.path} has layers that predict several tokens at once, which no rule inflates.")
    if "pipeinfer.slice.of_layers" in source.keys:
        raise UserError(f"{source.path} is a slice: inflate the whole model instead.")
    if "general.tensor_extra.name" in source.keys:
        raise UserError(f"{source.path} sets the precision of single tensors, which no rule carries over.")


def _keys(source: Source, old: Sizes, new: Sizes, repeats: int) -> Iterator[KeyStep]:
    arch = source.architecture
    epsilon = source.get("{arch}.attention.layer_norm_rms_epsilon")
    if not isinstance(epsilon, float):
        raise UserError(f"{source.path} is damaged: its key {arch}.attention.layer_norm_rms_epsilon is missing.")
    name = f"{source.name} inflated to {new.layers} layers, width {new.width}, FFN {new.ffn}"
    values = {
        f"{arch}.block_count": new.layers,
        f"{arch}.embedding_length": new.width,
        f"{arch}.feed_forward_length": new.ffn,
        f"{arch}.attention.head_count": new.heads,
        f"{arch}.attention.head_count_kv": new.kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": epsilon * old.width * repeats / new.width,
    }
    for key in source.keys.values():
        yield _key(source, key, values, name)
    if "general.name" not in source.keys:
        yield KeyStep("general.name", ADDED, "says what it is", data=encode_value(STRING, name))
    for full in (f"{arch}.attention.key_length", f"{arch}.attention.value_length"):
        if full not in source.keys and new.width // new.heads != new.head_size:
            yield KeyStep(full, ADDED, "the heads keep their size", data=encode_value(_U32, new.head_size))


def _key(source: Source, key: Key, values: dict[str, int | float], name: str) -> KeyStep:
    if key.name.startswith("split.") or key.name == "general.size_label":
        return KeyStep(key.name, LEFT_OUT, "true of the source only", key)
    if key.name == "general.name":
        return KeyStep(key.name, REWRITTEN, "says what it is", key, encode_value(STRING, name))
    if key.name in values:
        value = values[key.name]
        kind = _F32 if isinstance(value, float) else _U32  # not the source's: llama.cpp takes lists of i32, but no i32
        return KeyStep(key.name, REWRITTEN, "the new size", key, encode_value(kind, value))
    if key.is_array and key.count == source.n_layers and key.name.startswith(f"{source.architecture}."):
        raise UserError(f"{source.path} has a list {key.name} of one value a layer, which no rule covers.")
    return KeyStep(key.name, COPIED, "holds for every size", key)
