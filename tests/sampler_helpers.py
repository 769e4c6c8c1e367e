"""What the sampler tests share: the demo models and logits made from a path of tokens."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipeinfer_cpp
from pipeinfer_cpp.llama.library import lib, start
from pipeinfer_cpp.llama.pieces import Pieces

DEMO = Path(pipeinfer_cpp.__file__).parent / "models" / "demo"
TARGET = DEMO / "demo-target-q8_0.gguf"
DRAFT = DEMO / "demo-draft-q8_0.gguf"


@functools.cache
def demo_vocab() -> tuple[Any, int, Pieces]:
    """The target's vocabulary (loaded without weights, for the whole test run), its size, its pieces."""
    start()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(TARGET).encode(), params)
    vocab = lib.llama_model_get_vocab(model)
    n_vocab = lib.llama_vocab_n_tokens(vocab)
    return vocab, n_vocab, Pieces(vocab, n_vocab)


def tokens_of(text: str) -> list[int]:
    raw = text.encode()
    found = (ctypes.c_int32 * (len(raw) + 8))()
    n = lib.llama_tokenize(demo_vocab()[0], raw, len(raw), found, len(found), False, True)
    return list(found[:n])


def piece_of(token: int) -> bytes:
    buffer = ctypes.create_string_buffer(256)
    n = lib.llama_token_to_piece(demo_vocab()[0], token, buffer, 256, 0, True)
    return buffer.raw[:n]


def text_of(tokens: list[int], errors: str = "strict") -> str:
    vocab = demo_vocab()[0]
    return b"".join(piece_of(t) for t in tokens if not lib.llama_vocab_is_eog(vocab, t)).decode(errors=errors)


def logits_after(path: tuple[int, ...], favoured: tuple[int, ...] = ()) -> NDArray[np.float32]:
    """Logits that depend on the path alone, with some of the tokens `favoured` near the top."""
    rng = np.random.default_rng([len(path), *path])
    logits = (rng.normal(size=demo_vocab()[1]) * 2).astype(np.float32)
    if favoured:
        chosen = rng.choice(favoured, min(3, len(favoured)), replace=False)
        logits[chosen] += rng.uniform(6, 9, len(chosen)).astype(np.float32)
    return logits
