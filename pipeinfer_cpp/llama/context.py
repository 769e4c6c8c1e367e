"""A model, or a slice of one, loaded with a context: rows in, hidden states or logits out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.llama.graph_nodes import GraphNodes
from pipeinfer_cpp.llama.library import as_pointer, check_gpu, lib, log_text, start
from pipeinfer_cpp.llama.node_values import NodeValues
from pipeinfer_cpp.llama.residency import release_file_pages


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


KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
"""Names of KV cache types and their ggml numbers."""


class Aborted(Exception):
    """The decode was stopped through its abort flag; the rows left no cells behind."""


class SliceContext:
    """One GGUF (a whole model or a slice) with its KV cache.

    Every one of them takes token ids; a slice that is not the `first` takes the hidden states of the slice
    before it too, `float32[n, row_width]`. The `last` returns logits `float32[n, n_vocab]`, others hidden
    states. What a slice is stands in its own metadata (see gguf.plan_keys). Rows are given one sequence id
    each, with consecutive positions in each sequence, at most `n_ubatch` rows at a time.

    `apart`: each sequence has cells of its own, an n_seq_max-th of n_ctx, so that no bit of its rows depends on others.
    Rows of several sequences are one batch then where they are those of consecutive ids, as many of each, in their
    order: `batches` says which.

    `checkpointed`: its memory cannot give back a part of a sequence, see `llama.checkpoints`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int = 1024,
        n_seq_max: int = 4,
        n_ubatch: int = 64,
        kv_type: str = "f16",
        flash_attn: bool = True,
        n_threads: int = 1,
        n_gpu_layers: int = 0,
        watched: bool = False,
        apart: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """`progress` is called with the share of the file that is loaded, 0 to 1; what it raises ends the load."""
        start()
        check_gpu(n_gpu_layers)
        self.n_ubatch = n_ubatch
        self.abort = AbortFlag()
        self._model: Any = None
        self._ctx: Any = None
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = n_gpu_layers
        stopped: list[BaseException] = []

        def loading(share: float, _data: Any) -> bool:
            try:
                if progress is not None:
                    progress(share)
            except BaseException as error:  # none gets through llama.cpp
                stopped.append(error)
            return not stopped

        callback = lib.llama_progress_callback(loading)
        model_params.progress_callback = callback
        self._model = lib.llama_model_load_from_file(str(Path(path)).encode(), model_params)
        if stopped:
            self.close()
            raise stopped[0]
        if not self._model:
            raise UserError(f"llama.cpp could not load {path}: {log_text(3)}")
        release_file_pages(path)
        reads, gives = self._meta("reads"), self._meta("gives")
        self.first, self.last = reads is None, gives is None
        self.n_embd: int = lib.llama_model_n_embd(self._model)
        self.row_width = int(self._meta("width") or self.n_embd)
        """Floats in a row of hidden states."""
        self.checkpointed = bool(lib.llama_model_is_hybrid(self._model) or lib.llama_model_is_recurrent(self._model))
        self.window: int = lib.llama_model_n_swa(self._model)
        """Positions that a sliding window shows, 0 where no layer has one."""
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
        params.kv_unified = not apart  # without it a partial seq_cp ends the process
        params.swa_full = True  # a cache that slides cannot roll back
        params.abort_callback = self.abort.predicate
        params.abort_callback_data = self.abort.data
        self._nodes = GraphNodes(reads, gives, self._meta("restored_at"))
        if reads or gives or watched:
            params.cb_eval = self._nodes.callback
        self._ctx = lib.llama_init_from_model(self._model, params)
        if not self._ctx:
            reason = log_text(3)
            self.close()
            raise UserError(f"llama.cpp could not make a context of {n_ctx} tokens for {path}: {reason}")
        self._memory = lib.llama_get_memory(self._ctx)
        self.n_ctx: int = lib.llama_n_ctx(self._ctx)
        self._rows = _Rows(n_ubatch)

    @property
    def handle(self) -> Any:
        """llama.cpp's own context."""
        return self._ctx

    def decode(
        self,
        tokens: NDArray[np.int32],
        pos: NDArray[np.int32],
        seq: NDArray[np.int32],
        wanted: NDArray[np.int8] | None = None,
        hidden: NDArray[np.float32] | None = None,
        *,
        only_cells: bool = False,
    ) -> NDArray[np.float32]:
        """Compute the rows; see the class for shapes.

        `wanted` (last slices only) flags with 1 the rows whose logits are returned, in their order;
        others skip the head. Logits stay valid until the next decode, hidden states are a copy.
        Raises PipeInferError when llama.cpp refuses the rows, and Aborted: the rows left no cells behind then,
        but on a `checkpointed` context the state is half written, and the caller must restore it.
        `only_cells`: of a slice of one layer, its KV cells are wanted and no result (what it returns is none).
        """
        n = len(pos)
        batch = self._rows.fill(tokens, pos, seq, wanted if self.last else None)
        self._nodes.arm(hidden, only_cells=only_cells)
        code = lib.llama_decode(self._ctx, batch)
        if code == 2:
            if not self.checkpointed:
                for s, p in _first_positions(seq, pos).items():
                    self.seq_rm(s, p, -1)
            raise Aborted
        if code != 0:
            reason = {1: "no KV cell is free", -1: "the rows are not valid"}.get(code, "an internal error")
            rows = ", ".join(f"{s}:{p}" for s, p in zip(seq.tolist(), pos.tolist(), strict=True))
            said = " ".join(log_text(3).split())
            raise PipeInferError(f"llama_decode returned {code} ({reason}) for the rows {rows}; it said: {said}")
        self._nodes.check()
        if only_cells:
            return np.empty((0, self.row_width), np.float32)
        if self.last:
            logits = lib.llama_get_logits(self._ctx)
            n_out = n if wanted is None else int(np.count_nonzero(wanted))
            if n_out == 0:
                return np.empty((0, self.n_vocab), np.float32)
            return np.ctypeslib.as_array(logits, shape=(n_out, self.n_vocab))
        return self._nodes.take(n, self.row_width)

    def seq_rm(self, seq: int, p0: int, p1: int) -> None:
        """Remove positions [p0, p1) of a sequence (p1 = -1: to its end). Raises PipeInferError where the
        memory cannot: a part of a recurrent state."""
        if not lib.llama_memory_seq_rm(self._memory, seq, p0, p1):
            raise PipeInferError(
                f"llama.cpp could not remove positions {p0} to {p1} of sequence {seq}, which holds "
                f"{self.seq_span(seq)}: this model's state cannot be taken back in part."
            )

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

    def _meta(self, name: str) -> str | None:
        """A key of the slice's own metadata, None where it is not there."""
        buffer = ctypes.create_string_buffer(256)
        size = lib.llama_model_meta_val_str(self._model, f"pipeinfer.slice.{name}".encode(), buffer, len(buffer))
        return buffer.value.decode() if size >= 0 else None

    def watch(self, values: NodeValues | None) -> None:
        """Keep what the nodes of the following decodes give, too; None: no longer. For contexts made with `watched`,
        and slices."""
        self._nodes.watch(values)

    def close(self) -> None:
        if self._ctx:
            lib.llama_free(self._ctx)
            self._ctx = None
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None


def batches(seq: Sequence[int]) -> list[tuple[int, int]]:
    """Rows of these sequences, each one's together, as ranges that a context whose sequences are `apart` computes as
    one batch: of consecutive ids with as many rows each."""
    runs = [(s, len(list(rows))) for s, rows in groupby(seq)]
    ranges: list[tuple[int, int]] = []
    at, last = 0, (-2, 0)
    for s, n in runs:
        if (s - 1, n) == last:
            ranges[-1] = ranges[-1][0], at + n
        else:
            ranges.append((at, at + n))
        at, last = at + n, (s, n)
    return ranges


def _first_positions(seq: NDArray[np.int32], pos: NDArray[np.int32]) -> dict[int, int]:
    first: dict[int, int] = {}
    for s, p in zip(seq.tolist(), pos.tolist(), strict=True):
        first[s] = min(p, first.get(s, p))
    return first


class _Rows:
    """A llama_batch over arrays of our own, made once."""

    def __init__(self, n_max: int) -> None:
        self._token = np.zeros(n_max, np.int32)
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
            as_pointer(self._token, ctypes.c_int32),
            None,
            as_pointer(self._pos, ctypes.c_int32),
            as_pointer(self._n_seq, ctypes.c_int32),
            ctypes.cast(self._seq_pointers, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            as_pointer(self._flag, ctypes.c_int8),
        )

    def fill(
        self,
        tokens: NDArray[np.int32],
        pos: NDArray[np.int32],
        seq: NDArray[np.int32],
        wanted: NDArray[np.int8] | None,
    ) -> Any:
        n = len(pos)
        if not 0 < n <= len(self._pos):
            raise ValueError(f"{n} rows in a batch of at most {len(self._pos)}")
        self._token[:n] = tokens
        self._pos[:n] = pos
        self._seq[:n] = seq
        self._flag[:n] = 1 if wanted is None else wanted
        self._batch.n_tokens = n
        return self._batch
