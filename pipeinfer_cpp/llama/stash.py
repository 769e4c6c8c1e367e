"""Sequences moved out of a context's KV cache into this process's memory, and back in, bit for bit.

llama.cpp's state data leaves out cells that a sliding window hides from the sequence's end, also where the cache keeps
them: what came back could not be cut shorter. So a sequence is taken only where its state is whole.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.library import as_pointer, lib, log_text

ANY = 1 << 30
"""No sequence is too long."""


class Stash:
    """States of whole sequences, by number. Raises PipeInferError for whatever could not be put back as it was."""

    def __init__(self, context: SliceContext) -> None:
        self._context = context
        self._kept: dict[int, NDArray[np.uint8]] = {}

    @property
    def longest(self) -> int:
        """Positions of the longest sequence that can be taken, 0 where none can."""
        return 0 if self._context.checkpointed else self._context.window or ANY

    def put(self, number: int, seq: int, n: int) -> None:
        """The sequence, which holds `n` positions, is kept under this number; the cache has nothing of it any more."""
        context = self._context
        if n > self.longest or number in self._kept:
            raise PipeInferError(f"it cannot keep {n} positions of a conversation as state {number}")
        self._check(seq, n, "to be kept holds")
        size = lib.llama_state_seq_get_size(context.handle, seq)
        room = np.empty(size, np.uint8)
        got = lib.llama_state_seq_get_data(context.handle, as_pointer(room, ctypes.c_uint8), size, seq)
        if not size or got != size:
            raise PipeInferError(f"llama.cpp saved {got} of {size} bytes of a conversation: {log_text(3)}")
        self._kept[number] = room
        context.seq_rm(seq, 0, -1)

    def take(self, number: int, seq: int, n: int) -> None:
        """The sequence holds what was kept under this number, and nothing else; it is not kept any more."""
        if (room := self._kept.pop(number, None)) is None:
            raise PipeInferError(f"it keeps no conversation as state {number}")
        size = len(room)
        got = lib.llama_state_seq_set_data(self._context.handle, as_pointer(room, ctypes.c_uint8), size, seq)
        if got != size:
            raise PipeInferError(f"llama.cpp put back {got} of {size} bytes of a conversation: {log_text(3)}")
        self._check(seq, n, "that came back holds")

    def drop(self, number: int) -> None:
        """It is not needed any more."""
        if self._kept.pop(number, None) is None:
            raise PipeInferError(f"it keeps no conversation as state {number}")

    def _check(self, seq: int, n: int, what: str) -> None:
        if self._context.seq_span(seq) != (0, n - 1):
            first, last = self._context.seq_span(seq)
            raise PipeInferError(f"a conversation {what} positions {first} to {last} instead of 0 to {n - 1}")

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        return sum(len(room) for room in self._kept.values())
