"""Where hidden states enter a slice's graph, and where they leave it.

A slice computes what the whole model's graph does between two of its nodes. The eval callback of llama.cpp is asked
about every node by its name: over the one that layer 0 reads the hidden states are written once it is
computed, and behind the last layer they are taken out and the graph stops, which skips the final norm and head.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.llama.library import TENSOR_NAME_OFFSET, ggml, lib
from pipeinfer_cpp.llama.node_values import NodeValues

_ATTENDED = b"kqv_out-0\0"
"""The node of layer 0 by which its KV cells are written, where it has any."""


class GraphNodes:
    """`reads`: the node to be written over, None for the first slice. `gives`: the node to be taken, None
    for the last. Behind the node `restored_at` the first gets the value back that it computed itself
    (Gemma 4 E: its inputs of each layer are made from the embedding)."""

    def __init__(self, reads: str | None, gives: str | None, restored_at: str | None = None) -> None:
        self._gives_name, self._reads_name = gives, reads
        entry, exit_, back = (name.encode() + b"\0" if name else b"" for name in (reads, gives, restored_at))
        names = tuple(name for name in (entry, exit_, back) if name)
        longest, at, string_at = max(map(len, (*names, _ATTENDED))), TENSOR_NAME_OFFSET, ctypes.string_at
        self._names = self._asked = names
        self._only_cells = False
        self._seen: NodeValues | None = None
        self._hidden: NDArray[np.float32] | None = None
        self._own = np.empty(0, np.float32)
        self._written = self._taken = 0

        # This runs once a node, some hundred times a decode: no more than a comparison of bytes.
        def callback(tensor: int, ask: bool, _data: Any) -> bool:
            name = string_at(tensor + at, longest)
            if ask:
                return name.startswith(self._asked) or (self._seen is not None and self._seen.wants(tensor))
            if self._seen is not None:
                self._seen.see(tensor)
            if (exit_ and name.startswith(exit_)) or (self._only_cells and name.startswith(_ATTENDED)):
                self._taken = tensor
                return False
            if entry and name.startswith(entry):
                self._write(tensor, keep=bool(back))
            elif self._written and back and name.startswith(back):
                ggml().ggml_backend_tensor_set(self._written, self._own.ctypes.data, 0, self._own.nbytes)
            return True

        self.callback = lib.ggml_backend_sched_eval_callback(callback)

    def watch(self, values: NodeValues | None) -> None:
        """Keep what the nodes of the following decodes give, too; None: no longer. Each is computed by itself then,
        which takes longer."""
        self._seen = values

    def arm(self, hidden: NDArray[np.float32] | None, *, only_cells: bool = False) -> None:
        """Before each decode: the hidden states of its rows, None on the first slice. `only_cells`: stop behind the
        attention of layer 0."""
        self._only_cells = only_cells
        self._asked = (*self._names, _ATTENDED) if only_cells else self._names
        if self._reads_name is not None:
            if hidden is None:
                raise ValueError("this slice needs the hidden states of the one before it")
            self._hidden = np.ascontiguousarray(hidden, np.float32)
        self._written = self._taken = 0

    def check(self) -> None:
        """Behind each decode: raise PipeInferError when a node was not there, or of another size."""
        if self._reads_name is not None and not self._written:
            raise self._missing(self._reads_name)
        if self._gives_name is not None and not self._taken:
            raise self._missing(self._gives_name)

    def take(self, n: int, width: int) -> NDArray[np.float32]:
        """The hidden states behind the last layer, `float32[n, width]`."""
        if ggml().ggml_nelements(self._taken) != n * width:
            raise self._missing(str(self._gives_name))
        out = np.empty((n, width), np.float32)
        ggml().ggml_backend_tensor_get(self._taken, out.ctypes.data, 0, out.nbytes)
        return out

    def _write(self, tensor: int, keep: bool) -> None:
        hidden = self._hidden
        if hidden is None or ggml().ggml_nbytes(tensor) != hidden.nbytes:
            return  # an exception would be lost in llama.cpp: `check` says it
        if keep:
            self._own = np.empty(hidden.shape, np.float32)
            ggml().ggml_backend_tensor_get(tensor, self._own.ctypes.data, 0, self._own.nbytes)
        ggml().ggml_backend_tensor_set(tensor, hidden.ctypes.data, 0, hidden.nbytes)
        self._written = tensor

    @staticmethod
    def _missing(name: str) -> PipeInferError:
        return PipeInferError(
            f"This llama.cpp has no graph node {name} of the right size for this slice: install the pinned version."
        )
