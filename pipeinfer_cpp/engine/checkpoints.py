"""Going back where no part of a sequence can be removed: recurrent and hybrid models.

Such a model keeps a state that every token writes over, so a miss cannot be mended by `rm`. Each run therefore tells
the stages to keep their state first; after a miss they restore the newest one that holds nothing wrong, and what
lies between it and the new root is computed again: the accepted rows of the run that missed.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeinfer_cpp.engine.sequences import Op, restore, rm, snapshot


class Checkpoints:
    """The states that every stage keeps of a slot's canonical sequence, by position, in FIFO order with the headers.

    `end` is where the state stands once all that was sent is computed. A position is pinned when a later
    turn may begin there; the others are given up once a run behind them is final.
    """

    def __init__(self, seq: int = 0, first: int = 0) -> None:
        """States have the numbers from `first` on."""
        self._seq, self._first = seq, first
        self.end = 0
        self._kept: dict[int, int] = {}
        """Position -> number, ascending: of the state before the row of that position."""
        self._pinned: set[int] = set()
        self._free: list[int] = []
        self.n_states = 0
        """So many were kept at once so far."""

    def send(self, first: int, n: int, *, keep: bool = True, pin: bool = False) -> list[Op]:
        """A run of rows [first, first + n) leaves. Returns what goes before it."""
        self.end = first + n
        if pin:
            self._pinned.add(first)
        if not keep or first in self._kept or first == 0:
            return []
        state = self._free.pop() if self._free else self._first + self.n_states
        self.n_states = max(self.n_states, state + 1 - self._first)
        self._kept[first] = state
        return [snapshot(self._seq, state, first)]

    def rewind(self, n: int) -> tuple[list[Op], int]:
        """Everything sent behind the first `n` positions was wrong. Returns what takes the stages back, and
        from which position on rows must be computed again to stand at `n`."""
        if self.end == n:
            return [], n
        at = self.reach(n)
        self._drop([pos for pos in self._kept if pos > at])
        self.end = at
        return [restore(self._seq, self._kept[at], at) if at else rm(self._seq, 0)], at

    def reach(self, n: int) -> int:
        """The last position up to `n` that `rewind` can stand at without computing anything."""
        return n if self.end == n else max((pos for pos in self._kept if pos <= n), default=0)

    def settle(self, pos: int) -> None:
        """The row at `pos` is final: only the newest state up to it may be needed still, and the pinned ones."""
        newest = max((p for p in self._kept if p <= pos), default=0)
        self._drop([p for p in self._kept if p < newest and p not in self._pinned])

    def begin(self, kept: int) -> None:
        """A turn begins at `kept`: of the positions that earlier ones pinned, the newest two go on."""
        self._pinned = set(sorted(p for p in self._pinned if p <= kept)[-2:])
        self._drop([p for p in self._kept if p < kept and p not in self._pinned])

    @property
    def positions(self) -> Sequence[int]:
        return [*self._kept]

    def lost(self) -> None:
        """The stages hold nothing any more."""
        self.end = 0
        self._drop([*self._kept])

    def _drop(self, positions: Sequence[int]) -> None:
        for pos in positions:
            self._free.append(self._kept.pop(pos))
            self._pinned.discard(pos)
