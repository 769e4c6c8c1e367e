"""The metadata of a slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.architectures import PER_LAYER_KEYS, SWA_PATTERN, SWA_WINDOW
from pipeinfer_cpp.gguf.encoding import STRING, encode_array, encode_value
from pipeinfer_cpp.gguf.header import Key
from pipeinfer_cpp.gguf.steps import ADDED, COPIED, LEFT_OUT, REWRITTEN, KeyStep, Part

_U32, _BOOL = int(GGUFValueType.UINT32), int(GGUFValueType.BOOL)
_TOKENIZER = "tokenizer.ggml.model"
_EXTRA_NAMES, _EXTRA_VALUES = "general.tensor_extra.name", "general.tensor_extra.prec_a4"
_DEFAULT_PERIOD = 6
"""gemma3.cpp: every sixth layer has full attention, where the file does not say otherwise."""


def plan_keys(part: Part, renamed: Mapping[str, str]) -> list[KeyStep]:
    """One step for each key of the source, then the added ones.

    `renamed` maps the source's tensor names to those in the slice, for keys that list tensors.
    """
    steps = [_step(part, key, renamed) for key in part.source.keys.values()]
    arch = part.rules.name
    named = {step.name for step in steps if step.action != LEFT_OUT}
    if part.is_whole:
        return steps
    if not part.gives_logits:
        if _TOKENIZER not in named:
            steps.append(_tokenizer_step(None))
        if f"{arch}.vocab_size" not in named:
            steps.append(_vocab_step(part, None))
    if part.rules.sliding and f"{arch}.{SWA_PATTERN}" not in named and f"{arch}.{SWA_WINDOW}" in named:
        steps.append(_pattern_step(part, None))
    for name, value in (("first_layer", part.first), ("end_layer", part.end), ("of_layers", part.source.n_layers)):
        data = encode_value(_U32, value)
        steps.append(KeyStep(f"pipeinfer.slice.{name}", ADDED, "says what was cut", data=data))
    if not part.takes_tokens:
        node = "inp_scaled" if arch == "gemma3" else "embd"
        data = encode_value(STRING, node)
        steps.append(KeyStep("pipeinfer.slice.reads", ADDED, "hidden states are written over this node", data=data))
    if not part.gives_logits:
        data = encode_value(STRING, f"l_out-{part.n_layers - 1}")
        steps.append(KeyStep("pipeinfer.slice.gives", ADDED, "hidden states are taken from this node", data=data))
    data = encode_value(_U32, part.source.n_embd)
    steps.append(KeyStep("pipeinfer.slice.width", ADDED, "floats in a row of hidden states", data=data))
    return steps


def _step(part: Part, key: Key, renamed: Mapping[str, str]) -> KeyStep:
    if key.name.startswith("split."):
        return KeyStep(key.name, LEFT_OUT, "the slice is one file, whatever the source's parts", key)
    if part.is_whole:
        return KeyStep(key.name, COPIED, "the slice is the whole model", key)
    if key.name.startswith("tokenizer."):
        return _vocabulary_step(part, key)
    if key.name in (_EXTRA_NAMES, _EXTRA_VALUES):
        return _extra_step(part, key, renamed)
    arch, _, rest = key.name.partition(".")
    if arch == part.rules.name:
        return _arch_step(part, key, rest)
    return KeyStep(key.name, COPIED, "says nothing of layers", key)


def _vocabulary_step(part: Part, key: Key) -> KeyStep:
    if part.gives_logits:
        return KeyStep(key.name, COPIED, "the sampler and its grammar read the vocabulary", key)
    if key.name == _TOKENIZER:
        return _tokenizer_step(key)
    return KeyStep(key.name, LEFT_OUT, "only the last slice needs the vocabulary", key)


def _tokenizer_step(key: Key | None) -> KeyStep:
    action = REWRITTEN if key else ADDED
    return KeyStep(_TOKENIZER, action, "no vocabulary here", key, encode_value(STRING, "no_vocab"))


def _vocab_step(part: Part, key: Key | None) -> KeyStep:
    """Without a vocabulary llama.cpp takes the embedding's number of rows from this key."""
    n, why = part.source.tensors["token_embd.weight"].shape[1], "bounds the token ids"
    action = REWRITTEN if key else ADDED
    return KeyStep(f"{part.rules.name}.vocab_size", action, why, key, encode_value(_U32, n))


def _arch_step(part: Part, key: Key, rest: str) -> KeyStep:
    n_source = part.source.n_layers
    if rest == "block_count":
        return KeyStep(key.name, REWRITTEN, "the slice's layers", key, encode_value(key.kind, part.n_layers))
    if rest == "vocab_size" and not part.gives_logits:
        return _vocab_step(part, key)
    if part.rules.sliding and rest in (SWA_PATTERN, SWA_WINDOW):
        return _sliding_step(part, key, rest)
    if key.is_array and rest in PER_LAYER_KEYS:
        values = key.read()
        if len(values) != n_source:
            raise UserError(f"{part.source.path} is damaged: {key.name} has {len(values)} values, not {n_source}.")
        assert key.item_kind is not None
        data = encode_array(key.item_kind, values[part.first : part.end])
        return KeyStep(key.name, REWRITTEN, "one value a layer: those of the slice", key, data)
    if key.is_array and key.count == n_source:
        raise UserError(
            f"{part.source.path} has a list {key.name} of one value a layer, which the rules for {part.rules.name} "
            "do not cover: its slices could compute wrongly, so it is not cut."
        )
    return KeyStep(key.name, COPIED, "holds for every layer", key)


def _sliding_step(part: Part, key: Key, rest: str) -> KeyStep:
    pattern = sliding_layers(part)
    if not pattern:
        return KeyStep(key.name, COPIED, "no sliding window is in use", key)
    if not any(pattern[part.first : part.end]):
        return KeyStep(key.name, LEFT_OUT, "no layer here slides, and llama.cpp asserts that one does", key)
    if rest == SWA_WINDOW:
        return KeyStep(key.name, COPIED, "holds for every sliding layer", key)
    return _pattern_step(part, key)


def _pattern_step(part: Part, key: Key | None) -> KeyStep:
    data = encode_array(_BOOL, sliding_layers(part)[part.first : part.end])
    why = "the pattern counts from layer 0: written out layer by layer"
    return KeyStep(f"{part.rules.name}.{SWA_PATTERN}", REWRITTEN if key else ADDED, why, key, data)


def sliding_layers(part: Part) -> list[bool]:
    """Which layers of the source have a sliding window; [] where the window is off."""
    get, n_layers = part.source.get, part.source.n_layers
    if not get(f"{{arch}}.{SWA_WINDOW}"):
        return []
    pattern: Any = get(f"{{arch}}.{SWA_PATTERN}", _DEFAULT_PERIOD)
    if isinstance(pattern, list):
        if len(pattern) < n_layers:
            raise UserError(f"{part.source.path} is damaged: its sliding-window pattern is shorter than its layers.")
        return [bool(v) for v in pattern[:n_layers]]
    return [pattern == 0 or i % pattern < pattern - 1 for i in range(n_layers)]


def _extra_step(part: Part, key: Key, renamed: Mapping[str, str]) -> KeyStep:
    """Two lists of llama.cpp side by side: names of tensors, and a flag for each."""
    names = part.source.get(_EXTRA_NAMES, [])
    kept = [(renamed[name], i) for i, name in enumerate(names) if name in renamed]
    values: list[Any] = [name for name, _ in kept]
    if key.name == _EXTRA_VALUES:
        flags = key.read()
        values = [flags[i] for _, i in kept]
    assert key.item_kind is not None
    step = KeyStep(key.name, REWRITTEN, "names tensors: those of the slice, by their names here", key)
    return replace(step, data=encode_array(key.item_kind, values))
