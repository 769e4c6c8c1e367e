"""From addresses to a pipeline that is ready: connect, compare versions, load, collect what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pipeinfer_cpp.cluster import claims
from pipeinfer_cpp.cluster.peer import Peer, WorkerDied
from pipeinfer_cpp.cluster.watch import Watch
from pipeinfer_cpp.net.messages import (
    Loaded,
    Message,
    Progress,
)
from pipeinfer_cpp.net.sockets import Selector, clock
from pipeinfer_cpp.system.reports import Report

M = TypeVar("M", bound=Message)
RUNS_S = 5.0
"""Seconds that a stage that is ready has to answer where its runs go."""


class Loading:
    """Workers that get ready, all at the same time. Whichever fails is told at once, by its name."""

    def __init__(self, peers: Sequence[Peer], report: Report | None, patience: float) -> None:
        self._peers, self._report = list(peers), report or (lambda *_: None)
        self._by_link = {id(peer.link): peer for peer in peers}
        self._selector = Selector([peer.link for peer in peers])
        self._loaded: dict[Peer, Loaded] = {}
        self._watch = Watch(peers, patience, lambda text: self._report("coordinator", text, 0, 0))
        for peer in peers:
            self._report(peer.name, "starting", 0, 0)

    def send(self, peer: Peer, order: Message) -> None:
        """Tell a worker what to load."""
        peer.link.send(order)
        self._report(peer.name, "loading", 0, 0)

    def poll(self, seconds: float = 0.05) -> None:
        """Take in what the workers say for so long. Raises what one of them says of a failure, and WorkerDied."""
        for link in self._selector.wait(seconds):
            peer = self._by_link[id(link)]
            while (message := peer.link.receive()) is not None:
                peer.heard = clock()
                match message:
                    case Loaded():
                        if (wrong := claims.loaded(message, peer.name.startswith("Stage"))) is not None:
                            raise WorkerDied(f"{peer.title} sent something impossible: {wrong}. Start it again.")
                        self._loaded[peer] = message
                        self._report(peer.name, "ready", 1, 1)
                    case Progress(what, done, total):
                        self._report(peer.name, what, done, total)
                    case _:
                        peer.heed(message)
        for _, death in self._watch.look():
            raise death

    def wait(self) -> list[Loaded]:
        """What each measured, in the order of the peers, once all are ready."""
        while len(self._loaded) < len(self._peers):
            self.poll()
        for peer in self._peers:
            peer.meet_runs(RUNS_S)
        return [self._loaded[peer] for peer in self._peers]
