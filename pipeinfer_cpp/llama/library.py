"""llama.cpp as a loaded library: start-up, silence, and what it says of itself."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.system.light_import import submodule
from pipeinfer_cpp.system.versions import llama_version

# What llama.cpp says when it gives up is told; a debugger's stack trace behind it would hide that.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
lib: Any = submodule("llama_cpp", "llama_cpp")

__all__ = ["TENSOR_NAME_OFFSET", "apart", "check_gpu", "ggml", "has_gpu", "lib", "library_build", "log_text", "start"]

_log: list[str] = []
_LOG_LINES = 200


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _keep(_level: int, text: bytes, _data: Any) -> None:
    """llama.cpp's own messages are kept, not printed: the last ones explain a failed load."""
    _log.append(text.decode("utf-8", "replace"))
    del _log[:-_LOG_LINES]


@functools.cache
def start() -> None:
    """Initialise llama.cpp once in this process."""
    lib.llama_log_set(_keep, ctypes.c_void_p(0))
    lib.llama_backend_init()


def apart(call: Callable[..., Any], *args: Any) -> Any:
    """A call that makes llama.cpp log much, from a thread of its own.

    Python handles signals in the main thread. If that is inside the log callback, the KeyboardInterrupt is printed and
    lost, and the call goes on; so it waits here, and is raised at the call's end.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call, *args).result()


def log_text(n_lines: int = 8) -> str:
    """The last lines that llama.cpp logged (errors first of all)."""
    return "".join(_log[-n_lines:]).strip()


@functools.cache
def ggml() -> ctypes.CDLL:
    """The ggml base library, for the few calls that llama_cpp does not wrap."""
    folder = Path(lib._lib._name).parent
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    path = next((folder / n for n in names if (folder / n).exists()), None)
    base = ctypes.CDLL(str(path)) if path else lib._lib
    base.ggml_get_name.restype = ctypes.c_char_p
    base.ggml_get_name.argtypes = [ctypes.c_void_p]
    base.ggml_backend_tensor_get.restype = None
    base.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    base.ggml_backend_tensor_set.restype = None
    base.ggml_backend_tensor_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    base.ggml_nbytes.restype = ctypes.c_size_t
    base.ggml_nbytes.argtypes = [ctypes.c_void_p]
    base.ggml_op_name.restype = ctypes.c_char_p
    base.ggml_op_name.argtypes = [ctypes.c_int]
    base.ggml_is_contiguous.restype = ctypes.c_bool
    base.ggml_is_contiguous.argtypes = [ctypes.c_void_p]
    base.ggml_nelements.restype = ctypes.c_int64
    base.ggml_nelements.argtypes = [ctypes.c_void_p]
    return base


class TensorStruct(ctypes.Structure):
    """Mirror of `struct ggml_tensor` up to its name (ggml.h of the pinned llama-cpp-python)."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


TENSOR_NAME_OFFSET = TensorStruct.name.offset


def has_gpu() -> bool:
    """Whether this build of llama.cpp has a backend for a GPU."""
    return bool(lib.llama_supports_gpu_offload())


def check_gpu(n_layers: int) -> None:
    """Raise UserError where layers are asked for on a GPU that this build of llama.cpp has no backend for."""
    if n_layers and not has_gpu():
        raise UserError("llama.cpp was built without a GPU backend here: leave --gpu-layers out, or build it with one.")


@functools.cache
def library_build() -> str:
    """A short text that differs whenever the library or its CPU features do.

    Version of llama-cpp-python, a hash of the shared libraries, and llama.cpp's own system line.
    """
    digest = hashlib.sha256()
    folder = Path(lib._lib._name).parent
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.is_symlink():
            digest.update(f"{path.name}:{path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 16))
                file.seek(max(0, os.path.getsize(path) - (1 << 16)))
                digest.update(file.read())
    digest.update(lib.llama_print_system_info())
    return f"{llama_version()}+{digest.hexdigest()[:12]}"


def as_pointer(array: np.ndarray, kind: Any) -> Any:
    """A ctypes pointer to the first element of a contiguous array (which must outlive it)."""
    return array.ctypes.data_as(ctypes.POINTER(kind))
