"""Virtual time."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """A heap of things to do, and the time of the one being done."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (max(when, self.now), self._order, what))

    def step(self) -> bool:
        if not self._heap:
            return False
        self.now, _, what = heapq.heappop(self._heap)
        what()
        return True
