"""Checkpoints of a memory that cannot give back a part of a sequence.

Recurrent and hybrid models keep a state that each token writes over. llama.cpp's own `seq_rm` behind `n_rs_seq`
and its `seq_cp` of a range answer that all went well and compute garbage; its partial state data is exact. So the
state is saved before a run, and restored when the run turns out wrong or was aborted half way.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.library import as_pointer, lib, log_text

_PARTIAL = 1
"""LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: what no cell holds, and no more."""


class Checkpoints:
    """States of a context's sequences, by number (any small one). A number's memory is used again."""

    def __init__(self, context: SliceContext) -> None:
        self._context = context
        self._states: dict[int, tuple[NDArray[np.uint8], int]] = {}

    def save(self, state: int, seq: int = 0) -> None:
        """Keep the sequence's state as it is now."""
        ctx = self._context.handle
        if self._context.seq_span(seq)[1] < 0:
            self._states[state] = np.empty(0, np.uint8), 0  # nothing yet: `restore` empties it
            return
        size = lib.llama_state_seq_get_size_ext(ctx, seq, _PARTIAL)
        room = self._states.get(state, (np.empty(0, np.uint8), 0))[0]
        if len(room) < size:
            room = np.empty(size, np.uint8)
        got = lib.llama_state_seq_get_data_ext(ctx, as_pointer(room, ctypes.c_uint8), size, seq, _PARTIAL)
        if got != size:
            raise PipeInferError(f"llama.cpp saved {got} of {size} bytes of its state: {log_text(3)}")
        self._states[state] = room, size

    def restore(self, state: int, pos: int, seq: int = 0) -> None:
        """The state as it was saved, and no attention cells from position `pos` on, where it was saved."""
        room, size = self._states[state]
        if not size:
            self._context.seq_rm(seq, 0, -1)
            return
        ctx = self._context.handle
        if lib.llama_state_seq_set_data_ext(ctx, as_pointer(room, ctypes.c_uint8), size, seq, _PARTIAL) != size:
            raise PipeInferError(f"llama.cpp could not restore {size} bytes of its state: {log_text(3)}")
        self._context.seq_rm(seq, pos, -1)

    @property
    def bytes(self) -> int:
        """Of all states."""
        return sum(len(room) for room, _ in self._states.values())
