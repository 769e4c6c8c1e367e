"""Which tensors llama.cpp wants of a model with certain metadata: it says so itself."""

from __future__ import annotations

import ctypes
from pathlib import Path

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.library import TensorStruct, ggml, lib, log_text, start


class _InitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def wanted_tensors(metadata: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes (the row length first) of all tensors, also those that a model may lack, for a GGUF file that
    holds only keys. Raises UserError, with llama.cpp's words, when there can be no such model; where an assertion of
    its own fails it ends the process."""
    start()
    base = ggml()
    base.gguf_init_from_file.restype = ctypes.c_void_p
    base.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParams]
    base.gguf_free.restype, base.gguf_free.argtypes = None, [ctypes.c_void_p]
    keys = base.gguf_init_from_file(str(metadata).encode(), _InitParams(True, None))
    if not keys:
        raise UserError(f"llama.cpp could not read the keys of {metadata}: {log_text(2)}")
    found: dict[str, tuple[int, ...]] = {}

    @lib.llama_model_set_tensor_data_t  # type: ignore[untyped-decorator]
    def on_tensor(address: int, _data: object) -> None:
        tensor = TensorStruct.from_address(address)
        shape = list(tensor.ne)
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        found.setdefault(tensor.name.decode(), tuple(shape))

    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.load_mtp = True
    model = lib.llama_model_init_from_user(keys, on_tensor, None, params)
    base.gguf_free(keys)
    if not model:
        raise UserError(f"llama.cpp makes no model of these keys: {' '.join(log_text(2).split())}")
    lib.llama_model_free(model)
    return found
