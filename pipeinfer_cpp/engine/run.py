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


@dataclass(frozen=True, slots=True)
class Run:
    """A run header. `final` is the last final node: the sampler's checkpoint.

    `kind` is `prefill` (a chunk of the prompt), `decode`, `replay` (rows behind a restored checkpoint, at a turn's
    end), or `end` (operations only: the turn is over).
    """

    id: int
    kind: str
    ops: tuple[Op, ...]
    rows: tuple[Row, ...]
    final: int


@dataclass(slots=True)
class InFlight:
    """What the engine remembers of a run until its header is back."""

    run: Run
    speculative: bool
    sent: float
    alive: int
    """Rows whose node is still live; the run is dead at 0."""
    free: bool = False
    """It left behind no run that it had to wait for."""
    cancelled: bool = False
    needs: frozenset[int] = frozenset()
    """Runs whose KV cells its rows build on: they cannot be skipped while this one is computed."""
