"""What of a model's file stays in memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

_DONTNEED = 4
"""Linux: MADV_DONTNEED."""


def release_file_pages(path: str | os.PathLike[str]) -> None:
    """Let go of the pages of a mapped file: those that are read again come back by themselves.

    llama.cpp maps a model and touches all of it, holes too. What it then repacks into memory of its own, and what
    it never reads (a slice's placeholders), would stay there for nothing. Does nothing outside of Linux.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        stat = os.stat(path)
        node = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x} {stat.st_ino}"
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        with open("/proc/self/maps") as maps:
            for line in maps:
                span, rights, _, device, inode = line.split(None, 5)[:5]
                # Written pages of a private mapping would be lost: only what can but be read.
                if f"{device} {inode}" == node and rights.startswith("r--"):
                    begin, _, end = span.partition("-")
                    libc.madvise(int(begin, 16), int(end, 16) - int(begin, 16), _DONTNEED)
