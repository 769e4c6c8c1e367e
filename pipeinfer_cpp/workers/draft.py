"""The draft process: it never stops drafting while there is room."""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeinfer_cpp.emulation import stretched
from pipeinfer_cpp.engine.cached import common_length
from pipeinfer_cpp.engine.settings import DRAFT_STATES
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.checkpoints import Checkpoints
from pipeinfer_cpp.llama.context import Aborted, SliceContext
from pipeinfer_cpp.llama.library import has_gpu
from pipeinfer_cpp.llama.sampler import Sampler, draft_sampler
from pipeinfer_cpp.net.messages import (
    PROTOCOL,
    Bye,
    DraftDrop,
    DraftFork,
    DraftReset,
    DraftRoom,
    DraftTurn,
    Failed,
    Guessed,
    Hello,
    LoadDraft,
    Loaded,
    Message,
    Ping,
    Pong,
    Refuse,
    ToWorker,
    Welcome,
    objection,
)
from pipeinfer_cpp.net.sockets import Network, Selector, Server, Wakeup, clock
from pipeinfer_cpp.system.machine import cores
from pipeinfer_cpp.system.versions import llama_version, package_version
from pipeinfer_cpp.workers.lifeline import resident_mb

EVERY = 4
"""Where nothing can be removed in part (recurrent and hybrid drafts), the state is kept before every fourth token."""


@dataclass(slots=True)
class Path:
    """`tokens` is the whole history; KV cells exist for the first `cached` of them."""

    seq: int
    tokens: list[int]
    cached: int
    slot: int = 0


class DraftPaths:
    """All live paths of all slots, by number. Sequence ids are taken and freed with them.

    A draft whose memory cannot remove a part of a sequence has one path a slot: it goes back to the newest state
    that was kept, and reads the few tokens behind that again.
    """

    def __init__(self, ctx: SliceContext, n_seq: int, slots: int = 1) -> None:
        self._ctx = ctx
        self._free = list(range(slots if ctx.checkpointed else n_seq))
        self._checkpoints = Checkpoints(ctx)
        self._kept: dict[int, dict[int, int]] = {}
        """By sequence: position -> number of the states kept of its path, ascending."""
        self.paths: dict[int, Path] = {}

    def reset(self, number: int, keep: int, tokens: Sequence[int], slot: int = 0) -> None:
        """One path of the slot is left: the first `keep` tokens of its history plus `tokens`, on the longest
        cached prefix."""
        own = {n: self.paths.pop(n) for n, path in list(self.paths.items()) if path.slot == slot}
        longest = max(own.values(), key=lambda p: len(p.tokens), default=None)
        wanted = (longest.tokens[:keep] if longest else []) + list(tokens)
        best, common = None, 0
        for path in own.values():
            n = common_length(path.tokens[: path.cached], wanted)
            if best is None or n > common:
                best, common = path, n
        common = min(common, len(wanted) - 1)  # the last token is always decoded: its logits are the next draft
        for path in own.values():
            if path is not best:
                self._remove(path)
        if best is None:
            best = Path(self._free.pop(), wanted, 0, slot)
        best.tokens = wanted
        if common < best.cached:
            self.take_back(best, common)
        self.paths[number] = best

    def fork(self, number: int, of: int, keep: int, token: int) -> None:
        """A side branch: the first `keep` tokens of path `of`, then `token`."""
        path = self.paths.get(of)
        if path is None or not self._free:
            return
        seq = self._free.pop()
        cached = min(keep, path.cached)
        if cached:
            self._ctx.seq_cp(path.seq, seq, 0, cached)
        self.paths[number] = Path(seq, [*path.tokens[:keep], token], cached, path.slot)

    def drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            path = self.paths.pop(number, None)
            if path is not None:
                self._remove(path)

    def before(self, path: Path) -> None:
        """The rows behind what is cached of the path are about to be decoded."""
        at, kept = path.cached, self._kept.setdefault(path.seq, {})
        if not self._ctx.checkpointed or at == 0 or at < max(kept, default=0) + EVERY:
            return
        if len(kept) == DRAFT_STATES:
            del kept[min(kept)]
        first = path.seq * DRAFT_STATES
        state = min(set(range(first, first + DRAFT_STATES)) - set(kept.values()))
        self._checkpoints.save(state, path.seq)
        kept[at] = state

    def take_back(self, path: Path, n: int) -> None:
        """No more than the first `n` rows stay cached; fewer where only an older state is kept."""
        if not self._ctx.checkpointed:
            self._ctx.seq_rm(path.seq, n, -1)
            path.cached = n
            return
        kept = self._kept.get(path.seq, {})
        path.cached = max((pos for pos in kept if pos <= n), default=0)
        if path.cached:
            self._checkpoints.restore(kept[path.cached], path.cached, path.seq)
        else:
            self._ctx.seq_rm(path.seq, 0, -1)
        self._kept[path.seq] = {pos: state for pos, state in kept.items() if pos <= path.cached}

    def _remove(self, path: Path) -> None:
        self._ctx.seq_rm(path.seq, 0, -1)
        self._kept.pop(path.seq, None)
        self._free.append(path.seq)


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

    def step(self) -> Guessed | None:
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

    def _extend(self, number: int, path: Path, chunk: list[int], whole: bool, began: float) -> Guessed | None:
        n = len(chunk)
        wanted = np.zeros(n, np.int8)
        wanted[-1] = whole
        pos = np.arange(path.cached, path.cached + n, dtype=np.int32)
        self._paths.before(path)
        logits = self._ctx.decode(np.array(chunk, np.int32), pos, np.full(n, path.seq, np.int32), wanted)
        if self._stretch is not None and whole:
            left = began + stretched(self._stretch)(n) - clock()
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
        said = Guessed(
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


class Draft:
    """One thread takes orders in, another drafts."""

    def __init__(self, network: Network, address: str) -> None:
        self._server: Server[ToWorker] = Server(network.context, address, ToWorker)
        self._wakeup = Wakeup(network.context, "draft-out")
        self._out: deque[Message] = deque()
        self._orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._coordinator: bytes | None = None
        self._drafter: Drafter | None = None

    def serve(self) -> None:
        """Take orders in for ever (the lifeline ends this process)."""
        selector = Selector([self._server, self._wakeup])
        while True:
            for member in selector.wait(1.0):
                if member is self._wakeup:
                    self._wakeup.drain()
                else:
                    self._take_in()
            while self._out and self._coordinator is not None:
                self._server.send(self._coordinator, self._out.popleft())

    def _take_in(self) -> None:
        peer, message, _ = self._server.receive()
        match message:
            case Hello():
                why = objection(message, package_version(), llama_version())
                if why is not None:
                    self._server.send(peer, Refuse(why))
                    return
                self._coordinator = peer
                welcome = Welcome(PROTOCOL, package_version(), llama_version(), os.getpid(), cores())
                self._server.send(peer, welcome)
            case Ping(sent):
                self._server.send(peer, Pong(sent, clock()))
            case Bye():
                os._exit(0)
            case LoadDraft():
                threading.Thread(target=self._work, args=(message,), name="drafter", daemon=True).start()
            case None:
                self._server.send(peer, Refuse("this is a pipeinfer draft worker of another version"))
            case _:
                self._orders.put(message)
                if self._drafter is not None and isinstance(message, DraftReset | DraftDrop):
                    self._drafter.interrupt(message)

    def _post(self, message: Message) -> None:
        self._out.append(message)
        self._wakeup()

    def _work(self, load: LoadDraft) -> None:
        try:
            drafter = Drafter(load, lambda: not self._orders.empty())
            self._drafter = drafter
            self._post(drafter.loaded)
            while True:
                if drafter.idle:
                    drafter.obey(self._orders.get())
                while not self._orders.empty():
                    drafter.obey(self._orders.get())
                said = drafter.step()
                if said is not None:
                    self._post(said)
        except UserError as error:
            self._post(Failed(str(error), user=True))
        except Exception as error:  # whatever it is, the coordinator must hear of it
            traceback.print_exc()
            self._post(Failed(f"{type(error).__name__}: {error}"))
