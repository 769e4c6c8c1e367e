"""What each supported architecture needs when its layers are cut apart.

A rule stands here only when a test shows that chained slices of that architecture equal the whole
model. Whatever a rule does not name is refused: llama.cpp would load such a slice and compute
wrongly without a sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.refusals import why_refused
from pipeinfer_cpp.gguf.source import Source


@dataclass(frozen=True)
class Architecture:
    """The rules of one architecture, all read in llama.cpp's src/models/.

    `shared_tensors` have no layer number but belong to every layer. `head_tensors` belong to the
    output head only. `sliding` is true when layers alternate between a sliding window and full
    attention by a pattern. `q_scale(source, n_layers)` is the factor on the queries where
    llama.cpp derives it from the number of layers; None where it does not.
    """

    name: str
    shared_tensors: frozenset[str] = frozenset()
    head_tensors: frozenset[str] = frozenset({"output.weight", "output.scale", "output.input_scale"})
    sliding: bool = False
    q_scale: Callable[[Source, int], float] | None = None


def _gemma3_q_scale(source: Source, n_layers: int) -> float:
    """gemma3.cpp: the 27B model is recognised by its 62 layers, and scales by n_embd / n_head."""
    heads = source.get("{arch}.attention.head_count")
    n_head = heads[0] if isinstance(heads, list) and heads else heads
    if not isinstance(n_head, int) or not 0 < n_head <= source.n_embd:
        raise UserError(f"{source.path} is damaged: its number of attention heads makes no sense; fetch it again.")
    head_size = source.get("{arch}.attention.key_length", source.n_embd // n_head)
    return float(np.float32(1) / np.sqrt(np.float32(source.n_embd // n_head if n_layers == 62 else head_size)))


_ROPE = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
_HEAD = Architecture("").head_tensors

SUPPORTED = {
    rules.name: rules
    for rules in (
        Architecture("llama", shared_tensors=_ROPE),
        Architecture("qwen2", head_tensors=_HEAD | {"output.bias"}),
        Architecture("qwen3"),
        Architecture("qwen3moe"),
        Architecture("gemma3", sliding=True, q_scale=_gemma3_q_scale),
    )
}
"""The architectures that a test proves. llama: also Mistral, Mixtral, TinyLlama, SmolLM2."""

PER_LAYER_KEYS = frozenset(
    {
        "feed_forward_length",
        "expert_feed_forward_length",
        "expert_used_count",
        "attention.head_count",
        "attention.head_count_kv",
    }
)
"""Keys that llama.cpp reads as one value or as a list of one value a layer (`get_key_or_arr`)."""

SWA_PATTERN, SWA_WINDOW = "attention.sliding_window_pattern", "attention.sliding_window"


def rules_for(source: Source) -> Architecture:
    """The rules for a source. Raises UserError, with the reason, for an architecture or a variant
    of one that no test covers."""
    name = source.architecture
    if name not in SUPPORTED:
        known = ", ".join(sorted(SUPPORTED))
        raise UserError(f"Models of architecture {name!r} cannot be cut: {why_refused(name)} (supported: {known}).")
    if source.get("{arch}.attention.causal") is False:
        raise UserError(f"{source.path} reads whole texts at once (its attention is not causal): it cannot be cut.")
    if source.get("{arch}.nextn_predict_layers"):
        raise UserError(f"{source.path} has layers that predict several tokens at once, which cannot be cut yet.")
    return SUPPORTED[name]
