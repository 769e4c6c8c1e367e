"""The stage process: one thread takes messages in, another computes."""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.net.handshake import objection
from pipeinfer_cpp.net.messages import (
    PROTOCOL,
    Bye,
    Cancel,
    Failed,
    Hello,
    LoadSlice,
    Message,
    ModelRef,
    Ping,
    Pong,
    Progress,
    Refuse,
    RunBack,
    RunHeader,
    StageReady,
    ToCoordinator,
    ToWorker,
    Welcome,
)
from pipeinfer_cpp.net.sockets import Link, Network, Selector, Server, Wakeup, clock
from pipeinfer_cpp.versions import llama_version, package_version
from pipeinfer_cpp.workers.lifeline import resident_mb
from pipeinfer_cpp.workers.slice_runner import Result, SliceRunner

Resolve = Callable[[ModelRef, int, int, Callable[[str, int, int], None]], Path]
"""(model, first layer, end layer, report) -> the slice's file on this machine."""

SILENCE = 10.0
"""Seconds without a message after which the coordinator, which pings every second, is taken for gone."""


class Stage:
    """Serves one coordinator at a time, then waits for the next."""

    def __init__(self, network: Network, address: str, resolve: Resolve, say: Callable[[str], None]) -> None:
        self._network, self._resolve, self._say = network, resolve, say
        self._server: Server[ToWorker] = Server(network.context, address, ToWorker)
        # On one machine runs have a socket of their own, which the computing thread reads and answers
        # itself: two changes of thread less for each run. Over TCP one open port is worth more.
        self._runs_at = address + "r" if address.startswith("ipc://") else None
        self._runs: Server[ToWorker] | None = (
            Server(network.context, self._runs_at, ToWorker) if self._runs_at is not None else None
        )
        self._wakeup = Wakeup(network.context, "stage-out")
        self._out: deque[Message] = deque()
        self._coordinator: bytes | None = None
        self._previous: bytes | None = None
        self._session = ""
        self._heard = 0.0
        self._compute: _Compute | None = None

    def serve(self) -> None:
        """Take messages in for ever."""
        selector = Selector([self._server, self._wakeup])
        while True:
            for member in selector.wait(1.0):
                if member is self._wakeup:
                    self._wakeup.drain()
                else:
                    self._take_in()
            while self._out:
                message = self._out.popleft()
                if self._coordinator is not None:
                    self._server.send(self._coordinator, message)
            if self._coordinator is not None and clock() - self._heard > SILENCE:
                self._say("the coordinator has gone silent")
                self._server.send(self._coordinator, Failed("it has heard nothing from the coordinator for too long"))
                self._end()

    def _take_in(self) -> None:
        peer, message, payload = self._server.receive()
        if peer == self._coordinator:
            self._heard = clock()
        match message:
            case RunHeader() if peer in (self._coordinator, self._previous) and self._compute:
                self._compute.inbox.put((message, payload))
            case Cancel(runs) if peer == self._coordinator and self._compute:
                self._compute.cancel(runs)
            case Ping(sent):
                self._server.send(peer, Pong(sent, clock()))
            case Hello():
                self._hello(peer, message)
            case LoadSlice() if peer == self._coordinator:
                self._stop_computing()
                self._compute = _Compute(
                    self._network, message, self._session, self._resolve, self._post, self._runs
                )
            case Bye() if peer == self._coordinator:
                self._say("the coordinator has left")
                self._end()
            case None:
                self._server.send(peer, Refuse("this is a pipeinfer stage of another version, or no message for one"))
            case _:
                pass  # from a session that is over

    def _hello(self, peer: bytes, hello: Hello) -> None:
        why = objection(hello, package_version(), llama_version())
        if why is None and hello.role == "stage":
            if hello.session == self._session:
                self._previous = peer
            return
        if why is None and self._coordinator not in (None, peer):
            why = "this stage is working for another coordinator: wait for it, or start another stage"
        if why is not None:
            self._server.send(peer, Refuse(why))
            return
        self._coordinator, self._session, self._heard = peer, hello.session, clock()
        self._say("a coordinator has come")
        self._server.send(
            peer,
            Welcome(PROTOCOL, package_version(), llama_version(), os.getpid(), os.cpu_count() or 1, self._runs_at),
        )

    def _post(self, message: Message) -> None:
        """From the computing thread."""
        self._out.append(message)
        self._wakeup()

    def _end(self) -> None:
        self._coordinator = self._previous = None
        self._session = ""
        self._stop_computing()

    def _stop_computing(self) -> None:
        if self._compute is not None:
            self._compute.stop()
            self._compute = None
        self._out.clear()


class _Compute:
    """The thread that loads the slice and executes runs in their order."""

    def __init__(
        self,
        network: Network,
        load: LoadSlice,
        session: str,
        resolve: Resolve,
        post: Callable[[Message], None],
        runs: Server[ToWorker] | None,
    ) -> None:
        self._runs = runs
        self._known: set[bytes] = set()
        self._back: bytes | None = None
        self.inbox: queue.SimpleQueue[tuple[RunHeader, memoryview | None] | None] = queue.SimpleQueue()
        self._network, self._load, self._session = network, load, session
        self._resolve, self._post = resolve, post
        self._runner: SliceRunner | None = None
        self._following: Link[ToCoordinator] | None = None
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
                self._execute(*item)
        except UserError as error:
            self._post(Failed(str(error), user=True))
        except PipeInferError as error:
            self._post(Failed(str(error)))
        except Exception as error:  # whatever it is, the coordinator must hear of it
            traceback.print_exc()
            self._post(Failed(f"{type(error).__name__}: {error}"))
        finally:
            if self._runner is not None:
                self._runner.close()
            if self._following is not None:
                self._following.close()

    def _set_up(self) -> None:
        load = self._load

        def report(what: str, done: int, total: int) -> None:
            if not self._stopping:
                self._post(Progress(what, done, total))

        path = self._resolve(load.model, load.first, load.end, report)
        self._runner = SliceRunner(load, str(path), report)
        if load.following is not None:
            self._following = Link(self._network.context, load.following, ToCoordinator)
            self._following.send(Hello(PROTOCOL, package_version(), llama_version(), "stage", self._session))
        self._post(self._runner.loaded)

    def _next_run(self) -> tuple[RunHeader, memoryview | None] | None:
        """The next run, None when the session is over."""
        if self._runs is None:
            return self.inbox.get()
        while not self._stopping:
            if not self._runs.poll(0.1, self._load.active):
                continue
            peer, message, payload = self._runs.receive()
            match message:
                case RunHeader() if peer in self._known:
                    return message, payload
                case Hello(role=role, session=session) if session == self._session:
                    self._known.add(peer)
                    if role == "runs":
                        self._back = peer
        return None

    def _execute(self, run: RunHeader, payload: memoryview | None) -> None:
        assert self._runner is not None
        result = self._runner.execute(run, payload)
        sent = self._pass_on(run, result)
        index = self._load.index
        self._post(StageReady(index, run.id, result.outcome, result.began, result.ended, sent))

    def _pass_on(self, run: RunHeader, result: Result) -> int:
        """The run to the next stage, or its draws to the coordinator. Returns the bytes of it."""
        dead = bool(run.rows) and result.outcome != "done"
        memory = run.memory if run.kind != "end" else {**run.memory, f"stage-{self._load.index}": resident_mb()}
        if self._following is None:
            back = RunBack(run.id, dead, result.draws, memory)
            if self._runs is not None and self._back is not None:
                self._runs.send(self._back, back)
            else:
                self._post(back)
            return 16 + 12 * len(result.draws)
        header = RunHeader(run.id, run.kind, run.ops, run.rows, run.final, run.turn, dead, memory)
        hidden = None if result.hidden is None else memoryview(result.hidden).cast("B")
        return self._following.send(header, hidden)
