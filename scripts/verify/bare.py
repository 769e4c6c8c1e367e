"""A bare llama.cpp loop over the whole model: C functions, one row at a time, nothing of the pipeline's stages."""

from __future__ import annotations

import os

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.llama.gumbel import gumbel
from pipeinfer_cpp.llama.library import start
from pipeinfer_cpp.sampling import Sampling

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
_RECORD = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Bare:
    """One model, one context, one sequence that is kept from turn to turn. `cached`: the tokens it holds."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        kv_type: str,
        n_ctx: int = 1024,
        chunk: int = 64,
        threads: int = 1,
        flash_attn: bool = True,
        n_seq: int = 1,
    ) -> None:
        start()  # silences llama.cpp
        self.chunk = chunk
        self._model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_ctx, n_seq
        params.n_batch = params.n_ubatch = chunk
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = int(flash_attn)
        params.kv_unified = params.swa_full = True
        self._ctx = lib.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise SystemExit(f"llama.cpp cannot open {path}")
        self._memory = lib.llama_get_memory(self._ctx)
        self._batch = lib.llama_batch_init(chunk, 0, 1)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self._data = (lib.llama_token_data * self.n_vocab)()
        self._records = np.frombuffer(self._data, _RECORD)
        self.cached: list[int] = []

    def rows(self, rows: list[tuple[int, int, int]], wanted: int = -1) -> NDArray[np.float32]:
        """Decode rows of (token, position, sequence); the logits behind one of them."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, pos, seq) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, pos, 1, seq
            batch.logits[i] = i == wanted % len(rows)
        if code := lib.llama_decode(self._ctx, batch):
            raise SystemExit(f"llama_decode returned {code}")
        logits = lib.llama_get_logits_ith(self._ctx, wanted % len(rows))
        return np.ctypeslib.as_array(logits, shape=(self.n_vocab,)).copy()

    def extend(self, tokens: list[int], width: int) -> NDArray[np.float32]:
        """Decode behind what is cached, `width` rows at a time; the logits of the last row."""
        assert tokens
        for a in range(0, len(tokens), width):
            part, at = tokens[a : a + width], len(self.cached)
            logits = self.rows([(token, at + i, 0) for i, token in enumerate(part)])
            self.cached += part
        return logits

    def prompt(self, tokens: list[int]) -> NDArray[np.float32]:
        """The logits behind a prompt. What is cached of it is kept; the rest comes in chunks."""
        pairs = zip(self.cached, tokens[:-1], strict=False)
        kept = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.cached), len(tokens) - 1))
        self.remove(0, kept)
        del self.cached[kept:]
        return self.extend(tokens[kept:], self.chunk)

    def generate(self, prompt: list[int], n: int, sampling: Sampling) -> list[int]:
        """Decode, choose, repeat."""
        out: list[int] = []
        logits = self.prompt(prompt)
        while True:
            token = self.choose(logits, len(prompt) + len(out), sampling)
            if lib.llama_vocab_is_eog(self._vocab, token):
                return out
            out.append(token)
            if len(out) == n:
                return out
            logits = self.extend([token], 1)

    def choose(self, logits: NDArray[np.float32], pos: int, sampling: Sampling) -> int:
        """The token for position `pos`."""
        if sampling.greedy:
            return int(logits.argmax())
        ids, x = self.survivors(logits, sampling)
        return int(ids[(x + gumbel(sampling.seed, pos, ids)).argmax()])

    def survivors(
        self, logits: NDArray[np.float32], sampling: Sampling
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """What llama.cpp's own chain (top-k, top-p, min-p, temperature) leaves: ids, and logits over temperature."""
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for part in (
            lib.llama_sampler_init_top_k(sampling.top_k),
            lib.llama_sampler_init_top_p(sampling.top_p, 1),
            lib.llama_sampler_init_min_p(sampling.min_p, 1),
            lib.llama_sampler_init_temp(sampling.temp),
        ):
            lib.llama_sampler_chain_add(chain, part)
        self._records["id"], self._records["logit"] = np.arange(self.n_vocab), logits
        array = lib.llama_token_data_array(self._data, self.n_vocab, -1, False)
        lib.llama_sampler_apply(chain, array)
        lib.llama_sampler_free(chain)
        left = np.array(self._records[: array.size])
        return left["id"], left["logit"].astype(np.float64)

    def probabilities(self, logits: NDArray[np.float32], sampling: Sampling) -> dict[int, float]:
        """The distribution that is drawn from."""
        ids, x = self.survivors(logits, sampling)
        p = np.exp(x - x.max())
        return dict(zip(ids.tolist(), (p / p.sum()).tolist(), strict=True))

    def remove(self, seq: int, pos: int) -> None:
        lib.llama_memory_seq_rm(self._memory, seq, pos, -1)

    def copy(self, source: int, to: int, end: int) -> None:
        lib.llama_memory_seq_cp(self._memory, source, to, 0, end)

    def clear(self) -> None:
        lib.llama_memory_clear(self._memory, False)
        self.cached = []

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._ctx)
        lib.llama_model_free(self._model)
