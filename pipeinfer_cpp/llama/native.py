"""Ownership of llama.cpp samplers, and the candidate records that they work on."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.llama.library import lib

_RECORD = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Candidates:
    """llama.cpp's `llama_token_data_array` over up to `n_vocab` records that numpy sees too.

    A scratch pad: its content lasts until the next `fill`. One thread at a time.
    """

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self._every = np.arange(n_vocab, dtype=np.int32)
        self._records = np.zeros(n_vocab, _RECORD)
        self._id, self._logit = self._records["id"], self._records["logit"]
        self._array = lib.llama_token_data_array()
        data: Any = ctypes.c_void_p(self._records.ctypes.data)
        pointer: Any = ctypes.cast(data, ctypes.POINTER(lib.llama_token_data))
        self._array.data = pointer
        self._reference = ctypes.byref(self._array)

    def fill(self, ids: NDArray[Any] | None, logits: NDArray[np.float32] | float) -> None:
        """Take the tokens `ids` (None: all of the vocabulary) with their `logits`, in this order."""
        n = self.n_vocab if ids is None else len(ids)
        self._id[:n] = self._every if ids is None else ids
        self._logit[:n] = logits
        self._array.size, self._array.selected, self._array.sorted = n, -1, False

    def apply(self, sampler: Native) -> None:
        """Let `sampler` change, drop and reorder the records."""
        lib.llama_sampler_apply(sampler.pointer, self._reference)

    @property
    def ids(self) -> NDArray[np.int32]:
        """`int32[n]`, a view."""
        return self._id[: self._array.size]

    @property
    def logits(self) -> NDArray[np.float32]:
        """`float32[n]`, a view."""
        return self._logit[: self._array.size]


class Native:
    """One llama.cpp sampler, freed by `close()` or with this object. `alive` counts them all."""

    alive = 0

    def __init__(self, pointer: Any) -> None:
        if not pointer:
            raise ValueError("llama.cpp returned no sampler")
        self.pointer: Any = pointer
        Native.alive += 1

    @classmethod
    def chain(cls, *parts: Any) -> Native:
        """A chain that owns `parts` (pointers of fresh llama.cpp samplers)."""
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = cls(lib.llama_sampler_chain_init(params))
        for part in parts:
            lib.llama_sampler_chain_add(chain.pointer, part)
        return chain

    def accept(self, token: int) -> None:
        """Tell the sampler what was chosen. A grammar that forbids `token` ends the process here."""
        lib.llama_sampler_accept(self.pointer, token)

    def clone(self) -> Native:
        return Native(lib.llama_sampler_clone(self.pointer))

    def close(self) -> None:
        if self.pointer:
            lib.llama_sampler_free(self.pointer)
            self.pointer = None
            Native.alive -= 1

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.close()
