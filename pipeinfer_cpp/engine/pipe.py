"""What is under way in the pipeline: runs in their order, and the KV operations that wait for the next one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from pipeinfer_cpp.engine.events import RunDone, StageReady
from pipeinfer_cpp.engine.pacing import Pace
from pipeinfer_cpp.engine.run import InFlight, Row, Run
from pipeinfer_cpp.engine.sequences import Op
from pipeinfer_cpp.engine.tree import Node


class EngineError(Exception):
    """An event that cannot be: a bug in a driver or in the engine. Carries the run's story."""


class Pipe:
    """Runs from their dispatch until their header is back. A run is dead when no row of it is live."""

    def __init__(self, pace: Pace, cancels: bool = True) -> None:
        self.pace = pace
        self._cancels = cancels
        """Dead runs are cancelled, so that nobody waits behind them."""
        self.in_flight: dict[int, InFlight] = {}
        self.ops: list[Op] = []
        """They travel with the next header, whatever that is."""
        self._next = 1
        self._log: deque[tuple[float, int, str]] = deque(maxlen=2000)

    def __len__(self) -> int:
        return len(self.in_flight)

    @property
    def full(self) -> bool:
        """More runs would only wait: `Settings.kv_cells` counts on no more than these."""
        return len(self.in_flight) > 3 * self.n_stages

    @property
    def widest(self) -> int:
        """Rows of the widest run that is under way and still worth something."""
        return max((len(f.run.rows) for f in self.in_flight.values() if f.alive), default=0)

    @property
    def n_stages(self) -> int:
        return len(self.pace.curves)

    def send(
        self,
        kind: str,
        rows: Sequence[Row],
        finals: Sequence[tuple[int, int]],
        now: float,
        *,
        slot: int = -1,
        speculative: bool = False,
    ) -> Run:
        """The next run, with the operations that waited for it. `slot`: whose turn an `end` ends."""
        run = Run(self._next, kind, tuple(self.ops), tuple(rows), tuple(finals), slot)
        self._next += 1
        self.ops.clear()
        # Chunks and `end` headers die with their turn, not with a row; rows without a node live with the root.
        if kind == "decode":
            live = dict(Counter(row.slot for row in rows if row.node >= 0))
        else:
            live = {slot if slot >= 0 else rows[0].slot: 1}
        free = not any(f.alive or not self._cancels for f in self.in_flight.values())
        self.in_flight[run.id] = InFlight(run, speculative, now, live, free)
        self.pace.sent(run.id, len(rows), now)
        self._tell(run.id, now, f"{kind} of {len(rows)} rows from {rows[0].pos if rows else '-'}")
        return run

    def carry(self, run: int, nodes: Sequence[Node]) -> None:
        """These nodes are the run's rows. Remember whose KV cells they build on."""
        parents = {node.parent.run for node in nodes if node.parent is not None}
        self.in_flight[run].needs = frozenset(r for r in parents if r is not None and r in self.in_flight)
        for node in nodes:
            node.run = run

    def passed(self, event: StageReady, now: float) -> None:
        """A stage has passed a run on."""
        self.pace.ready(event.stage, event.run, now, event.seconds)
        flight = self.in_flight.get(event.run)
        if flight is not None and event.seconds is not None and flight.run.rows:
            self.pace.observe(event.stage, len(flight.run.rows), event.seconds)

    def back(self, event: RunDone, now: float) -> InFlight:
        """A run's header is back from the last stage."""
        flight = self.in_flight.pop(event.run, None)
        if flight is None:
            raise EngineError(f"run {event.run} came back twice or never left:\n{self.story(event.run)}")
        self._tell(event.run, now, f"back with {len(event.draws)} draws")
        self.pace.gone(event.run)
        if flight.run.kind == "decode" and flight.free and not (flight.speculative or flight.cancelled):
            self.pace.travelled(len(flight.run.rows), now - flight.sent)
        return flight

    def lose(self, dead: Iterable[Node], slot: int) -> None:
        """Rows of these nodes of a slot are worth nothing any more."""
        for node in dead:
            if node.run in self.in_flight:
                self.in_flight[node.run].live[slot] -= 1

    def lose_all(self, slot: int) -> None:
        """All that is under way for the slot is worth nothing."""
        for flight in self.in_flight.values():
            flight.live.pop(slot, None)

    def empty(self) -> None:
        """Nothing of what is under way comes back, and no operation that waits is needed."""
        self.in_flight.clear()
        self.ops.clear()
        self.pace.clear()

    def chunks(self, stage: int | None = None) -> int:
        """Prompt chunks under way; those that `stage` has not passed on yet."""
        runs = self.in_flight if stage is None else self.pace.queue(stage)
        return sum(self.in_flight[r].run.kind == "prefill" for r in runs if r in self.in_flight)

    def newly_dead(self, now: float) -> list[int]:
        """Runs to cancel, each returned once.

        With side branches a dead run may hold cells that the dead rows of a live one build on; it is
        computed to the end then, as no stage can decode rows without their past.
        """
        needed: set[int] = set()
        for run in sorted(self.in_flight, reverse=True):
            flight = self.in_flight[run]
            if flight.alive or run in needed:
                needed |= flight.needs
        runs = [r for r, f in self.in_flight.items() if not (f.alive or f.cancelled or r in needed)]
        for run in runs:
            self.in_flight[run].cancelled = True
            self._tell(run, now, "dead")
        return runs

    def succeed(self, other: Pipe) -> None:
        """Run numbers go on where the other's end, and so do its waiting operations and what it learnt of costs."""
        self._next, self.ops = other._next, other.ops
        self.pace.succeed(other.pace)

    def story(self, run: int) -> str:
        """Everything that happened to one run."""
        return "\n".join(f"{at:.6f} run {r}: {what}" for at, r, what in self._log if r == run)

    def _tell(self, run: int, now: float, what: str) -> None:
        self._log.append((now, run, what))
