"""How large a model is along each axis of its tensors, and which sizes it can grow to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from pipeinfer_cpp.gguf.header import Tensor
from pipeinfer_cpp.gguf.source import Source

MAX_LAYERS = 512
"""llama.cpp's LLAMA_MAX_LAYERS."""

_LOOK_AHEAD = 1 << 16
_MAX = 1 << 24


@dataclass(frozen=True)
class Sizes:
    """The sizes of a dense model whose layers are all alike."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    def along(self, axis: str) -> int:
        """Length of an axis as the tensor rules name it."""
        lengths = {"q": self.heads * self.head_size, "kv": self.kv_heads * self.head_size, "head": self.head_size}
        return lengths[axis] if axis in lengths else int(getattr(self, axis))


def sizes_of(source: Source) -> Sizes:
    """The sizes as the keys tell them. Raises UserError where layers differ or the keys make no sense."""
    heads = _one(source, "attention.head_count")
    kv_heads = _one(source, "attention.head_count_kv", heads)
    head_size = _one(source, "attention.key_length", source.n_embd // heads)
    if heads % kv_heads or _one(source, "attention.value_length", head_size) != head_size:
        raise UserError(f"{source.path} has attention heads of a form that cannot be inflated.")
    embedding = source.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{source.path} has no tensor token_embd.weight: fetch a complete model.")
    ffn = _one(source, "feed_forward_length")
    return Sizes(source.n_layers, source.n_embd, heads, kv_heads, head_size, ffn, embedding.shape[1])


def grown(
    source: Source,
    old: Sizes,
    blocks: Mapping[str, int],
    *,
    layers: int | None = None,
    width: int | None = None,
    ffn: int | None = None,
    heads: int | None = None,
) -> Sizes:
    """The new sizes; what is not given stays, only the heads grow in proportion to the width.

    `blocks` has, by axis, the length that rows along it must be a multiple of. KV heads grow with
    the heads, so that each still serves as many. Raises UserError, with sizes that would do.
    """
    new_layers = _at_least(layers, old.layers, "layers")
    if new_layers > MAX_LAYERS:
        raise UserError(f"llama.cpp loads at most {MAX_LAYERS} layers, not {new_layers}.")
    new_width = _at_least(width, old.width, "width")
    new_ffn = _at_least(ffn, old.ffn, "FFN")

    def heads_fit(n: int) -> bool:
        return n > 0 and n % old.group == 0 and n * old.head_size % blocks["q"] == 0

    def width_fits(n: int) -> bool:
        n_heads = heads if heads is not None else _heads_for(old, n)
        if n % blocks["width"] or not heads_fit(n_heads):
            return False
        return source.architecture != "qwen2" or n_heads * old.head_size == n  # qwen2.cpp gives Q the model's width

    into = f"heads of {old.head_size} in groups of {old.group}"
    if heads is not None:
        _at_least(heads, old.heads, "heads")
        if not heads_fit(heads):
            raise UserError(
                f"{heads} heads of {old.head_size} do not divide into groups of {old.group} and "
                f"blocks of {blocks['q']}{_instead(heads, heads_fit)}."
            )
        into = f"{heads} heads of {old.head_size}"
    if not width_fits(new_width):
        raise UserError(
            f"A width of {new_width} does not divide into {into} and blocks of {blocks['width']}"
            f"{_instead(new_width, width_fits)}."
        )
    if new_ffn % blocks["ffn"]:
        raise UserError(
            f"An FFN of {new_ffn} does not divide into this file's blocks of {blocks['ffn']}"
            f"{_instead(new_ffn, lambda n: n % blocks['ffn'] == 0)}."
        )
    new_heads = heads if heads is not None else _heads_for(old, new_width)
    new = Sizes(new_layers, new_width, new_heads, new_heads // old.group, old.head_size, new_ffn, old.vocab)
    if new == old:
        raise UserError(f"{source.path.name} has these sizes already: ask for more layers, width or FFN.")
    return new


def repeats_for(architecture: str, old: int, new: int) -> int:
    """How often the residual stream stands in one of width `new`, zeros aside, such that norms
    over it can be corrected exactly: by a power of four. 1 where no number does that.

    qwen3 norms Q and K too, by the same eps over the unchanged heads, so its eps should stay.
    """
    for n in range(1, new // old + 1):
        ratio, rest = divmod(new, n * old)
        if not rest and (ratio == 1 or (architecture != "qwen3" and _is_power_of_four(ratio))):
            return n
    return 1


def _is_power_of_four(n: int) -> bool:
    return n.bit_count() == 1 and n.bit_length() % 2 == 1


def row_block(tensor: Tensor) -> int:
    """Elements in one block of its type: rows are whole blocks."""
    return int(GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)][0])


def _heads_for(old: Sizes, width: int) -> int:
    """Heads in proportion to the width; 0 where that is no whole number."""
    heads, rest = divmod(width * old.heads, old.width)
    return 0 if rest else heads


def _at_least(asked: int | None, old: int, what: str) -> int:
    if asked is not None and asked < old:
        raise UserError(f"The model's {what} can only grow: {asked} is less than the {old} it has.")
    if asked is not None and asked > _MAX:
        raise UserError(f"No model has {asked} {what}: ask for less.")
    return old if asked is None else asked


def _instead(n: int, fits: Callable[[int], bool]) -> str:
    found = next((m for m in range(n + 1, n + _LOOK_AHEAD) if fits(m)), None)
    return "" if found is None else f": take {found}"


def _one(source: Source, name: str, default: int | None = None) -> int:
    """A key's value, which must be the same for all layers where it is a list."""
    value: Any = source.get(f"{{arch}}.{name}", default)
    if isinstance(value, list) and value:
        if len(set(value)) > 1:
            raise UserError(f"The layers of {source.path.name} differ in their {name}: such a model is not inflated.")
        value = value[0]
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{source.path} is damaged: its key {source.architecture}.{name} makes no sense.")
    return value
