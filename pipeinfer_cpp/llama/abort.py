"""A flag that stops a decode from another thread, without Python in llama.cpp's inner loop."""

from __future__ import annotations

import ctypes

from pipeinfer_cpp.llama.library import lib


class AbortFlag:
    """Set by any thread; llama.cpp asks it at every graph node.

    The predicate is libc's `strlen` on a two-byte buffer: it returns 0 or 1 and needs no GIL.
    """

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(2)
        strlen = ctypes.CDLL(None).strlen
        self.predicate = ctypes.cast(strlen, lib.ggml_abort_callback)
        self.data = ctypes.cast(self._buffer, ctypes.c_void_p)

    def set(self) -> None:
        self._buffer[0] = b"\x01"

    def clear(self) -> None:
        self._buffer[0] = b"\x00"

    def is_set(self) -> bool:
        return self._buffer[0] != b"\x00"
