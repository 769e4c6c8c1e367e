"""The stage process: one thread takes messages in, another computes."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from pipeinfer_cpp.net.keys import Guard, Identity
from pipeinfer_cpp.net.messages import (
    PROTOCOL,
    Bye,
    Cancel,
    Failed,
    Hello,
    Loaded,
    LoadSlice,
    Message,
    Piece,
    Ping,
    Pong,
    Progress,
    Refuse,
    RunHeader,
    ToWorker,
    Welcome,
    objection,
)
from pipeinfer_cpp.net.sockets import Network, Selector, Server, Wakeup, clock
from pipeinfer_cpp.net.transit import Arrivals
from pipeinfer_cpp.system.machine import Share, cores, machine_id
from pipeinfer_cpp.system.memory import Memory, memory
from pipeinfer_cpp.system.versions import llama_version, package_version
from pipeinfer_cpp.workers.compute import Compute, Resolve

SIGN = 0.4
"""Seconds between signs of life."""
KEPT = 600.0
"""Seconds that a silent coordinator elsewhere keeps this stage while nobody else wants it."""


class Stage:
    """Serves one coordinator at a time, then waits for the next."""

    def __init__(
        self,
        network: Network,
        address: str,
        resolve: Resolve,
        say: Callable[[str], None],
        threads: int | None = None,
        own: Identity | None = None,
    ) -> None:
        """`own`: who this is, where only trusted keys may connect."""
        self._network, self._resolve, self._say, self._threads = network, resolve, say, threads
        self._guard = Guard(network.context, say) if own is not None else None
        self._server: Server[ToWorker] = Server(network.context, address, ToWorker, own)
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
        self._heard = self._looked = clock()
        self._patience = 10.0
        self._silent = False
        self._told = 0.0
        """When the coordinator was told that something large is coming in."""
        self._compute: Compute | None = None
        self._strange = 0.0
        """When what is no message came last."""
        self._known: dict[bytes, str] = {}
        """Who said hello on the second socket in this session, with its role."""
        self._cancels: Arrivals[tuple[int, ...]] | None = None
        """On an emulated link: cancellations that are still under way."""

    def serve(self) -> None:
        """Take messages in for ever."""
        # Python's own 5 ms is how long a cancellation would wait while the other thread draws tokens.
        sys.setswitchinterval(0.0005)
        selector = Selector([self._server, self._wakeup])
        while True:
            due = self._cancels.next() if self._cancels is not None else None
            for member in selector.wait(SIGN if due is None else min(max(due - clock(), 0.0), SIGN)):
                if member is self._wakeup:
                    self._wakeup.drain()
                else:
                    self._take_in()
            for runs in self._cancels.arrived(clock()) if self._cancels is not None else ():
                if self._compute is not None:
                    self._compute.cancel(runs)
            while self._out:
                message = self._out.popleft()
                if isinstance(message, Loaded):
                    self._say("the layers are loaded and tested")
                if self._coordinator is not None:
                    self._server.send(self._coordinator, message)
            if self._coordinator is not None:
                self._look_after(self._coordinator)

    def _look_after(self, coordinator: bytes) -> None:
        """Now and then: is the coordinator still there?"""
        now = clock()
        if now - self._looked < SIGN:
            return
        self._looked = now
        if self._previous is not None:  # it sends large messages and hears nothing else: tell it that we are here
            self._server.send(self._previous, Pong(0.0, now))
        if self._gone(coordinator):
            self._end()
        elif self._runs_at is None and self._lost() and not self._silent:
            self._silent = True
            self._say("the coordinator is silent: its session is kept until it returns or another one connects")
        elif self._runs_at is None and now - self._heard > KEPT:
            self._say("the coordinator has been silent for too long")
            self._server.send(coordinator, Failed("it has not heard from the coordinator for too long"))
            self._end()

    def _lost(self) -> bool:
        """The coordinator has been silent for longer than it would wait for us."""
        return self._runs_at is None and clock() - self._heard > self._patience

    def _gone(self, coordinator: bytes) -> bool:
        if self._server.send(coordinator, Pong(0.0, clock())):
            return False
        self._say("the coordinator is gone")
        return True

    def close(self) -> None:
        """Drop whatever is under way and free the sockets."""
        self._end()
        self._wakeup.close()
        if self._guard is not None:
            self._guard.close()
        for server in (self._server, self._runs):
            if server is not None:
                server.close()

    def _take_in(self) -> None:
        peer, message, payload = self._server.receive()
        if peer == self._coordinator:
            self._heard = clock()
            if self._silent:
                self._silent = False
                self._say("the coordinator is back")
        match message:
            case RunHeader() if peer in (self._coordinator, self._previous) and self._compute:
                self._compute.inbox.put((message, payload))
            case Piece() if peer == self._previous:
                if clock() - self._told > 0.5:
                    self._told = clock()
                    self._post(Progress("receiving hidden states", 0, 0))
            case Cancel(runs, sent) if peer == self._coordinator and self._compute:
                if self._cancels is not None:
                    self._cancels.push(0, sent, 8 * len(runs), runs)
                else:  # `sent` is another machine's clock: it means nothing here
                    self._compute.cancel(runs)
            case Ping(sent) if peer in self._server.known:
                self._server.send(peer, Pong(sent, clock()))
            case Hello():
                self._hello(peer, message)
            case LoadSlice() if peer == self._coordinator:
                self._stop_computing()
                self._patience = message.patience
                if self._guard is not None:
                    self._guard.neighbours = frozenset(filter(None, [message.previous]))
                self._cancels = Arrivals([message.link]) if message.link is not None else None
                load = self._with_threads(message)
                self._compute = Compute(
                    self._network, load, self._session, self._resolve, self._post, self._runs, self._known
                )
            case Bye() if peer == self._coordinator:
                self._say("the coordinator has left")
                self._end()
            case None if clock() - self._strange > 1.0:  # no more often: nobody may be reading
                self._strange = clock()
                self._say("something came that is no message of this version")
                self._server.send(peer, Refuse("this is a pipeinfer stage of another version, or no message for one"))
            case _:
                pass  # from a session that is over

    def _with_threads(self, load: LoadSlice) -> LoadSlice:
        """What this stage was started with goes before what the coordinator asks for."""
        options = load.options
        threads = Share(cores(), options.sharing, self._threads or options.threads or None).threads
        self._say(f"computes with {threads} thread{'s' if threads > 1 else ''}")
        return replace(load, options=replace(options, threads=threads))

    def _hello(self, peer: bytes, hello: Hello) -> None:
        why = objection(hello, package_version(), llama_version())
        if why is None and hello.role == "stage":
            if self._coordinator is not None and hello.session == self._session:
                self._previous = peer
                self._server.known.add(peer)
                self._server.send(peer, self._welcome())
            else:
                self._server.send(peer, Refuse("it is not of this session"))
            return
        if why is None and self._coordinator not in (None, peer):
            if self._gone(self._coordinator):
                self._end()
            elif self._lost():
                self._say("the silent coordinator lost its session to another one")
                self._server.send(self._coordinator, Failed("another coordinator took it while this one was silent"))
                self._end()
        if why is None and self._coordinator not in (None, peer):
            why = "this stage is working for another coordinator: wait for it, or start another stage"
        if why is not None:
            self._server.send(peer, Refuse(why))
            return
        self._coordinator, self._session, self._heard = peer, hello.session, clock()
        self._server.known.add(peer)
        self._say("a coordinator has connected")
        self._server.send(peer, self._welcome())

    def _welcome(self) -> Welcome:
        versions = PROTOCOL, package_version(), llama_version()
        room = memory() or Memory(0, 0)
        return Welcome(*versions, os.getpid(), cores(), self._runs_at, machine_id(), room.total, room.free)

    def _post(self, message: Message) -> None:
        """From the computing thread."""
        self._out.append(message)
        self._wakeup()

    def _end(self) -> None:
        self._coordinator = self._previous = None
        self._session, self._silent, self._patience = "", False, 10.0
        self._stop_computing()
        self._known.clear()
        self._server.known.clear()
        if self._guard is not None:
            self._guard.neighbours = frozenset()

    def _stop_computing(self) -> None:
        if self._compute is not None:
            self._compute.stop()
            self._compute = None
        self._out.clear()
        self._cancels = None
