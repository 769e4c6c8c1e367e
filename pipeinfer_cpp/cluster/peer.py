"""A worker as the coordinator sees it: connecting, comparing versions, noticing that it is gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeinfer_cpp.cluster.launch import Process
from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.net.keys import identity
from pipeinfer_cpp.net.messages import (
    PROTOCOL,
    Bye,
    Failed,
    Hello,
    Message,
    Ping,
    Pong,
    Refuse,
    ToCoordinator,
    Welcome,
)
from pipeinfer_cpp.net.sockets import Link, Network, check_address, clock
from pipeinfer_cpp.system.memory import Memory
from pipeinfer_cpp.system.versions import llama_version, package_version

M = TypeVar("M", bound=Message)
REAPED = 1.0
"""Seconds that a process of ours has to end, once its socket is closed."""
QUIET = 2.0
"""Seconds of silence after which the user is told."""


GivenUp = Callable[[], bool]
"""Whether nobody waits any more."""


def never() -> bool:
    return False


class WorkerDied(PipeInferError):
    """A stage or the draft worker ended or fell silent for too long. `peer`: who, where nobody is there any more."""

    def __init__(self, sentence: str, peer: Peer | None = None) -> None:
        super().__init__(sentence)
        self.peer = peer


class Peer:
    """One worker as the coordinator sees it: a link, and the process where it is ours."""

    def __init__(self, network: Network, name: str, address: str, process: Process | None = None) -> None:
        check_address(address)
        self.name, self.process = name, process
        self.link: Link[ToCoordinator] = Link(network.context, address, ToCoordinator)
        self.address = self.link.address
        self.runs = self.link
        """The link that runs go over: the same, unless the stage has a second socket."""
        self._network = network
        self.offset = 0.0
        """Its monotonic clock minus ours, seconds (0 on this machine)."""
        self.memory: Memory | None = None
        """Of its machine, when it was greeted."""
        self.heard = clock()
        """When it last said anything, by our clock."""
        self.greeted = False
        """It said what it is."""
        self._broken = False

    @property
    def remote(self) -> bool:
        return self.process is None

    @property
    def title(self) -> str:
        """Its name, and its address where that says something to people."""
        return f"{self.name} at {self.address}" if self.remote else self.name

    def check(self) -> None:
        """Raise WorkerDied when it is gone, naming it and its last output."""
        death = self.process.death() if self.process else None
        if death is not None:
            raise WorkerDied(f"{self.name} {death}.", self)
        self._broken = self.link.broken() or self._broken
        if self.link.refused and not self.greeted:
            if not self.link.keyed:
                raise UserError(
                    f"{self.title} wants a key, or is no stage: give its address as it printed it (tcp://KEY@HOST:PORT)."
                )
            raise UserError(
                f"{self.title} does not let this machine in. Its address must be the one that it printed, key and all, "
                f"and on its machine `pipeinfer keys trust {identity().text}` lets this one in."
            )
        if self._broken:
            if self.process is not None:
                # The socket closes before the process is reaped: a moment, or as long as its memory takes to go.
                until = time.monotonic() + REAPED
                while (death := self.process.death()) is None and time.monotonic() < until:
                    time.sleep(0.01)
                how = death or "does not answer any more, though its process is there"
                raise WorkerDied(f"{self.name} {how}.", self)
            raise WorkerDied(f"{self.title} is gone: see what it printed on its machine.", self)

    @property
    def gone(self) -> bool:
        try:
            self.check()
        except WorkerDied:
            return True
        return False

    def hello(self, session: str) -> None:
        """Begin to greet it. Say this to all before the first answer is waited for."""
        self.link.send(Hello(PROTOCOL, package_version(), llama_version(), "coordinator", session))

    def greet(self, session: str, timeout: float, others: Sequence[Peer] = (), given_up: GivenUp = never) -> str:
        """Wait for the answer to `hello`. Returns the machine it runs on. Raises UserError when it is unreachable or
        of another version, and what any of the `others` failed with meanwhile."""
        try:
            welcome = self.wait(Welcome, timeout, others, given_up)
        except WorkerDied as error:
            if not self.remote:
                raise
            raise UserError(f"What answers at {self.address} is not a pipeinfer stage (for {self.name}).") from error
        if welcome.runs is not None:
            self.runs = Link(self._network.context, welcome.runs, ToCoordinator)
        if self.remote:
            sent = clock()
            self.link.send(Ping(sent))
            while (pong := self.wait(Pong, timeout)).sent != sent:
                pass  # stages send some unasked, to see whether anyone is there
            self.offset = pong.clock - (sent + clock()) / 2
        self.memory = Memory(welcome.memory_total, welcome.memory_free) if welcome.memory_total else None
        self.greeted = True
        return welcome.machine

    def meet_runs(self, session: str, timeout: float) -> None:
        """Of a stage that is ready: wait until its computing side answers where runs go. Raises UserError when
        nobody does within `timeout` seconds, and WorkerDied."""
        if self.runs is self.link:
            return
        began = clock()
        self.runs.send(Hello(PROTOCOL, package_version(), llama_version(), "runs", session))
        while not isinstance(self.runs.receive(0.05), Pong):  # until then, what it said in an earlier epoch
            self.check()
            if clock() - began > timeout and not (self.process is not None and self.process.stopped()):
                raise UserError(
                    f"{self.title} is ready, but nothing answers at its address for runs, {self.runs.address}: "
                    "was that socket removed? Start the stage again."
                )

    def wait(self, kind: type[M], timeout: float, others: Sequence[Peer] = (), given_up: GivenUp = never) -> M:
        """The next message of that kind. Raises UserError when none comes in `timeout` seconds, and WorkerDied when
        it or one of the `others` ends, or nobody needs it any more."""
        began = clock()
        while True:
            if given_up():
                raise WorkerDied(f"{self.name} is not needed any more.")
            message = self.link.receive(0.05)
            if isinstance(message, kind):
                return message
            if message is None:
                for peer in (self, *others):
                    peer.check()
            else:
                self.heed(message)
            waited = clock() - began
            if self.process is not None and waited > QUIET and self.process.stopped():
                raise WorkerDied(f"{self.name} was suspended before it was ready: start again.")
            if waited > timeout:
                if not self.remote:
                    late = f"{self.name} did not answer within {timeout:.0f} s"
                    raise PipeInferError(f"{late}: is this machine very busy?")
                raise UserError(f"{self.title} does not answer: is it running, and is the address right?")

    def heed(self, message: Message) -> None:
        """Raise what it says of a failure, as this peer's."""
        match message:
            case Refuse(reason, user) | Failed(reason, user):
                sentence = f"{self.title} refuses: {reason.rstrip('.')}."
                raise (UserError if user else PipeInferError)(sentence)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.link.send(Bye())
        # ZeroMQ sends in the background; without a moment the farewell is dropped with the socket.
        time.sleep(0.01)
        self.link.close()
        if self.runs is not self.link:
            self.runs.close()
