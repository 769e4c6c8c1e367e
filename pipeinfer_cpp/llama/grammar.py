"""GBNF grammars, and the state of one at a point of the text."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.gbnf import GrammarError, read_gbnf
from pipeinfer_cpp.llama.library import lib, log_text, start
from pipeinfer_cpp.llama.native import Candidates, Native
from pipeinfer_cpp.llama.pieces import Pieces
from pipeinfer_cpp.sampling import Sampling


def grammar_text(sampling: Sampling) -> str | None:
    """The checked GBNF that `sampling` asks for, or None. Raises UserError for an invalid grammar.

    Needs no model. What it lets pass, llama.cpp parses without harm.
    """
    if sampling.grammar is not None:
        _read(sampling.grammar)
    return sampling.grammar


def _read(text: str) -> Any:
    try:
        return read_gbnf(text)
    except GrammarError as error:
        raise UserError(f"invalid grammar: {error}.") from error


class Grammar:
    """A grammar at one point of a text: which tokens it allows next."""

    def __init__(self, pieces: Pieces, candidates: Candidates, text: str) -> None:
        start()
        self._pieces, self._candidates = pieces, candidates
        read = _read(text)
        for token in read.token_texts:
            found, name = (ctypes.c_int32 * 2)(), token.encode()
            if lib.llama_tokenize(pieces.vocab, name, len(name), found, 2, False, True) != 1:
                raise UserError(f"invalid grammar: the vocabulary has no token {token}.")
        self._has_tokens: bool = read.has_tokens
        pointer = lib.llama_sampler_init_grammar(pieces.vocab, text.encode(), b"root")
        if not pointer:
            raise UserError(f"invalid grammar: {log_text(1) or 'llama.cpp cannot parse it'}.")
        self._native = Native(pointer)

    def allowed(self, ids: NDArray[Any]) -> NDArray[np.int32]:
        """Those of the token `ids` that may come next, in their order."""
        self._candidates.fill(ids, 0.0)
        self._candidates.apply(self._native)
        allowed: NDArray[np.int32] = self._candidates.ids[self._candidates.logits == 0.0]
        return allowed

    def all_allowed(self) -> NDArray[np.int32]:
        """All tokens that may come next, ascending.

        A token is allowed only if the longest other token that it starts with is, which spares most
        of the vocabulary the check (unless the grammar names tokens themselves).
        """
        pieces = self._pieces
        if self._has_tokens:
            return self.allowed(np.arange(pieces.n_vocab, dtype=np.int32))
        open_ = np.zeros(pieces.n_vocab + 1, np.bool_)
        open_[-1] = True  # the parent of the first generation
        for ids, parents in pieces.generations:
            open_[self.allowed(ids[open_[parents]])] = True
        open_[self.allowed(pieces.eog)] = True
        return np.flatnonzero(open_[:-1]).astype(np.int32)

    def accept(self, token: int) -> bool:
        """Go on by `token`. False, and no change, when the grammar forbids it (llama.cpp would end the process)."""
        if not len(self.allowed(np.array([token], np.int32))):
            return False
        self._native.accept(token)
        return True

    def clone(self) -> Grammar:
        other = object.__new__(Grammar)
        other.__dict__.update(self.__dict__)
        other._native = self._native.clone()
        return other

    def close(self) -> None:
        self._native.close()
