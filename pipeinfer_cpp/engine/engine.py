"""PipeInfer as a state machine: events in, actions out; no socket, no thread, no clock.

The slots verify what comes back. What leaves, and when, is decided here for all of them: final tokens first, chunks of
prompts between them, and guesses in what room is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.drafts import DraftWorker
from pipeinfer_cpp.engine.governor import Governor
from pipeinfer_cpp.engine.pacing import CostCurve, Pace
from pipeinfer_cpp.engine.pipe import EngineError, Pipe
from pipeinfer_cpp.engine.sequences import SequencePool
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.engine.slot import DECODE, IDLE, PREFILL, Common, Slot
from pipeinfer_cpp.engine.stash import Stash
from pipeinfer_cpp.engine.tree import Node


class Engine:
    """Conversations over one pipeline, one in each slot. Feed events with `handle(event, now)`, carry out what it
    returns.

    `now` is any clock that does not run backwards, in seconds; it is only used for pacing and counting.
    """

    def __init__(self, settings: Settings, curves: Sequence[CostCurve], hop: float = 0.0) -> None:
        self.settings = settings
        self.pipe = pipe = Pipe(Pace(curves, hop), cancels=settings.on("cancel"))
        self.pool = SequencePool(settings.sides * settings.slots, settings.slots)
        self.worker = DraftWorker(alive=settings.mode != "off" and "draft" in settings.proposers)
        stash = Stash(settings.stash, settings.stash_longest)
        self._common = Common(pipe, self.pool, self.worker, stash, Governor(lambda: pipe.pace.plain))
        self._out = self._common.out
        self.slots = [Slot(i, settings, self._common) for i in range(settings.slots)]
        self._turn = 0
        """The slot whose chunk or guess leaves next, where several could."""
        self._read = -math.inf
        """When the last chunk of a prompt left."""
        self._now = 0.0
        self._woken: float | None = None

    def succeed(self, other: Engine) -> None:
        """Take over an idle engine's pipeline: its cached conversations; run and path numbers go on."""
        for slot, before in zip(self.slots, other.slots, strict=True):
            slot.succeed(before)
        self.pipe.succeed(other.pipe)
        self._common.stash = other._common.stash
        self.worker.next_path = other.worker.next_path

    def drop(self, stashed: int) -> None:
        """What the stages keep of a conversation under this number is not needed; they hear it with the next run."""
        self.pipe.ops += self._common.stash.drop(stashed)

    @property
    def kept(self) -> dict[int, int]:
        """Positions of conversations that the stages keep without a slot, by number."""
        return dict(self._common.stash.kept)

    @property
    def idle(self) -> bool:
        return all(slot.phase == IDLE for slot in self.slots)

    # ------------------------------------------------------------------------------- the one door

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Take one event, return what is to be done, in order."""
        for slot in self.slots:
            if slot.phase == DECODE:
                slot.stats.flight(len(self.pipe), now - self._now)
        self._now = now
        self._common.alone = len(self.active) <= 1
        match event:
            case ev.RunDone():
                self._run_done(event)
            case ev.Drafted():
                for slot in self.slots:
                    slot.drafted(event)
            case ev.StageReady():
                self.pipe.passed(event, now)
            case ev.Prompt():
                self._common.governor.begin()
                self._common.alone = not self.active
                self.slots[event.slot].begin(event, now, self._alike(event))
            case ev.Stop():
                self.slots[event.slot].stop(event, now)
            case ev.DraftLost():
                self.worker.alive = False
                for slot in self.slots:
                    slot.drafts.lost()
            case ev.Lost():
                self.pipe.empty()
                self._common.stash.lost()
                for slot in self.slots:
                    slot.lost(now)
            case ev.Tick():
                self._woken = None
        self._pump()
        out = list(self._out)
        self._out.clear()
        return out

    def _run_done(self, event: ev.RunDone) -> None:
        flight = self.pipe.back(event, self._now)
        wanted = [row for row in flight.run.rows if row.draw]
        if flight.alive and flight.run.rows and len(event.draws) != len(wanted):
            story = self.pipe.story(event.run)
            raise EngineError(f"{len(event.draws)} draws for {len(wanted)} rows:\n{story}")
        for number in sorted({row.slot for row in flight.run.rows} or {flight.run.slot}):
            slot = self.slots[number]
            slot.speculation.cutoff.returned()
            if flight.live.get(number):
                drawn = zip(wanted, event.draws, event.tops or [()] * len(wanted), strict=False)
                draws = {row.node: (*draw, top) for row, draw, top in drawn if row.slot == number}
                slot.back(flight.run, draws, self._now)

    def _alike(self, event: ev.Prompt) -> Slot | None:
        """The slot of the same owner whose cells are worth copying, if there is one."""
        if self.settings.checkpoints or event.goes_on or not event.owner:
            return None
        own = self.slots[event.slot]
        best = max(
            (s for s in self.slots if s is not own and s.owner == event.owner),
            key=lambda slot: slot.shared(event.tokens),
            default=None,
        )
        return best if best is not None and best.shared(event.tokens) > own.shared(event.tokens) else None

    # ----------------------------------------------------------------------------------- dispatch

    def _pump(self) -> None:
        """Send what can leave now."""
        for slot in self.slots:
            slot.guess(self._now)
        self._roots()
        waiting = [slot.waits_since for slot in self.slots if slot.waits]
        if all(since > self._read for since in waiting):  # a root lets one chunk past, and no second one
            self._chunks()
        if not waiting:
            self._guesses()
        # Where final tokens keep the stages busy, guesses leave with them only: more would be drafted for nothing.
        most = self.settings.max_rows // self._size() if self._crowded() else None
        for slot in self.slots:
            slot.propose(self._now, most)

    def _roots(self) -> None:
        """Final tokens leave at once, but for those that would only wait before the slowest stage: they wait here, for
        drafts or others to share a run with."""
        waiting = sorted((slot for slot in self.slots if slot.waits), key=lambda slot: slot.waits_since)
        while waiting:
            together = self._together(waiting)
            if not together:
                return
            group = self._shared_out(together)
            width = sum(len(nodes) for _, nodes in group)
            if len(self.active) > 1 and width and self._waits_here(width):
                return
            self._send(group)
            waiting = [slot for slot in waiting if slot not in together]  # without nodes it waits for its drafts

    def _together(self, waiting: Sequence[Slot]) -> list[Slot]:
        """Slots whose roots share the next run, the one that waits longest first; none where it is better to wait for
        the others of their group, whose roots are under way: from then on they come and go together."""
        size = self._size()
        for first in waiting:
            group = [slot for slot in self.slots if slot.number // size == first.number // size]
            if not any(slot.phase == DECODE and not slot.waits for slot in group):
                ready = [slot for slot in group if slot in waiting]
                at = ready.index(first)
                # Neighbours only: what stages compute as one batch where sequences have cells of their own.
                return [slot for i, slot in enumerate(ready) if abs(slot.number - first.number) == abs(i - at)]
        return []

    def _shared_out(self, group: Sequence[Slot]) -> list[tuple[Slot, list[Node]]]:
        """What each of them sends: its root, with the drafts below it that there is room for."""
        most = self.settings.max_rows
        share = most // len(group)
        each = [
            (slot, slot.speculation.root_run(slot.tree, slot.turn.last_row, most - share + len(slot.replay)))
            for slot in group
        ]
        if len(group) > 1 and self.settings.apart:  # rows of several sequences are one batch where each has as many
            least = min(len(nodes) for _, nodes in each)
            each = [(slot, nodes[:least]) for slot, nodes in each]
        return [(slot, nodes) for slot, nodes in each if nodes]

    @property
    def _in_pipe(self) -> int:
        """Runs of one row that keep the slowest stage busy."""
        pace = self.pipe.pace
        return max(round(pace.latency(1) / max(pace.bottleneck(1), 1e-9)), 1)

    def _queued(self) -> bool:
        """So many runs are under way that a further one would only wait somewhere: better here, for others to share
        it with, as long as that makes rows cheaper."""
        return self._size() > 1 and sum(f.alive for f in self.pipe.in_flight.values()) >= self._in_pipe

    def _waits_here(self, width: int) -> bool:
        """It is better for a run of so many rows to leave later. In a full pipeline it never is but for others to
        join it: what the news say of the stages is late on a busy machine, and an idle one is lost for all."""
        return self._queued() or (not self._crowded() and self._too_early(width))

    def _size(self) -> int:
        """Slots that share a run: as many as there must be for all that decode to be in the pipeline at once, as long
        as each further row makes them cheaper."""
        if self.settings.mode == "sync" or self.settings.checkpoints:
            return 1
        pace = self.pipe.pace
        most = min(math.ceil(self._decoding / self._in_pipe), self.settings.max_rows)
        size = 1
        for width in range(2, most + 1):
            if pace.bottleneck(width) / width < 0.97 * pace.bottleneck(size) / size:
                size = width
        return size

    def _chunks(self) -> None:
        """Chunk k is at stage 0 while chunk k-1 is at stage 1: two more than stages are under way. While others
        decode, one leaves when stage 0 has passed on the last."""
        decoding = self._decoding > 0
        while reading := [slot for slot in self._in_turn() if slot.phase == PREFILL]:
            others = decoding or len(reading) > 1
            if self.pipe.chunks() >= self.pipe.n_stages + 2 or (others and self.pipe.chunks(0)):
                return
            reading[0].send_chunk()
            self._read = self._now
            self._turn = reading[0].number + 1

    def _guesses(self) -> None:
        """One speculative run, of the first slot in turn that has something worth its time."""
        if self._crowded():
            return
        wakes: list[float] = []
        for slot in self._in_turn():
            if slot.phase != DECODE:
                continue
            nodes, wake = slot.speculation.next_run(slot.tree, slot.turn.last_row, self._now)
            if nodes:
                self._send([(slot, nodes)], speculative=True)
                self._turn = slot.number + 1
                return
            if wake is not None:
                wakes.append(wake)
        if wakes:
            self._wake(min(wakes))

    def _crowded(self) -> bool:
        """The final tokens alone keep the slowest stage busy."""
        return self._decoding > 1 and self._decoding >= self._in_pipe

    def _send(self, group: Sequence[tuple[Slot, list[Node]]], speculative: bool = False) -> None:
        """These nodes, if any, leave in one run."""
        if not group:
            return
        rows = [row for slot, nodes in group for row in slot.rows(nodes)]
        finals = [(slot.number, slot.tree.root.id) for slot, _ in group]
        run = self.pipe.send("decode", rows, finals, self._now, speculative=speculative)
        self.pipe.carry(run.id, [node for _, nodes in group for node in nodes])
        self._out.append(ev.Dispatch(run))

    @property
    def _decoding(self) -> int:
        return sum(slot.phase == DECODE for slot in self.slots)

    @property
    def active(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.phase in (PREFILL, DECODE)]

    def _in_turn(self) -> list[Slot]:
        at = self._turn % len(self.slots)
        return self.slots[at:] + self.slots[:at]

    def _too_early(self, width: int) -> bool:
        """A run of so many rows that leaves now would only wait before the slowest stage."""
        early = self.pipe.pace.early(self._now, width)
        if early <= 1e-6:
            return False
        self._wake(self._now + max(early, 1e-4))
        return True

    def _wake(self, at: float) -> None:
        if self._woken is None or at < self._woken - 1e-5 or self._woken <= self._now:
            self._woken = at
            self._out.append(ev.Wake(at))
