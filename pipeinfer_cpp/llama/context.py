"""A model, or a slice of one, loaded with a context: rows in, hidden states or logits out."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.llama.abort import AbortFlag
from pipeinfer_cpp.llama.library import TENSOR_NAME_OFFSET, as_pointer, ggml, lib, log_text, start

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
"""Names of KV cache types and their ggml numbers."""


class Aborted(Exception):
    """The decode was stopped through its abort flag; the rows left no cells behind."""


class SliceContext:
    """One GGUF (a whole model or a slice) with its KV cache.

    `first` slices take token ids, others hidden states `float32[n, n_embd]`; `last` slices return
    logits `float32[n, n_vocab]`, others hidden states. Rows are given one sequence id each, with
    consecutive positions in each sequence, at most `n_ubatch` rows at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        first: bool = True,
        last: bool = True,
        n_layer: int | None = None,
        n_ctx: int = 1024,
        n_seq_max: int = 4,
        n_ubatch: int = 64,
        kv_type: str = "f16",
        flash_attn: bool = True,
        n_threads: int = 1,
        n_gpu_layers: int = 0,
    ) -> None:
        start()
        self.first, self.last, self.n_ubatch = first, last, n_ubatch
        self.abort = AbortFlag()
        self._model: Any = None
        self._ctx: Any = None
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = n_gpu_layers
        self._model = lib.llama_model_load_from_file(str(Path(path)).encode(), model_params)
        if not self._model:
            raise UserError(f"llama.cpp could not load {path}: {log_text(3)}")
        self.n_layer = n_layer if n_layer is not None else lib.llama_model_n_layer(self._model)
        self.n_embd: int = lib.llama_model_n_embd(self._model)
        self.vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocab)
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = n_ubatch
        params.n_seq_max = n_seq_max
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = 1 if flash_attn else 0
        params.offload_kqv = n_gpu_layers != 0
        params.op_offload = n_gpu_layers != 0
        params.no_perf = True
        params.kv_unified = True  # partial seq_cp asserts without it
        params.swa_full = True  # a sliding cache cannot roll back
        params.abort_callback = self.abort.predicate
        params.abort_callback_data = self.abort.data
        if not last:
            self._tap = _Tap(self.n_layer - 1)
            params.cb_eval = self._tap.callback
        self._ctx = lib.llama_init_from_model(self._model, params)
        if not self._ctx:
            reason = log_text(3)
            self.close()
            raise UserError(f"llama.cpp could not make a context of {n_ctx} tokens for {path}: {reason}")
        self._memory = lib.llama_get_memory(self._ctx)
        self.n_ctx: int = lib.llama_n_ctx(self._ctx)
        self._rows = _Rows(n_ubatch, 0 if first else self.n_embd)

    def decode(
        self,
        inputs: NDArray[Any],
        pos: NDArray[np.int32],
        seq: NDArray[np.int32],
        wanted: NDArray[np.int8] | None = None,
    ) -> NDArray[np.float32]:
        """Compute the rows; see the class for shapes.

        `wanted` (last slices only) flags with 1 the rows whose logits are returned, in their order;
        others skip the head. Logits stay valid until the next decode, hidden states are a copy.
        Raises Aborted, or PipeInferError when llama.cpp refuses the rows.
        """
        n = len(pos)
        batch = self._rows.fill(inputs, pos, seq, wanted)
        if not self.last:
            self._tap.arm()
        code = lib.llama_decode(self._ctx, batch)
        if code == 2:
            for s, p in _first_positions(seq, pos).items():
                self.seq_rm(s, p, -1)
            raise Aborted
        if code != 0:
            reason = {1: "no KV cell is free", -1: "the rows are not valid"}.get(code, "an internal error")
            rows = ", ".join(f"{s}:{p}" for s, p in zip(seq.tolist(), pos.tolist(), strict=True))
            said = " ".join(log_text(3).split())
            raise PipeInferError(f"llama_decode returned {code} ({reason}) for the rows {rows}; it said: {said}")
        if self.last:
            logits = lib.llama_get_logits(self._ctx)
            n_out = n if wanted is None else int(np.count_nonzero(wanted))
            if n_out == 0:
                return np.empty((0, self.n_vocab), np.float32)
            return np.ctypeslib.as_array(logits, shape=(n_out, self.n_vocab))
        return self._tap.take(n, self.n_embd)

    def seq_rm(self, seq: int, p0: int, p1: int) -> None:
        lib.llama_memory_seq_rm(self._memory, seq, p0, p1)

    def seq_cp(self, src: int, dst: int, p0: int, p1: int) -> None:
        lib.llama_memory_seq_cp(self._memory, src, dst, p0, p1)

    def seq_span(self, seq: int) -> tuple[int, int]:
        """First and last position cached for a sequence, (-1, -1) when it is empty."""
        return (
            lib.llama_memory_seq_pos_min(self._memory, seq),
            lib.llama_memory_seq_pos_max(self._memory, seq),
        )

    def clear(self) -> None:
        lib.llama_memory_clear(self._memory, False)

    def set_threads(self, n_threads: int) -> None:
        lib.llama_set_n_threads(self._ctx, n_threads, n_threads)

    def close(self) -> None:
        if self._ctx:
            lib.llama_free(self._ctx)
            self._ctx = None
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None


def _first_positions(seq: NDArray[np.int32], pos: NDArray[np.int32]) -> dict[int, int]:
    first: dict[int, int] = {}
    for s, p in zip(seq.tolist(), pos.tolist(), strict=True):
        first[s] = min(p, first.get(s, p))
    return first


class _Rows:
    """A llama_batch over arrays of our own, made once."""

    def __init__(self, n_max: int, n_embd: int) -> None:
        self._token = np.zeros(n_max, np.int32)
        self._embd = np.zeros((n_max, n_embd), np.float32)
        self._pos = np.zeros(n_max, np.int32)
        self._seq = np.zeros(n_max, np.int32)
        self._n_seq = np.ones(n_max, np.int32)
        self._flag = np.ones(n_max, np.int8)
        item = self._seq.ctypes.data
        self._seq_pointers = (ctypes.POINTER(ctypes.c_int32) * n_max)(
            *(ctypes.cast(item + 4 * i, ctypes.POINTER(ctypes.c_int32)) for i in range(n_max))
        )
        self._batch = lib.llama_batch(
            0,
            as_pointer(self._token, ctypes.c_int32) if not n_embd else None,
            as_pointer(self._embd, ctypes.c_float) if n_embd else None,
            as_pointer(self._pos, ctypes.c_int32),
            as_pointer(self._n_seq, ctypes.c_int32),
            ctypes.cast(self._seq_pointers, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            as_pointer(self._flag, ctypes.c_int8),
        )

    def fill(
        self, inputs: NDArray[Any], pos: NDArray[np.int32], seq: NDArray[np.int32], wanted: NDArray[np.int8] | None
    ) -> Any:
        n = len(pos)
        if not 0 < n <= len(self._pos):
            raise ValueError(f"{n} rows in a batch of at most {len(self._pos)}")
        if self._embd.size:
            self._embd[:n] = inputs
        else:
            self._token[:n] = inputs
        self._pos[:n] = pos
        self._seq[:n] = seq
        self._flag[:n] = 1 if wanted is None else wanted
        self._batch.n_tokens = n
        return self._batch


class _Tap:
    """Takes the residual stream behind the last layer (the tensor `l_out-<n>`) out of the graph.

    Stopping there skips the final norm and head. The callback runs once a node: it compares
    eight bytes of the name, nothing more.
    """

    def __init__(self, layer: int) -> None:
        name = f"l_out-{layer}".encode() + b"\0"
        size, at = len(name), TENSOR_NAME_OFFSET
        string_at = ctypes.string_at
        state: dict[str, int] = {"tensor": 0}
        self._state = state

        def callback(tensor: int, ask: bool, _data: Any) -> bool:
            if ask:
                return string_at(tensor + at, size) == name
            state["tensor"] = tensor
            return False

        self.callback = lib.ggml_backend_sched_eval_callback(callback)
        self._name = name[:-1]

    def arm(self) -> None:
        self._state["tensor"] = 0

    def take(self, n: int, n_embd: int) -> NDArray[np.float32]:
        tensor = self._state["tensor"]
        if not tensor or ggml().ggml_nelements(tensor) != n * n_embd:
            raise PipeInferError(f"This llama.cpp names no tensor {self._name.decode()}: install the pinned version.")
        out = np.empty((n, n_embd), np.float32)
        ggml().ggml_backend_tensor_get(tensor, out.ctypes.data, 0, out.nbytes)
        return out
