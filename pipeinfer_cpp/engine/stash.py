"""Conversations that gave up their slot: what every stage keeps of them beside its cache."""

from __future__ import annotations

from pipeinfer_cpp.engine.sequences import Op, drop, stash


class Stash:
    """Numbers of states, each of a conversation's first positions. The stages keep no more than `budget` positions in
    all, those stashed first given up first, and none of a conversation of more than `longest`."""

    def __init__(self, budget: int, longest: int) -> None:
        self._budget, self._longest = budget, min(longest, budget)
        self.kept: dict[int, int] = {}
        """Number -> positions, the oldest first."""
        self._next = 1

    def put(self, seq: int, n: int) -> tuple[int, list[Op]]:
        """The `n` positions of a sequence leave the cache. Returns the number that they are kept under, 0 where they
        are not, and the operations. No number is used twice."""
        if not 0 < n <= self._longest:
            return 0, []
        ops: list[Op] = []
        while sum(self.kept.values()) + n > self._budget:
            ops += self.drop(next(iter(self.kept)))
        number = self._next
        self._next += 1
        self.kept[number] = n
        return number, [*ops, stash(seq, number, n)]

    def take(self, number: int) -> int:
        """It goes back to a cache. Returns its positions: 0 where it is not kept any more."""
        return self.kept.pop(number, 0)

    def drop(self, number: int) -> list[Op]:
        """Nobody needs it."""
        return [drop(number)] if self.kept.pop(number, 0) else []

    def lost(self) -> None:
        """The stages keep nothing any more."""
        self.kept.clear()
