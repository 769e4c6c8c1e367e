"""What the nodes of a graph give, row by row: so that runs of different widths can be compared inside a layer.

The results of a layer show little: before each product of matrices llama.cpp rounds activations to 8 bits, which hides
nearly every difference in last bits, until one of them tips the rounding over. That may take a hundred rows.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.llama.library import TensorStruct, ggml

_F32 = 0
_MOVES = {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE", "SET_ROWS", "CPY"}
"""They compute nothing, and some of them show all of the cache."""
_SCORES = ("kq-", "kq_", "indexer")
"""Rows of these are as long as the cache, with what lies in cells that are masked."""
_NUMBERED = "node_"
"""What a node is called that has no name: of these only attention is looked at."""


class NodeValues:
    """The values of a decode's named nodes: by name, `float32[...]` with its axes in numpy's order."""

    def __init__(self) -> None:
        self.by_name: dict[str, NDArray[np.float32]] = {}

    def wants(self, tensor: int) -> bool:
        record = TensorStruct.from_address(tensor)
        name, op = record.name.decode(), _op(record.op)
        if record.type != _F32 or op in _MOVES or name.startswith(_SCORES):
            return False
        return not name.startswith(_NUMBERED) or op == "FLASH_ATTN_EXT"

    def see(self, tensor: int) -> None:
        """The node has been computed."""
        record = TensorStruct.from_address(tensor)
        if not self.wants(tensor) or not ggml().ggml_is_contiguous(tensor):
            return
        name, out = record.name.decode(), np.empty(tuple(record.ne)[::-1], np.float32)
        if name.startswith(_NUMBERED):
            name = "attention"
        while name in self.by_name:
            name += "'"
        ggml().ggml_backend_tensor_get(tensor, out.ctypes.data, 0, out.nbytes)
        self.by_name[name] = out

    def differs_from(self, singles: list[NodeValues]) -> str:
        """The first node where a row of this run has other bits than the run of that row alone; "" where none has.
        Nodes are left out that have no row each there, or are of another shape."""
        for name, run in self.by_name.items():
            for i, single in enumerate(singles):
                row = single.by_name.get(name)
                if row is None or row.ndim != run.ndim:
                    break
                pairs = zip(row.shape, run.shape, strict=True)
                unequal = [axis for axis, (a, b) in enumerate(pairs) if a != b]
                if len(singles) == 1 and not unequal:
                    mine = run
                elif len(unequal) == 1 and (row.shape[unequal[0]], run.shape[unequal[0]]) == (1, len(singles)):
                    mine = np.take(run, [i], axis=unequal[0])
                else:
                    break
                if not np.array_equal(mine.view(np.uint32), row.view(np.uint32)):
                    return name
        return ""


@functools.cache
def _op(number: int) -> str:
    return str(ggml().ggml_op_name(number).decode())
