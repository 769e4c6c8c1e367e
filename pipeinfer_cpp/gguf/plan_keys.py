"""The metadata of a slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.architectures import row_width
from pipeinfer_cpp.gguf.code_defaults import written_out
from pipeinfer_cpp.gguf.constants import GGUFValueType
from pipeinfer_cpp.gguf.encoding import STRING, encode_array, encode_value
from pipeinfer_cpp.gguf.header import Key
from pipeinfer_cpp.gguf.layers import SWA_PATTERN, SWA_WINDOW, Part
from pipeinfer_cpp.gguf.steps import ADDED, COPIED, LEFT_OUT, REWRITTEN, KeyStep

SLICER_VERSION = 4
"""Goes up whenever the same layers of the same source would be written otherwise."""
SLICER = "pipeinfer.slice.slicer"
SOURCE_SHA256 = "pipeinfer.slice.source_sha256"
UNKNOWN = "0" * 64
"""Stands for the source's hash until that is known, in as many bytes."""

_U32, _BOOL = int(GGUFValueType.UINT32), int(GGUFValueType.BOOL)
_TOKENIZER = "tokenizer.ggml.model"
_EXTRA_NAMES, _EXTRA_VALUES = "general.tensor_extra.name", "general.tensor_extra.prec_a4"

PER_LAYER = frozenset(
    {
        "feed_forward_length",
        "expert_feed_forward_length",
        "expert_used_count",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.sliding_window_pattern",
        "attention.recurrent_layers",
        "attention.compress_ratios",
        "attention.indexer.types",
        "attention.rope_pattern",
        "swiglu_clamp_exp",
        "swiglu_clamp_shexp",
        "deepstack_mapping",
    }
)
"""Keys that llama.cpp reads as a list of one value a layer (or as one value for all)."""

PER_LAYER_OF_ALL = frozenset({"xielu.alpha_n", "xielu.alpha_p", "xielu.beta", "xielu.eps"})
"""The same, without an architecture's name before them."""

NO_LAYERS = ("rope.dimension_sections", "ple.")
"""Beginnings of keys whose lists are never one value a layer, however long they are."""

_ALIKE = "holds for every layer"


def plan_keys(part: Part, renamed: Mapping[str, str]) -> list[KeyStep]:
    """One step for each key of the source, then the added ones.

    `renamed` maps the source's tensor names to those in the slice, for keys that list tensors.
    """
    steps = [_step(part, key, renamed) for key in part.source.keys.values()]
    if part.is_whole:
        return steps
    named = {step.name for step in steps if step.action != LEFT_OUT}
    if not part.gives_logits and _TOKENIZER not in named:
        steps.append(_tokenizer_step(part, None))
    for name, make in _MADE.items():
        if f"{part.source.architecture}.{name}" not in named:
            added = make(part, None)
            steps += [added] if added else []
    for name, kind, value, why in written_out(part, named):
        data = encode_array(kind, value) if isinstance(value, list) else encode_value(kind, value)
        full = f"{part.source.architecture}.{name}"
        steps = [step for step in steps if step.name != full]
        steps.append(_made(full, part.source.keys.get(full), why, data))
    return steps + _description(part)


def _description(part: Part) -> list[KeyStep]:
    """What the slice says of itself: see `llama.context.SliceContext`."""
    rules, n = part.rules, part.n_layers
    values: list[tuple[str, int | str, str]] = [
        ("first_layer", part.first, "says what was cut"),
        ("end_layer", part.end, "says what was cut"),
        ("of_layers", part.source.n_layers, "says what was cut"),
        ("width", row_width(part.source), "floats in a row of hidden states"),
        ("slicer", SLICER_VERSION, "a stage that is given the file must cut the same"),
        ("source_sha256", UNKNOWN, "says of which file it is a slice; filled in when that has been read"),
    ]
    if not part.takes_tokens:
        values.append(("reads", rules.reads, "hidden states are written over this node of the graph"))
        if part.layers.per_layer_input:
            why = "behind this node the embedding is needed again, for the inputs of each layer"
            values.append(("restored_at", "attn_out-0", why))
    if not part.gives_logits:
        values.append(("gives", rules.gives.format(n - 1), "hidden states are taken at this node of the graph"))
    return [
        KeyStep(f"pipeinfer.slice.{name}", ADDED, why, data=encode_value(STRING if isinstance(v, str) else _U32, v))
        for name, v, why in values
    ]


def _step(part: Part, key: Key, renamed: Mapping[str, str]) -> KeyStep:
    if key.name.startswith("split."):
        return KeyStep(key.name, LEFT_OUT, "the slice is one file, whatever the source's parts", key)
    if part.is_whole:
        return KeyStep(key.name, COPIED, "the slice is the whole model", key)
    if key.name.startswith("tokenizer."):
        return _vocabulary_step(part, key)
    if key.name in (_EXTRA_NAMES, _EXTRA_VALUES):
        return _extra_step(part, key, renamed)
    if key.name in PER_LAYER_OF_ALL:
        return _list_step(part, key) if key.is_array else KeyStep(key.name, COPIED, _ALIKE, key)
    arch, _, rest = key.name.partition(".")
    if arch == part.source.architecture:
        return _arch_step(part, key, rest)
    return KeyStep(key.name, COPIED, "says nothing of layers", key)


def _vocabulary_step(part: Part, key: Key) -> KeyStep:
    if part.gives_logits:
        return KeyStep(key.name, COPIED, "the sampler and its grammar read the vocabulary", key)
    if key.name == _TOKENIZER:
        return _tokenizer_step(part, key)
    return KeyStep(key.name, LEFT_OUT, "only the last slice needs the vocabulary", key)


def _tokenizer_step(_part: Part, key: Key | None) -> KeyStep:
    return _made(_TOKENIZER, key, "no vocabulary here", encode_value(STRING, "no_vocab"))


def _arch_step(part: Part, key: Key, rest: str) -> KeyStep:
    if rest in _MADE:
        made = _MADE[rest](part, key)
        if made is not None:
            return made
    if rest in _REWRITTEN:
        return _REWRITTEN[rest](part, key)
    if rest.startswith("ple.") and not any(part.first <= i < part.end for i in part.layers.with_id_tables):
        return KeyStep(key.name, LEFT_OUT, "no layer here reads tables by token ids", key)
    if not key.is_array or rest.startswith(NO_LAYERS):
        return KeyStep(key.name, COPIED, _ALIKE, key)
    if rest in PER_LAYER:
        return _list_step(part, key)
    if key.count in _lengths(part):
        raise UserError(
            f"{part.source.path} has a list {key.name} of one value a layer, which no rule covers: "
            "its slices could compute wrongly, so it is not cut."
        )
    return KeyStep(key.name, COPIED, _ALIKE, key)


def _lengths(part: Part) -> tuple[int, int]:
    return part.source.n_layers, part.source.n_layers + part.source.n_layers_beyond


def _list_step(part: Part, key: Key) -> KeyStep:
    values = key.read()
    if len(values) < part.source.n_layers:
        raise UserError(
            f"{part.source.path} is damaged: {key.name} has {len(values)} values, not {part.source.n_layers}."
        )
    assert key.item_kind is not None
    data = encode_array(key.item_kind, values[part.within])
    return KeyStep(key.name, REWRITTEN, "one value a layer: those of the slice", key, data)


# Keys that a slice gets even where the source has none. None: the key stays as it is, or is not needed.


def _vocab_size(part: Part, key: Key | None) -> KeyStep:
    n = part.source.tensors["token_embd.weight"].shape[1]
    return _made(part.source.architecture + ".vocab_size", key, "bounds the token ids", encode_value(_U32, n))


def _window_pattern(part: Part, key: Key | None) -> KeyStep | None:
    windows = part.layers.windows
    name = f"{part.source.architecture}.{SWA_PATTERN}"
    if not windows:
        return None
    if not any(windows[part.within]) and not part.rules.window_in_each:
        why = "no layer here slides, and llama.cpp asserts that one does"
        return KeyStep(name, LEFT_OUT, why, key) if key else None
    why = "the pattern counts from layer 0: written out layer by layer"
    return _made(name, key, why, encode_array(_BOOL, windows[part.within]))


def _recurrent_layers(part: Part, key: Key | None) -> KeyStep | None:
    if not part.layers.recurrent:
        return None
    values = [int(v) for v in part.layers.recurrent[part.within]]
    why = "the interval counts from layer 0: written out layer by layer"
    return _made(f"{part.source.architecture}.attention.recurrent_layers", key, why, encode_array(_U32, values))


_MADE: dict[str, Callable[[Part, Key | None], KeyStep | None]] = {
    "vocab_size": _vocab_size,
    SWA_PATTERN: _window_pattern,
    "attention.recurrent_layers": _recurrent_layers,
}


# Keys that change only where the source has them.


def _block_count(part: Part, key: Key) -> KeyStep:
    return _made(key.name, key, "the slice's layers", encode_value(key.kind, part.n_layers))


def _zero(why: str) -> Callable[[Part, Key], KeyStep]:
    return lambda part, key: _made(key.name, key, why, encode_value(key.kind, 0))


def _leading(part: Part, key: Key) -> KeyStep:
    n = min(max(0, int(key.value) - part.first), part.n_layers)
    return _made(key.name, key, "counts the leading layers: those of the slice", encode_value(key.kind, n))


def _interval(part: Part, key: Key) -> KeyStep:
    if part.layers.recurrent:
        return KeyStep(key.name, LEFT_OUT, "written out in attention.recurrent_layers", key)
    return KeyStep(key.name, COPIED, _ALIKE, key)


def _window(part: Part, key: Key) -> KeyStep:
    windows = part.layers.windows
    if windows and not any(windows[part.within]) and not part.rules.window_in_each:
        return KeyStep(key.name, LEFT_OUT, "no layer here slides, and llama.cpp asserts that one does", key)
    return KeyStep(key.name, COPIED, _ALIKE, key)


def _id_tables(part: Part, key: Key) -> KeyStep:
    kept = [i - part.first for i in key.read() if part.first <= i < part.end]
    if not kept:
        return KeyStep(key.name, LEFT_OUT, "no layer here reads tables by token ids", key)
    assert key.item_kind is not None
    return _made(key.name, key, "numbers of layers: as they are in the slice", encode_array(key.item_kind, kept))


def _shared_cache(part: Part, key: Key) -> KeyStep:
    n = max(0, part.end - max(part.first, part.layers.n_own_cache))
    return _made(key.name, key, "counts the last layers: those of the slice", encode_value(key.kind, n))


_REWRITTEN: dict[str, Callable[[Part, Key], KeyStep]] = {
    "block_count": _block_count,
    "nextn_predict_layers": _zero("layers that predict several tokens at once are left out"),
    "n_deepstack_layers": _zero("pictures are not read, and their rows make the embedding wider"),
    "leading_dense_block_count": _leading,
    "hash_layer_count": _leading,
    "full_attention_interval": _interval,
    SWA_WINDOW: _window,
    "ple.layers": _id_tables,
    "attention.shared_kv_layers": _shared_cache,
}


def _made(name: str, key: Key | None, why: str, data: bytes) -> KeyStep:
    return KeyStep(name, REWRITTEN if key else ADDED, why, key, data)


def _extra_step(part: Part, key: Key, renamed: Mapping[str, str]) -> KeyStep:
    """Two lists of llama.cpp side by side: names of tensors, and a flag for each."""
    names: Sequence[str] = part.source.get(_EXTRA_NAMES, [])
    kept = [(renamed[name], i) for i, name in enumerate(names) if name in renamed]
    values: list[Any] = [name for name, _ in kept]
    if key.name == _EXTRA_VALUES:
        flags = key.read()
        values = [flags[i] for _, i in kept]
    assert key.item_kind is not None
    step = KeyStep(key.name, REWRITTEN, "names tensors: those of the slice, by their names here", key)
    return replace(step, data=encode_array(key.item_kind, values))
