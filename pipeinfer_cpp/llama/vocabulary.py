"""Text to token ids and back, by the vocabulary in a GGUF (no weights are loaded)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cached_property

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.llama.library import apart, lib, log_text, start
from pipeinfer_cpp.llama.pieces import Pieces


class Vocabulary:
    """Opened once for each model; `close` frees it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        start()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = apart(lib.llama_model_load_from_file, os.fsencode(path), params)
        if not self._model:
            raise UserError(f"llama.cpp could not read the vocabulary of {path}: {log_text(3)}")
        self.pointer = lib.llama_model_get_vocab(self._model)
        self.size: int = lib.llama_vocab_n_tokens(self.pointer)
        self.bos: int = lib.llama_vocab_bos(self.pointer)
        self.eos: int = lib.llama_vocab_eos(self.pointer)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(self.pointer)
        self._pieces: dict[int, bytes] = {}

    @cached_property
    def eog(self) -> frozenset[int]:
        """Token ids that end a generation."""
        return frozenset(t for t in range(self.size) if lib.llama_vocab_is_eog(self.pointer, t))

    @cached_property
    def pieces(self) -> Pieces:
        """What grammars need to know of it. Not to be used once this is closed."""
        return Pieces(self.pointer, self.size)

    def tokenize(self, text: str, *, begin: bool = False, special: bool = True) -> list[int]:
        """Token ids of the text. `begin`: with the model's own start token, where it wants one and the text does
        not begin with it (and never with an end token, which some models ask for: a text is to go on behind its
        prompt).
        `special`: names of control tokens in the text count as such."""
        self._check_open()
        data = text.encode()
        n_max = len(data) + 8
        buffer = (ctypes.c_int32 * n_max)()
        n = lib.llama_tokenize(self.pointer, data, len(data), buffer, n_max, begin, special)
        if n < 0:
            buffer = (ctypes.c_int32 * -n)()
            n = lib.llama_tokenize(self.pointer, data, len(data), buffer, -n, begin, special)
        tokens = list(buffer[:n])
        if begin and lib.llama_vocab_get_add_eos(self.pointer) and tokens[-1:] == [self.eos]:
            tokens.pop()  # llama.cpp appended it
        if begin and self.adds_bos and special and tokens[:2] == [self.bos, self.bos]:
            del tokens[0]  # the text has its own
        return tokens

    def begins(self, text: str) -> bool:
        """Whether the text brings the start token that the model would get anyway."""
        return self.adds_bos and self.tokenize(text[:256])[:1] == [self.bos]

    def control_tokens(self, names: Sequence[str]) -> frozenset[int]:
        """Those of the names that are a control token's: no text would ever show them."""
        found = (self.tokenize(name) for name in names)
        return frozenset(ids[0] for ids in found if len(ids) == 1 and not self.piece(ids[0]))

    def piece(self, token: int) -> bytes:
        """The token's bytes (control tokens give none)."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token, special=False)
        return known

    def name(self, token: int) -> str:
        """The token as it is written in templates, control tokens too."""
        return self._piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def text(self, tokens: Sequence[int]) -> str:
        return b"".join(self.piece(t) for t in tokens).decode("utf-8", "replace")

    def close(self) -> None:
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None

    def _check_open(self) -> None:
        """llama.cpp would end the process."""
        if not self._model:
            raise PipeInferError("This model was closed: open it again.")

    def _piece(self, token: int, special: bool) -> bytes:
        self._check_open()
        if not 0 <= token < self.size:
            raise PipeInferError(f"There is no token {token} in this vocabulary of {self.size}.")
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = lib.llama_token_to_piece(self.pointer, token, buffer, size, 0, special)
            if n >= 0:
                return bytes(buffer.raw[:n])
            size = -n
