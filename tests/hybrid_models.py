"""Tiny hybrid models that speak: random weights, and the vocabulary of the other tiny models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType
from specimens import Arr, specimen
from tiny_models import CHATML, MERGES, SPECIALS, vocabulary

I32 = 5


def speaking(path: Path, name: str, kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0, **how: Any) -> Path:
    """The specimen of that name with a vocabulary; of one seed, models of two kinds say nearly the same."""
    tokens = vocabulary()
    found = specimen(name)
    keys = {k: v for k, v in found.keys.items() if not k.startswith("tokenizer.")}
    keys |= {
        f"{found.arch}.vocab_size": len(tokens),
        f"{found.arch}.context_length": 1024,
        "general.type": "model",
        "general.name": f"tiny {name}",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Arr([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)), I32),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }
    return dataclasses.replace(found, keys=keys).build(path, kind=kind, **how)
