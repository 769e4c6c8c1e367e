"""Sequences moved out of a context's KV cache into this process's memory, and back in, bit for bit.

llama.cpp's state data leaves out cells that a sliding window hides from the sequence's end, also where the cache keeps
them: what came back could not be cut shorter. So the state of a longer sequence is taken in pieces from its end on, and
made whole by `_joined`.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.library import as_pointer, lib, log_text

ANY = 1 << 30
"""No sequence is too long."""
Bytes = NDArray[np.uint8]


class Stash:
    """States of whole sequences, by number. Raises PipeInferError for whatever could not be put back as it was."""

    def __init__(self, context: SliceContext) -> None:
        """The context is empty."""
        self._context = context
        self._kept: dict[int, Bytes] = {}
        self.longest = 0 if context.checkpointed else ANY
        """Positions of the longest sequence that can be taken, 0 where none can."""
        if context.window and not context.checkpointed and not self._readable():
            self.longest = context.window

    def _readable(self) -> bool:
        """Whether llama.cpp writes this model's states as they are known here: tried with one position."""
        context, one = self._context, np.zeros(1, np.int32)
        context.decode(one, one, one, None, None if context.first else np.zeros((1, context.row_width), np.float32))
        state = self._state(0)
        context.seq_rm(0, 0, -1)
        try:
            return np.array_equal(_joined(state[:_HEAD], [_caches(state)], 1), state)
        except PipeInferError:
            return False

    def put(self, number: int, seq: int, n: int) -> None:
        """The sequence, which holds `n` positions, is kept under this number; the cache has nothing of it any more."""
        if n > self.longest or number in self._kept:
            raise PipeInferError(f"it cannot keep {n} positions of a conversation as state {number}")
        self._check(seq, n, "to be kept holds")
        state = self._state(seq)
        if n > self._context.window > 0:
            pieces = [_caches(state)]
            while first := _first(pieces[-1]):
                self._context.seq_rm(seq, first, -1)
                pieces.append(_caches(self._state(seq)))
            state = _joined(state[:_HEAD], pieces, n)
        self._context.seq_rm(seq, 0, -1)
        self._kept[number] = state

    def _state(self, seq: int) -> Bytes:
        """As llama.cpp writes it."""
        handle = self._context.handle
        size = lib.llama_state_seq_get_size(handle, seq)
        room = np.empty(size, np.uint8)
        got = lib.llama_state_seq_get_data(handle, as_pointer(room, ctypes.c_uint8), size, seq)
        if not size or got != size:
            raise PipeInferError(f"llama.cpp saved {got} of {size} bytes of a conversation: {log_text(3)}")
        return room

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


# ------------------------------------------------------------------- what llama.cpp writes of a sequence's cells


_HEAD = 8
"""Bytes before the first cache: a magic number and the sequence's id."""
_CELL = np.dtype([("pos", "<i4"), ("n_seq", "<u4"), ("seq", "<i4")])


class _Block(NamedTuple):
    """Keys or values of one layer: what stands before them, and `units` arrays of an item for each cell."""

    head: bytes
    items: Bytes
    """uint8[units, cells, bytes of an item]: units is 1, or the length of a value where these are transposed."""


class _Cache(NamedTuple):
    """One of a state's caches: without and with a sliding window. The sequence has cells in one stream of it."""

    n_streams: int
    stream: int
    cells: NDArray[np.void]
    head: bytes
    blocks: list[_Block]


class _Reader:
    def __init__(self, data: Bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> Bytes:
        if n < 0 or self.at + n > len(self.data):
            raise PipeInferError("llama.cpp's state of a conversation is not written as it is known here")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, kind: str = "<u4") -> int:
        return int(self.take(np.dtype(kind).itemsize).view(kind)[0])


def _caches(data: Bytes) -> list[_Cache]:
    reader = _Reader(data)
    reader.take(_HEAD)
    caches = []
    while reader.at < len(data):
        caches.append(_cache(reader))
    return caches


def _cache(reader: _Reader) -> _Cache:
    n_streams = reader.number()
    found = _Cache(n_streams, 0, np.empty(0, _CELL), b"", [])
    for stream in range(n_streams):
        if not (n := reader.number()):
            continue
        cells = np.frombuffer(reader.take(n * _CELL.itemsize).tobytes(), _CELL)
        transposed, n_layers = reader.number(), reader.number()
        blocks = [_block(reader, n, transposed=bool(i >= n_layers and transposed)) for i in range(2 * n_layers)]
        head = np.array([transposed, n_layers], "<u4").tobytes()
        found = _Cache(n_streams, stream, cells, head, blocks)
    return found


def _block(reader: _Reader, n: int, transposed: bool) -> _Block:
    began = reader.at
    reader.number("<i4")  # the type
    size = reader.number("<u4" if transposed else "<u8")
    units = reader.number() if transposed else 1
    head = reader.data[began : reader.at].tobytes()
    return _Block(head, reader.take(units * n * size).reshape(units, n, size))


def _first(caches: list[_Cache]) -> int:
    """The first position that none of them leaves out."""
    return max((int(cache.cells["pos"].min()) for cache in caches if len(cache.cells)), default=0)


def _joined(head: Bytes, pieces: list[list[_Cache]], n: int) -> Bytes:
    """States of a sequence that was cut shorter from one to the next, as one that leaves out none of its `n`
    positions."""
    out = [head.tobytes()]
    for parts in zip(*pieces, strict=True):
        first = parts[0]
        wanted: list[NDArray[np.intp]] = []
        end = n
        for part in parts:  # of each the positions that none before it has
            new = np.flatnonzero(part.cells["pos"] < end)
            wanted.append(new)
            end = int(part.cells["pos"].min(initial=end))
        cells = np.concatenate([part.cells[new] for part, new in zip(parts, wanted, strict=True)])
        order = np.argsort(cells["pos"], kind="stable")
        if len(cells) and not np.array_equal(cells["pos"][order], np.arange(n)):
            raise PipeInferError("llama.cpp's state of a conversation leaves out some of its positions")
        out.append(np.uint32(first.n_streams).tobytes())
        for stream in range(first.n_streams):
            own = stream == first.stream and len(cells)
            out.append(np.uint32(len(cells) if own else 0).tobytes())
            if own:
                out += [cells[order].tobytes(), first.head]
                for blocks in zip(*(part.blocks for part in parts), strict=True):
                    items = [block.items[:, new] for block, new in zip(blocks, wanted, strict=True)]
                    out += [blocks[0].head, np.concatenate(items, axis=1)[:, order].tobytes()]
    return np.frombuffer(b"".join(out), np.uint8)
