"""What a pipeline does now, for people who watch it: counted in the driver's thread, second by second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from pipeinfer_cpp.engine import Engine, Stats
from pipeinfer_cpp.engine.slot import IDLE, Slot

if TYPE_CHECKING:
    from pipeinfer_cpp.cluster.peer import Peer

KEPT = 120
"""Seconds that are remembered."""
SHOWN = 60
"""Of them, those in `History`."""
WINDOW = 3
"""Seconds over which rates are taken."""
VERDICTS = 50
"""The newest drafts that acceptance is taken of."""
EVENTS = 50


class RunNow(msgspec.Struct, frozen=True):
    """A run at a stage. `kind`: decode, prefill or end."""

    id: int
    kind: str
    rows: int
    speculative: bool


class StageNow(msgspec.Struct, frozen=True):
    """`layers`: the first, and the one behind the last. `address` is None on this machine. `load`: share of the last
    seconds in which it computed, 0 to 1. `queue`: runs that wait there or are computed. `state`: ok or silent."""

    index: int
    layers: tuple[int, int]
    address: str | None
    state: str
    load: float
    queue: int
    run: RunNow | None
    bytes_out_per_s: float
    memory_mb: float | None


class SlotNow(msgspec.Struct, frozen=True):
    """A conversation. `phase`: idle, prefill (its prompt is read), decode or drain (it ends). `read`: tokens of the
    prompt that all stages know; `cached`: tokens that the stages hold of it, between turns."""

    slot: int
    phase: str
    prompt_tokens: int
    read: int
    generated: int
    cached: int
    acceptance: float | None


class EventNow(msgspec.Struct, frozen=True):
    """`at`: seconds since 1970."""

    at: float
    text: str


class History(msgspec.Struct, frozen=True):
    """By second, the oldest first. Acceptance is None where no draft was verified."""

    tokens: list[int]
    acceptance: list[float | None]


class Live(msgspec.Struct, frozen=True):
    """`acceptance`: of the newest drafts that were verified."""

    model: str
    draft: str | None
    mode: str
    exact: bool
    context: int
    uptime_s: float
    tokens: int
    tokens_per_s: float
    acceptance: float | None
    runs_in_flight: int
    runs_speculative: int
    stages: list[StageNow]
    slots: list[SlotNow]
    history: History
    events: list[EventNow]


@dataclass(slots=True)
class Second:
    """What happened in one."""

    tokens: int = 0
    accepted: int = 0
    rejected: int = 0
    busy: dict[int, float] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)


class Figures:
    """Counts for `Live`. Only the driver's thread touches it."""

    def __init__(self, now: float) -> None:
        self.began = now
        self.tokens = 0
        self.events: deque[EventNow] = deque(maxlen=EVENTS)
        self._seconds: dict[int, Second] = {}
        self._first = now
        """When tokens began to come again."""
        self._last = float("-inf")
        self._seen: dict[int, tuple[Stats, int, int]] = {}
        """By slot: its turn's counts as they are in the seconds already."""

    def computed(self, stage: int, seconds: float, sent: int, now: float) -> None:
        """A stage has just computed for so long, and passed `sent` bytes on."""
        at = self._at(now)
        at.sent[stage] = at.sent.get(stage, 0) + sent
        begin, end = max(now - min(seconds, float(KEPT)), self.began), now
        while begin < end:
            upto = min(end, self.began + int(begin - self.began) + 1.0)
            at = self._at(begin)
            at.busy[stage] = at.busy.get(stage, 0.0) + upto - begin
            begin = max(upto, begin + 1e-6)

    def emitted(self, slot: int, stats: Stats, now: float) -> None:
        """A token of the slot is final; `stats` are its turn's."""
        at = self._at(now)
        if now - self._last > WINDOW:
            self._first = now
        self._last = now
        at.tokens += 1
        self.tokens += 1
        before = self._seen.get(slot)
        accepted, rejected = before[1:] if before is not None and before[0] is stats else (0, 0)
        at.accepted += stats.accepted - accepted
        at.rejected += stats.rejected - rejected
        self._seen[slot] = stats, stats.accepted, stats.rejected

    def event(self, text: str) -> None:
        self.events.append(EventNow(time.time(), text))

    def speed(self, now: float) -> float:
        """Tokens per second of all conversations."""
        seconds = self._newest(WINDOW, now)
        return sum(s.tokens for s in seconds) / self._covered(now, max(self.began, self._first))

    def acceptance(self) -> float | None:
        accepted = rejected = 0
        for number in sorted(self._seconds, reverse=True):
            accepted += self._seconds[number].accepted
            rejected += self._seconds[number].rejected
            if accepted + rejected >= VERDICTS:
                break
        return accepted / (accepted + rejected) if accepted + rejected else None

    def load(self, stage: int, now: float) -> float:
        seconds = self._newest(WINDOW, now)
        return min(sum(s.busy.get(stage, 0.0) for s in seconds) / self._covered(now, self.began), 1.0)

    def sends(self, stage: int, now: float) -> float:
        """Bytes per second."""
        return sum(s.sent.get(stage, 0) for s in self._newest(WINDOW, now)) / self._covered(now, self.began)

    def history(self, now: float) -> History:
        seconds = self._newest(SHOWN, now)
        asked = [s.accepted + s.rejected for s in seconds]
        return History(
            [s.tokens for s in seconds],
            [s.accepted / n if n else None for s, n in zip(seconds, asked, strict=True)],
        )

    def _at(self, now: float) -> Second:
        number = int(now - self.began)
        if number not in self._seconds:
            self._seconds[number] = Second()
            for old in [n for n in self._seconds if n <= number - KEPT]:
                del self._seconds[old]
        return self._seconds[number]

    def _newest(self, n: int, now: float) -> list[Second]:
        """The last `n` seconds, the running one included."""
        last = int(now - self.began)
        return [self._seconds.get(number, Second()) for number in range(last - n + 1, last + 1)]

    def _covered(self, now: float, since: float) -> float:
        """Seconds of the window that have passed, from `since` on; at least one half."""
        within = WINDOW - 1 + (now - self.began) % 1.0
        return max(min(within, now - since), 0.5)


def live(
    engine: Engine,
    figures: Figures,
    stages: Sequence[Peer],
    *,
    silent: Collection[Peer],
    read: dict[int, int],
    memory_mb: dict[str, float],
    exact: bool,
    now: float,
) -> Live:
    """In the driver's thread. `silent`: stages that do not answer; `read`: prompt tokens read, by busy slot.
    The models' names and the layers are the caller's to fill in."""
    flights = engine.pipe.in_flight
    shown = []
    for index, peer in enumerate(stages):
        before = set(engine.pipe.pace.queue(index - 1)) if index else set()
        here = [run for run in engine.pipe.pace.queue(index) if run not in before and run in flights]
        run = None
        if here:
            flight = flights[here[0]]
            run = RunNow(here[0], flight.run.kind, len(flight.run.rows), flight.speculative)
        shown.append(
            StageNow(
                index,
                (0, 0),
                peer.address if peer.remote else None,
                "silent" if peer in silent else "ok",
                round(figures.load(index, now), 3),
                len(here),
                run,
                round(figures.sends(index, now)),
                memory_mb.get(f"stage-{index}"),
            )
        )
    acceptance = figures.acceptance()
    return Live(
        model="",
        draft="" if engine.worker.alive and engine.settings.mode != "off" else None,
        mode=engine.settings.mode,
        exact=exact,
        context=engine.settings.n_ctx,
        uptime_s=round(now - figures.began, 1),
        tokens=figures.tokens,
        tokens_per_s=round(figures.speed(now), 2),
        acceptance=None if acceptance is None else round(acceptance, 3),
        runs_in_flight=len(flights),
        runs_speculative=sum(flight.speculative for flight in flights.values()),
        stages=shown,
        slots=[_slot(slot, read) for slot in engine.slots],
        history=figures.history(now),
        events=list(figures.events),
    )


def _slot(slot: Slot, read: dict[int, int]) -> SlotNow:
    busy = slot.phase != IDLE
    return SlotNow(
        slot.number,
        slot.phase,
        slot.turn.n_prompt if busy else 0,
        read.get(slot.number, 0) if busy else 0,
        slot.turn.n_generated if busy else 0,
        slot.cache.held,
        slot.stats.acceptance if busy else None,
    )
