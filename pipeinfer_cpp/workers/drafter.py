"""What the draft worker does: extend its paths as long as there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from pipeinfer_cpp.llama.context import Aborted, SliceContext
from pipeinfer_cpp.llama.library import has_gpu
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
            n_gpu_layers=options.gpu_layers if has_gpu() else 0,  # the stages may be where there is one
        )
        self._paths = DraftPaths(self._ctx, options.n_seq, load.slots)
        self._room: dict[int, int] = {}
        """By slot: positions up to which its paths may go."""
        self._samplers: dict[int, Sampler] = {}
        """By slot."""
        self._lock = threading.Lock()
        self._computing: tuple[int, int] | None = None
        """Path and slot."""
        self._cut_short = threading.Event()
        self.loaded = Loaded({}, 1, options.kv_type, resident_mb(), options.threads)

    def interrupt(self, order: DraftReset | DraftDrop) -> None:
        """Paths are about to change: if the one that is computed is among them, that is worth nothing."""
        with self._lock:
            if self._computing is None:
                return
            path, slot = self._computing
            if slot == order.slot if isinstance(order, DraftReset) else path in order.paths:
                self._ctx.abort.set()
                self._cut_short.set()

    def obey(self, order: Message) -> None:
        match order:
            case DraftTurn(sampling, slot):
                if slot in self._samplers:
                    self._samplers.pop(slot).close()
                self._samplers[slot] = draft_sampler(self._ctx.vocab, self._ctx.n_vocab, sampling)
            case DraftReset(path, keep, tokens, slot):
                self._paths.reset(path, keep, tokens, slot)
            case DraftFork(path, of, keep, token):
                self._paths.fork(path, of, keep, token)
            case DraftDrop(paths):
                self._paths.drop(paths)
            case DraftRoom(pos, slot):
                self._room[slot] = pos

    def step(self) -> Drafted | None:
        """Extend the path that has most room left by one token (or cache a chunk of its history).

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
            self._computing = number, path.slot
        try:
            return self._extend(number, path, chunk, whole, began)
        except Aborted:
            if self._ctx.checkpointed:
                self._paths.take_back(path, path.cached)
            return None
        finally:
            with self._lock:
                self._computing = None

    @property
    def idle(self) -> bool:
        return self._next() is None

    def close(self) -> None:
        for sampler in self._samplers.values():
            sampler.close()
        self._ctx.close()

    def _next(self) -> int | None:
        able = {
            number: len(path.tokens) - self._room[path.slot]
            for number, path in self._paths.paths.items()
            if len(path.tokens) <= self._room.get(path.slot, -1)
            and (path.cached == 0 or path.tokens[-1] not in self._eog)
        }
        return min(able, key=able.__getitem__) if able else None

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
        sampler = self._samplers[path.slot]
        if not sampler.stateless:
            sampler = sampler.clone()
            sampler.feed_prompt(path.tokens)
        draw = sampler.sample(logits[0], len(path.tokens))
        if sampler is not self._samplers[path.slot]:
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
