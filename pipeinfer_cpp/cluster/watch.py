"""Whether the workers live: processes of ours by their pid, others by their connection and their signs of life."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeinfer_cpp.cluster.peer import QUIET, Peer, WorkerDied
from pipeinfer_cpp.net.messages import Ping
from pipeinfer_cpp.net.sockets import clock

PATROL = 0.05
"""Seconds between looks at whether all workers live."""
PING = 0.5
"""Seconds between signs of life to the workers, which they answer."""
PAUSE = 1.0
"""Seconds between two looks that mean that this process stood still itself: nobody's silence counts then."""
Notice = Callable[[str], None]
"""One sentence for the user, at once."""


class Watch:
    """Call `look` often, from the thread that receives what the peers say.

    Silence is not death: a process of ours lives as long as its pid does, and a peer elsewhere may be silent for
    `limit` seconds. Who answers again is used again.
    """

    def __init__(self, peers: Sequence[Peer], limit: float, notice: Notice) -> None:
        self.peers, self.limit, self.notice = list(peers), limit, notice
        self.quiet: dict[Peer, str] = {}
        """Who is silent, and what was said of it."""
        self._looked = self._pinged = clock()
        for peer in peers:
            peer.heard = self._looked

    def lost(self, peer: Peer) -> None:
        """It is not watched any more."""
        self.peers.remove(peer)
        self.quiet.pop(peer, None)

    def look(self) -> list[tuple[Peer, WorkerDied]]:
        """Those who are gone."""
        now = clock()
        if now - self._looked < PATROL:
            return []
        if now - self._looked > PAUSE:  # suspended: what was said meanwhile is still to be read
            for peer in self.peers:
                peer.heard = now
        self._looked = now
        if now - self._pinged >= PING:
            self._pinged = now
            for peer in self.peers:
                peer.link.send(Ping(now))
        gone = []
        for peer in self.peers:
            try:
                self._look_at(peer, now)
            except WorkerDied as death:
                gone.append((peer, death))
        return gone

    def _look_at(self, peer: Peer, now: float) -> None:
        peer.check()
        silent = now - peer.heard
        if silent < QUIET:
            if self.quiet.pop(peer, None) is not None:
                self.notice(f"{peer.name} answers again.")
            return
        if peer.process is None and silent > self.limit:
            raise WorkerDied(
                f"{peer.name} at {peer.address} has been silent for {self.limit:.0f} s and is given up: "
                "see whether its machine and the network are up (--patience waits longer).",
                peer,
            )
        if peer not in self.quiet:
            self.quiet[peer] = self._sentence(peer)
            self.notice(self.quiet[peer])

    def _sentence(self, peer: Peer) -> str:
        process = peer.process
        if process is None:
            return (
                f"{peer.name} at {peer.address} does not answer; it has {self.limit:.0f} s before it is given up."
            )
        if process.stopped():
            return f"{peer.name} is suspended: wake it with kill -CONT {process.pid}."
        return f"{peer.name} does not answer, though its process ({process.pid}) is there: waiting for it."
