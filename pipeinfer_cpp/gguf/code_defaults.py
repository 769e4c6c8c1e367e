"""What llama.cpp derives from the number of layers or from layer 0, written out for a slice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Set
from typing import Any

import numpy as np

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.constants import GGUFValueType
from pipeinfer_cpp.gguf.layers import Part

_U32, _F32 = int(GGUFValueType.UINT32), int(GGUFValueType.FLOAT32)


def written_out(part: Part, named: Set[str]) -> Iterator[tuple[str, int, Any, str]]:
    """Keys (without the architecture), their GGUF types, values and reasons, that the slice needs besides those
    `named`."""
    source, layers = part.source, part.layers
    arch = source.architecture

    def missing(name: str) -> bool:
        return f"{arch}.{name}" not in named

    heads = layers.get("attention.head_count")
    if isinstance(heads, list) and heads[0] and len(set(heads)) > 1:
        for name in ("attention.key_length", "attention.value_length"):
            if missing(name):
                yield name, _U32, source.n_embd // heads[0], "llama.cpp derives it from the model's first layer"
    if arch == "minicpm" and missing("residual_scale"):
        yield "residual_scale", _F32, 1.4 / source.n_layers**0.5, "minicpm.cpp derives it from the number of layers"
    if arch == "deepseek2" and missing("attention.q_lora_rank"):
        yield "attention.q_lora_rank", _U32, 0, "deepseek2.cpp knows the lite models by their number of layers"
    if arch == "deepseek2" and layers.get("expert_gating_func") in (None, 0):
        # as the code has it: GLM 4.7 Lite by its layers and vocabulary takes sigmoid, all others softmax
        sigmoid = layers.n in (47, 48) and source.n_vocab == 154880
        yield "expert_gating_func", _U32, 2 if sigmoid else 1, "deepseek2.cpp derives it from the number of layers"
    if layers.default_indexer is not None and missing("attention.indexer.types"):
        why = "glm-dsa.cpp counts them from layer 0"
        yield "attention.indexer.types", _U32, layers.default_indexer[part.within], why


def query_factor(part: Part) -> float:
    """What the queries of this slice have to be multiplied with.

    gemma2.cpp and gemma3.cpp recognise their 27B models by 46 and 62 layers, and scale the attention by the
    embedding's width over the heads instead of the head's size.
    """
    source, layers = part.source, part.layers
    special = {"gemma2": 46, "gemma3": 62}.get(source.architecture)
    if special is None or (layers.n == special) == (part.n_layers == special):
        return 1.0
    heads = layers.get("attention.head_count")
    n_head = heads[0] if isinstance(heads, list) and heads else heads
    if not isinstance(n_head, int) or not 0 < n_head <= source.n_embd:
        raise UserError(f"{source.path} is damaged: its number of attention heads makes no sense; fetch it again.")
    of_27b = np.float32(1) / np.sqrt(np.float32(source.n_embd // n_head))
    of_others = np.float32(1) / np.sqrt(np.float32(layers.get("attention.key_length", source.n_embd // n_head)))
    wanted, given = (of_27b, of_others) if layers.n == special else (of_others, of_27b)
    return float(wanted) / float(given)


def rounding_note(parts: Iterable[Part]) -> str:
    """A sentence where folding `query_factor` into weights rounds once more, "" where it loses no bit."""
    factors = [query_factor(part) for part in parts]
    if all(math.frexp(factor)[0] == 0.5 for factor in factors):
        return ""
    return (
        "The slices of this model agree with each other bit for bit, but differ from the uncut model in the last bits: "
        "llama.cpp takes its attention scale from the number of layers, and folding it into weights rounds once more."
    )
