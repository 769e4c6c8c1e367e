"""A stage's computing thread: it loads the slice, then executes runs in their order."""

from __future__ import annotations

import contextlib
import queue
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.net.codecs import codec
from pipeinfer_cpp.net.messages import (
    PROTOCOL,
    Failed,
    Hello,
    LoadSlice,
    Message,
    ModelRef,
    Passed,
    Pong,
    Progress,
    Refuse,
    RunBack,
    RunHeader,
    ToCoordinator,
    ToWorker,
    Welcome,
)
from pipeinfer_cpp.net.sockets import Link, Network, Server, clock
from pipeinfer_cpp.net.transit import Transit
from pipeinfer_cpp.system.versions import llama_version, package_version
from pipeinfer_cpp.workers.lifeline import resident_mb
from pipeinfer_cpp.workers.slice_runner import Computed, SliceRunner

Resolve = Callable[[ModelRef, int, int, Callable[[str, int, int], None]], tuple[Path, Path]]
"""(model, first layer, end layer, report) -> the model's file on this machine, and the slice's."""
PATIENCE = 5.0
"""Seconds that the next stage, which listens already, has to answer."""


class _Stopped(Exception):
    """The session is over while the slice is being made or loaded."""


class Compute:
    """The thread that loads the slice and executes runs in their order."""

    def __init__(
        self,
        network: Network,
        load: LoadSlice,
        session: str,
        resolve: Resolve,
        post: Callable[[Message], None],
        runs: Server[ToWorker] | None,
        known: dict[bytes, str],
    ) -> None:
        """`runs`: the socket where runs come, and `known` who said hello there in this session, with its role: one that
        is quick says it to the thread of the epoch before."""
        self._runs, self._known = runs, known
        self.inbox: queue.SimpleQueue[tuple[RunHeader, memoryview | None] | None] = queue.SimpleQueue()
        self._network, self._load, self._session = network, load, session
        self._resolve, self._post = resolve, post
        self._runner: SliceRunner | None = None
        self._following: Link[ToCoordinator] | None = None
        self._heard = self._looked = clock()
        """Of the next stage: when it last said anything, and when that was last asked."""
        self._transit = Transit(load.link, load.index) if load.link else None
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    def cancel(self, runs: tuple[int, ...]) -> None:
        if self._runner is not None:
            self._runner.cancel(runs)

    def stop(self) -> None:
        """End the thread, also inside a decode, and free the model."""
        self._stopping = True
        self.inbox.put(None)
        while self._thread.is_alive():
            if self._runner is not None:
                self._runner.interrupt()
            self._thread.join(0.01)

    def _work(self) -> None:
        try:
            self._set_up()
            while (item := self._next_run()) is not None and not self._stopping:
                if item[0].epoch == self._load.epoch:
                    self._execute(*item)
        except _Stopped:
            pass
        except UserError as error:
            self._post(Failed(str(error), user=True, epoch=self._load.epoch))
        except PipeInferError as error:
            self._post(Failed(str(error), epoch=self._load.epoch))
        except Exception as error:  # whatever it is, the coordinator must hear of it
            traceback.print_exc()
            self._post(Failed(f"{type(error).__name__}: {error}", epoch=self._load.epoch))
        finally:
            if self._runner is not None:
                self._runner.close()
            if self._following is not None:
                self._following.close()

    def _set_up(self) -> None:
        load = self._load

        def report(what: str, done: int, total: int) -> None:
            if self._stopping:
                raise _Stopped
            self._post(Progress(what, done, total))

        model, path = self._resolve(load.model, load.first, load.end, report)
        load = replace(load, model=replace(load.model, path=str(model)))
        self._runner = SliceRunner(load, str(path), report)
        if load.following is not None:
            self._following = Link(self._network.context, load.following, ToCoordinator)
            self._following.send(Hello(PROTOCOL, package_version(), llama_version(), "stage", self._session))
            if self._runs is None:
                self._meet_following(self._following)
            self._heard = self._looked = clock()
        self._post(replace(self._runner.loaded, epoch=load.epoch))

    def _meet_following(self, link: Link[ToCoordinator]) -> None:
        """Wait until the next stage says that it hears this one: its address must hold on this machine too."""
        deadline = clock() + PATIENCE
        while clock() < deadline and not self._stopping:
            match link.receive(0.1):
                case Welcome():
                    return
                case Refuse(reason):
                    raise UserError(f"the next stage, {link.address}, refuses: {reason.rstrip('.')}")
        raise UserError(f"it cannot reach the next stage at {link.address}: that address must hold on its machine too")

    def _next_run(self) -> tuple[RunHeader, memoryview | None] | None:
        """The next run, None when the session is over."""
        if self._runs is None:
            while True:
                if self._following is not None:
                    self._look_at(self._following)
                with contextlib.suppress(queue.Empty):
                    return self.inbox.get(timeout=0.5)
        while not self._stopping:
            if not self._runs.poll(0.1, self._load.active):
                continue
            peer, message, payload = self._runs.receive()
            match message:
                case RunHeader() if peer in self._known:
                    return message, payload
                case Hello(role=role, session=session) if session == self._session:
                    self._known[peer] = role
                    if role == "runs":
                        self._runs.send(peer, Pong(0.0, clock()))  # it is us whom it reaches
        return None

    def _look_at(self, link: Link[ToCoordinator]) -> None:
        """Twice a second: raise when the next stage is gone, or silent for too long. It sends signs of life
        all the time, however long what is under way to it takes on a slow wire."""
        now = clock()
        if now - self._looked < 0.5:
            return
        if now - self._looked > 2.0:  # a long decode, or a suspension: what came meanwhile may still be on its way
            self._heard = max(self._heard, now - self._load.patience + 2.0)
        self._looked = now
        while link.receive() is not None:
            self._heard = now
        if link.broken():
            raise PipeInferError(f"its connection to the next stage, {link.address}, is lost")
        if now - self._heard > self._load.patience:
            raise PipeInferError(
                f"it has heard nothing from the next stage, {link.address}, for {now - self._heard:.0f} s"
            )

    def _execute(self, run: RunHeader, payload: memoryview | None) -> None:
        assert self._runner is not None
        due = None
        if self._transit is not None:
            due = self._transit.arrival(run.sent, run.size + (payload.nbytes if payload is not None else 0))
        result = self._runner.execute(run, payload, due)
        sent = self._pass_on(run, result)
        index = self._load.index
        self._post(Passed(index, run.id, result.outcome, result.began, result.ended, sent, run.epoch))

    def _pass_on(self, run: RunHeader, result: Computed) -> int:
        """The run to the next stage, or its draws to the coordinator. Returns the bytes of it."""
        assert self._runner is not None
        dead = bool(run.rows) and result.outcome != "done"
        memory, held = run.memory, run.held
        if run.kind == "end":
            name = f"stage-{self._load.index}"
            memory, held = {**memory, name: resident_mb()}, {**held, name: self._runner.held()}
        if self._following is None:
            told = result.lost, result.tops, run.epoch
            back = RunBack(run.id, dead, result.draws, memory, held, clock(), *told)
            coordinator = next((peer for peer, role in self._known.items() if role == "runs"), None)
            if self._runs is not None and coordinator is not None:
                self._runs.send(coordinator, back)
            else:
                self._post(back)
            return 16 + 12 * len(result.draws)
        header = replace(run, dead=dead, memory=memory, held=held, sent=clock())
        if result.hidden is None:
            return self._following.send(header)
        wire = codec(self._load.wire_out, result.hidden.shape[1])
        return self._following.send(header, wire.encode(result.hidden))
