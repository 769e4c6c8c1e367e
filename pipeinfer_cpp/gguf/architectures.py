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
    n_head = int(heads[0] if isinstance(heads, list) else heads)
    head_size = int(source.get("{arch}.attention.key_length", source.n_embd // n_head))
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

_RECURRENT = frozenset(
    "mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7 jamba falcon-h1 granitehybrid nemotron_h nemotron_h_moe lfm2 lfm2moe "
    "plamo2 plamo3 qwen3next qwen35 qwen35moe kimi-linear minimax-01 bailingmoe3".split()
)
_PER_TOKEN = frozenset({"gemma3n", "gemma4"})
_SCALED = frozenset({"gemma", "gemma2", "afmoe", "minicpm", "granite", "granitemoe", "grok"})
_PATTERNED = frozenset({"gpt-oss", "cohere2", "exaone4", "phi3", "smollm3", "llama4", "olmo2"})
_NO_DECODER = frozenset(
    "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert gemma-embedding "
    "llama-embed t5 t5encoder clip wavtokenizer-dec".split()
)
_REASONS = (
    (_RECURRENT, "its recurrent state cannot be rolled back after a rejected draft"),
    (_PER_TOKEN, "its layers need the token ids too, and a later stage gets only hidden states"),
    (_SCALED, "llama.cpp scales hidden states again where a slice takes them in, and no rule undoes that yet"),
    (_PATTERNED, "its layers differ by their number, and no rule rewrites that pattern for a slice yet"),
    (_NO_DECODER, "it does not generate text token by token"),
)


def rules_for(source: Source) -> Architecture:
    """The rules for a source. Raises UserError, with the reason, for an architecture or a variant
    of one that no test covers."""
    name = source.architecture
    if name not in SUPPORTED:
        reason = next((why for names, why in _REASONS if name in names), "no test proves its slices right")
        known = ", ".join(sorted(SUPPORTED))
        raise UserError(f"Models of architecture {name!r} cannot be cut yet: {reason} (supported: {known}).")
    if source.get("{arch}.attention.causal") is False:
        raise UserError(f"{source.path} reads whole texts at once (its attention is not causal): it cannot be cut.")
    if source.get("{arch}.nextn_predict_layers"):
        raise UserError(f"{source.path} has layers that predict several tokens at once, which cannot be cut yet.")
    return SUPPORTED[name]
