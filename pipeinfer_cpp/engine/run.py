"""A run: one pass of a micro-batch through all stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pipeinfer_cpp.engine.sequences import Op


class Row(NamedTuple):
    """One token of a run: its place in the KV cache, in the token tree, and whether a draw is wanted."""

    token: int
    pos: int
    seq: int
    node: int
    parent: int
    draw: bool
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A run header. `finals`: of each slot with rows in it the last final node, the sampler's checkpoint.

    `kind` is `prefill` (a chunk of a prompt), `decode`, `replay` (rows behind a restored checkpoint, at a turn's
    end), or `end` (operations only: the turn of `slot` is over). Rows of several slots share only `decode` runs.
    """

    id: int
    kind: str
    ops: tuple[Op, ...]
    rows: tuple[Row, ...]
    finals: tuple[tuple[int, int], ...]
    """(slot, node)"""
    slot: int = -1
    """Whose turn an `end` ends."""


@dataclass(slots=True)
class InFlight:
    """What the engine remembers of a run until its header is back."""

    run: Run
    speculative: bool
    sent: float
    live: dict[int, int]
    """By slot: rows whose node is still live."""
    free: bool = False
    """It left behind no run that it had to wait for."""
    cancelled: bool = False
    needs: frozenset[int] = frozenset()
    """Runs whose KV cells its rows build on: they cannot be skipped while this one is computed."""

    @property
    def alive(self) -> bool:
        """Some row of it is still worth something."""
        return any(self.live.values())
