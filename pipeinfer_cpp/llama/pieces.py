"""The text of a vocabulary's tokens, ordered by which starts with which."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.llama.library import lib


class Pieces:
    """What a grammar needs to know of a vocabulary. Tables are made on first use, once."""

    def __init__(self, vocab: Any, n_vocab: int) -> None:
        self.vocab, self.n_vocab = vocab, n_vocab
        self.guidance: Any = None
        """llguidance's tables, once they were asked for."""

    @cached_property
    def eog(self) -> NDArray[np.int32]:
        """Tokens that end a generation."""
        is_eog, vocab = lib.llama_vocab_is_eog, self.vocab
        return np.array([t for t in range(self.n_vocab) if is_eog(vocab, t)], np.int32)

    @cached_property
    def generations(self) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """All tokens with text but those of `eog`, each once, as (ids, parents), parents first.

        A parent is the longest other token that the token starts with; -1 in the first generation.
        """
        ends = set(self.eog.tolist())
        text = {t: piece for t, piece in enumerate(self.texts) if piece and t not in ends}
        by_text = {piece: t for t, piece in text.items()}
        depth: dict[int, int] = {-1: -1}
        found: list[tuple[list[int], list[int]]] = []
        for token in sorted(text, key=lambda t: len(text[t])):
            piece, parent = text[token], -1
            for n in range(len(piece) - 1, 0, -1):
                if (parent := by_text.get(piece[:n], -1)) >= 0:
                    break
            depth[token] = level = depth[parent] + 1
            if level == len(found):
                found.append(([], []))
            found[level][0].append(token)
            found[level][1].append(parent)
        return [(np.array(ids, np.int32), np.array(parents, np.int32)) for ids, parents in found]

    def marked(self) -> list[bytes]:
        """The text of each token, with the byte 255 before those of control tokens: they are no text."""
        attributes, vocab = lib.llama_vocab_get_attr, self.vocab
        user, control = lib.LLAMA_TOKEN_ATTR_USER_DEFINED, lib.LLAMA_TOKEN_ATTR_CONTROL
        found = []
        for token, text in enumerate(self.texts):
            kind = attributes(vocab, token)
            named = kind & user and text.startswith(b"<") and text.endswith(b">")
            found.append(b"\xff" + text if kind & control or named else text)
        return found

    @cached_property
    def texts(self) -> list[bytes]:
        """The text of each token, control tokens too."""
        to_piece, vocab, size = lib.llama_token_to_piece, self.vocab, 64
        buffer = ctypes.create_string_buffer(size)
        pieces: list[bytes] = []
        for token in range(self.n_vocab):
            n = to_piece(vocab, token, buffer, size, 0, True)
            if n < 0:  # the length it needs
                size = -n
                buffer = ctypes.create_string_buffer(size)
                n = to_piece(vocab, token, buffer, size, 0, True)
            pieces.append(buffer.raw[:n])
        return pieces
