"""From addresses to a pipeline that is ready: connect, compare versions, load, collect what was measured."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeinfer_cpp.cluster.launch import Process
from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.memory import Memory
from pipeinfer_cpp.net.messages import (
    PROTOCOL,
    Bye,
    Failed,
    Hello,
    Loaded,
    Message,
    Ping,
    Pong,
    Progress,
    Refuse,
    ToCoordinator,
    Welcome,
)
from pipeinfer_cpp.net.sockets import Link, Network, check_address, clock
from pipeinfer_cpp.versions import llama_version, package_version

M = TypeVar("M", bound=Message)
Report = Callable[[str, str, int, int], None]
"""(worker, what it does, done, total)"""


class WorkerDied(PipeInferError):
    """A stage or the draft worker ended or fell silent."""


class Peer:
    """One worker as the coordinator sees it: a link, and the process where it is ours."""

    def __init__(self, network: Network, name: str, address: str, process: Process | None = None) -> None:
        check_address(address)
        self.name, self.address, self.process = name, address, process
        self.link: Link[ToCoordinator] = Link(network.context, address, ToCoordinator)
        self.runs = self.link
        """The link that runs go over: the same, unless the stage has a second socket."""
        self._network = network
        self.offset = 0.0
        """Its monotonic clock minus ours, seconds (0 on this machine)."""
        self.memory: Memory | None = None
        """Of its machine, when it was greeted."""
        self._broken = False

    @property
    def remote(self) -> bool:
        return self.process is None

    def check(self) -> None:
        """Raise WorkerDied when it is gone, naming it and its last output."""
        death = self.process.death() if self.process else None
        if death is not None:
            raise WorkerDied(f"{self.name} {death}.")
        self._broken = self._broken or self.link.broken()
        if self._broken:
            if self.process is not None:
                time.sleep(0.05)  # the socket closes a moment before the process is reaped
                death = self.process.death() or "does not answer any more, though its process is there"
                raise WorkerDied(f"{self.name} {death}.")
            raise WorkerDied(f"{self.name} at {self.address} is gone: see what it printed on its machine.")

    def greet(self, session: str, timeout: float) -> str:
        """Hello, Welcome. Returns the machine it runs on. Raises UserError when it is unreachable or of
        another version."""
        self.link.send(Hello(PROTOCOL, package_version(), llama_version(), "coordinator", session))
        try:
            welcome = self.wait(Welcome, timeout)
        except WorkerDied as error:
            if not self.remote:
                raise
            raise UserError(f"What listens at {self.address} is no pipeinfer stage (for {self.name}).") from error
        if welcome.runs is not None:
            self.runs = Link(self._network.context, welcome.runs, ToCoordinator)
            self.runs.send(Hello(PROTOCOL, package_version(), llama_version(), "runs", session))
        if self.remote:
            sent = clock()
            self.link.send(Ping(sent))
            while (pong := self.wait(Pong, timeout)).sent != sent:
                pass  # stages send some unasked, to see whether anyone is there
            self.offset = pong.clock - (sent + clock()) / 2
        self.memory = Memory(welcome.memory_total, welcome.memory_free) if welcome.memory_total else None
        return welcome.machine

    def wait(
        self,
        kind: type[M],
        timeout: float | None,
        report: Report | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> M:
        """The next message of that kind; Progress is reported on the way, `meanwhile` is called now and then."""
        deadline = None if timeout is None else clock() + timeout
        while True:
            message = self.link.receive(0.05)
            if isinstance(message, kind):
                return message
            match message:
                case Progress(what, done, total):
                    if report:
                        report(self.name, what, done, total)
                case Refuse(reason, user) | Failed(reason, user):
                    sentence = f"{self.name} at {self.address} refuses: {reason.rstrip('.')}."
                    raise (UserError if user else PipeInferError)(sentence)
            meanwhile()
            if message is None:
                self.check()
            if deadline is not None and clock() > deadline:
                raise UserError(
                    f"{self.name} at {self.address} does not answer: is it running, and is the address right?"
                )

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.link.send(Bye())
        # ZeroMQ sends in the background; without a moment the farewell is dropped with the socket.
        time.sleep(0.01)
        self.link.close()
        if self.runs is not self.link:
            self.runs.close()


def load(peers: Sequence[Peer], orders: Sequence[Message], report: Report | None) -> list[Loaded]:
    """Send each worker its order and wait until all are ready."""
    for peer, order in zip(peers, orders, strict=True):
        peer.link.send(order)
    pinged = clock()

    def ping_all() -> None:
        nonlocal pinged
        if clock() - pinged > 1.0:
            pinged = clock()
            for peer in peers:
                peer.link.send(Ping(pinged))

    return [peer.wait(Loaded, None, report, ping_all) for peer in peers]
