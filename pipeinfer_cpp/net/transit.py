"""An emulated link: when what was sent would have arrived over a slower wire.

The receiver holds a message back until then. Bytes leave one after the other at the link's rate, whatever
sent them, then travel for its latency; messages stay in order. Emulated on one machine only: sender and
receiver read the same monotonic clock.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")
PACKET_BYTES = 1448
"""What of a message one packet carries."""
FRAME_BYTES = 90
"""What TCP (with timestamps), IP and Ethernet (with preamble and gap) add to each packet."""


class LinkSpeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """mbit: megabits a second (0: no limit). latency_ms: one way. jitter_ms: up to so much more, at random."""

    mbit: float = 0.0
    latency_ms: float = 0.0
    jitter_ms: float = 0.0

    def seconds(self, n_bytes: int) -> float:
        """From the first byte's departure to the last one's arrival, without jitter."""
        return self.transmission(n_bytes) + self.latency_ms / 1000

    def transmission(self, n_bytes: int) -> float:
        """How long the wire is busy with it."""
        packets = max(1, -(-n_bytes // PACKET_BYTES))
        return 8e-6 * (n_bytes + packets * FRAME_BYTES) / self.mbit if self.mbit else 0.0


class Transit:
    """One direction of one link."""

    def __init__(self, speed: LinkSpeed, seed: int = 0) -> None:
        self.speed = speed
        self._free = self._last = 0.0
        self._random = random.Random(seed)

    def arrival(self, sent: float, n_bytes: int) -> float:
        """When a message that was handed over at `sent` is all there. Ask in the order of sending."""
        self._free = max(self._free, sent) + self.speed.transmission(n_bytes)
        jitter = self._random.random() * self.speed.jitter_ms
        self._last = max(self._last, self._free + (self.speed.latency_ms + jitter) / 1000)
        return self._last


class Arrivals(Generic[T]):
    """What is still under way on some links, by the time of its arrival."""

    def __init__(self, links: Sequence[LinkSpeed]) -> None:
        self._transits = [Transit(link, seed) for seed, link in enumerate(links)]
        self._heap: list[tuple[float, int, T]] = []
        self._order = 0

    def push(self, link: int, sent: float, n_bytes: int, item: T) -> None:
        """It was handed over at `sent`. Call in the order of sending on each link."""
        self._order += 1
        heapq.heappush(self._heap, (self._transits[link].arrival(sent, n_bytes), self._order, item))

    def next(self) -> float | None:
        """When the next one arrives, None when nothing is under way."""
        return self._heap[0][0] if self._heap else None

    def arrived(self, now: float) -> Iterator[T]:
        """All that are here by now, in the order of their arrival."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[2]
