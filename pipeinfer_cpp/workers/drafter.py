"""What the draft worker does: extend its paths as long as there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from pipeinfer_cpp.llama.context import Aborted, SliceContext
from pipeinfer_cpp.llama.sampler import Sampler, draft_sampler
from pipeinfer_cpp.net.messages import (
    DraftDrop,
    Drafted,
    DraftFork,
    DraftReset,
    DraftRoom,
    DraftTurn,
    LoadDraft,
    Loaded,
    Message,
)
from pipeinfer_cpp.net.sockets import clock
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.workers.draft_paths import DraftPaths, Path
from pipeinfer_cpp.workers.lifeline import resident_mb


class Drafter:
    """Owns the draft model's context. `obey` and `step` are called by one thread, `interrupt` by any.

    Orders come faster than they can be obeyed when the target misses: `pending` says whether any
    wait, so that no decode begins for a path that is dead already.
    """

    def __init__(self, load: LoadDraft, pending: Callable[[], bool]) -> None:
        options = load.options
        self._pending = pending
        self._chunk = options.chunk
        self._stretch = load.stretch
        self._eog = frozenset(load.eog)
        self._ctx = SliceContext(
            load.path,
            n_ctx=options.n_ctx,
            n_seq_max=options.n_seq,
            n_ubatch=options.chunk,
            kv_type="f16" if options.kv_type == "auto" else options.kv_type,
            flash_attn=options.flash_attn,
            n_threads=options.threads,
            n_gpu_layers=options.gpu_layers,
        )
        self._paths = DraftPaths(self._ctx, options.n_seq)
        self._room = -1
        self._sampling = Sampling()
        self._sampler: Sampler | None = None
        self._lock = threading.Lock()
        self._computing = False
        self._cut_short = threading.Event()
        self.loaded = Loaded({}, 1, options.kv_type, resident_mb(), options.threads)

    def interrupt(self) -> None:
        """The paths are about to change: what is being computed is worth nothing."""
        with self._lock:
            if self._computing:
                self._ctx.abort.set()
                self._cut_short.set()

    def obey(self, order: Message) -> None:
        match order:
            case DraftTurn(sampling):
                if self._sampler is not None:
                    self._sampler.close()
                self._sampling = sampling
                self._sampler = draft_sampler(self._ctx.vocab, self._ctx.n_vocab, sampling)
            case DraftReset(path, keep, tokens):
                self._paths.reset(path, keep, tokens)
            case DraftFork(path, of, keep, token):
                self._paths.fork(path, of, keep, token)
            case DraftDrop(paths):
                self._paths.drop(paths)
            case DraftRoom(pos):
                self._room = pos

    def step(self) -> Drafted | None:
        """Extend the shortest path that has room by one token (or cache a chunk of its history).

        None when nothing was drafted; `idle` tells whether there is more to do.
        """
        number = self._next()
        if number is None:
            return None
        path = self._paths.paths[number]
        chunk = path.tokens[path.cached : path.cached + self._chunk]
        whole = path.cached + len(chunk) == len(path.tokens)
        began = clock()
        with self._lock:
            if self._pending():
                return None
            self._ctx.abort.clear()
            self._cut_short.clear()
            self._computing = True
        try:
            return self._extend(number, path, chunk, whole, began)
        except Aborted:
            if self._ctx.checkpointed:
                self._paths.take_back(path, path.cached)
            return None
        finally:
            with self._lock:
                self._computing = False

    @property
    def idle(self) -> bool:
        return self._next() is None

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
        self._ctx.close()

    def _next(self) -> int | None:
        able = {
            number: path
            for number, path in self._paths.paths.items()
            if len(path.tokens) <= self._room and (path.cached == 0 or path.tokens[-1] not in self._eog)
        }
        return min(able, key=lambda number: len(able[number].tokens)) if able else None

    def _extend(self, number: int, path: Path, chunk: list[int], whole: bool, began: float) -> Drafted | None:
        n = len(chunk)
        wanted = np.zeros(n, np.int8)
        wanted[-1] = whole
        pos = np.arange(path.cached, path.cached + n, dtype=np.int32)
        self._paths.before(path)
        logits = self._ctx.decode(np.array(chunk, np.int32), pos, np.full(n, path.seq, np.int32), wanted)
        if self._stretch is not None and whole:
            left = began + self._stretch.costs()(n) - clock()
            if left > 0 and self._cut_short.wait(left):
                self._paths.take_back(path, path.cached)
                return None
        path.cached += n
        if not whole:
            return None
        assert self._sampler is not None
        sampler = self._sampler
        if not sampler.stateless:
            sampler = sampler.clone()
            sampler.feed_prompt(path.tokens)
        draw = sampler.sample(logits[0], len(path.tokens))
        if sampler is not self._sampler:
            sampler.close()
        said = Drafted(
            number,
            len(path.tokens),
            draw.token,
            draw.prob,
            draw.second,
            draw.second_prob,
            began,
            clock(),
            resident_mb(),
        )
        path.tokens.append(draw.token)
        return said
