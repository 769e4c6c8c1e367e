"""A pipeline in virtual time: the real engine, stages and a draft worker that only count seconds.

Stages keep their KV caches (tokens instead of tensors), so that a wrong sequence operation shows.
Everything here is simulated; no figure from it is a measurement.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.engine import Engine
from pipeinfer_cpp.engine.pacing import CostCurve
from pipeinfer_cpp.engine.run import Run
from pipeinfer_cpp.engine.sequences import Op
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.net.transit import LinkSpeed, Transit
from pipeinfer_cpp.sim.clock import Clock
from pipeinfer_cpp.sim.draft import SimDraft
from pipeinfer_cpp.sim.worlds import World

HERE = 0.0001
"""Seconds between two processes on one machine."""
DRAW_BYTES = 24
"""Of a token with its log-probability, or of a stage's word that it passed a run on."""


def header_bytes(run: Run) -> int:
    """As net.messages.RunHeader."""
    return 40 + 12 * len(run.ops) + 16 * len(run.rows)


class SimStage:
    """One stage: a FIFO of runs, a KV cache of tokens, one run under way."""

    ABORT = 0.001
    """Seconds from a cancellation to the end of the decode (fact 7 of the design)."""

    def __init__(self, cluster: VirtualCluster, index: int, curve: CostCurve) -> None:
        self.cluster, self.index, self.curve = cluster, index, curve
        self.kv: dict[int, dict[int, int]] = {}
        self._states: dict[int, list[int]] = {}
        """By number: what the recurrent state that was kept has read."""
        self.dead: set[int] = set()
        self.busy = 0.0
        """Seconds of the turn that it computed."""
        self._began = 0.0
        self._queue: deque[tuple[Run, bool]] = deque()
        self._current: Run | None = None
        self._token = 0

    def receive(self, run: Run, dead: bool) -> None:
        self._queue.append((run, dead))
        if self._current is None:
            self._next()

    def cancel(self, runs: Sequence[int]) -> None:
        self.dead.update(runs)
        if self._current is not None and self._current.id in self.dead and self._current.rows:
            self.cluster.aborted.add(self._current.id)
            self._finish_after(self.ABORT, self._current, dead=True)

    def _next(self) -> None:
        if not self._queue:
            return
        run, dead = self._queue.popleft()
        self._current, self._began = run, self.cluster.clock.now
        self._apply(run.ops)
        dead = dead or run.id in self.dead
        self._finish_after(0.0 if dead or not run.rows else self.curve(len(run.rows)), run, dead)

    def _finish_after(self, seconds: float, run: Run, dead: bool) -> None:
        self._token += 1
        token = self._token
        self.cluster.clock.at(self.cluster.clock.now + seconds, lambda: self._finish(token, run, dead, seconds))

    def _finish(self, token: int, run: Run, dead: bool, seconds: float) -> None:
        if token != self._token:
            return
        if not dead:
            for row in run.rows:
                cells = self.kv.setdefault(row.seq, {})
                assert len(cells) == row.pos == 0 or next(reversed(cells)) == row.pos - 1 == len(cells) - 1, (
                    f"stage {self.index} run {run.id}: row at {row.pos} of {row.seq} finds {len(cells)} cells"
                )
                cells[row.pos] = row.token
        self._current = None
        if run.rows:
            self.busy += self.cluster.clock.now - self._began
        self.cluster.passed_on(self, run, dead, seconds)
        self._next()

    def _apply(self, ops: Sequence[Op]) -> None:
        for op in ops:
            cells = self.kv.setdefault(op.seq, {})
            if op.kind == "snapshot":
                self._states[op.src] = list(cells.values())
            elif op.kind == "restore":
                assert len(self._states[op.src]) == op.p0, f"stage {self.index}: {op} finds another state"
                cells.clear()
                cells.update(enumerate(self._states[op.src]))
            elif op.kind == "rm":  # always to the end
                while cells and next(reversed(cells)) >= op.p0:
                    cells.popitem()
            else:
                end = op.p1 if op.p1 >= 0 else 1 << 40
                cells.update({p: t for p, t in self.kv[op.src].items() if op.p0 <= p < end})

    def history(self, seq: int, pos: int) -> list[int]:
        return list(islice(self.kv[seq].values(), pos + 1))


@dataclass
class Outcome:
    """A simulated generation. Times are seconds of virtual time, from its prompt on."""

    began: float = 0.0

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0
    """To the end of the turn's last header."""

    @property
    def tokens_per_s(self) -> float:
        """Decode speed: (n - 1) / (last token's time - first token's time)."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


class VirtualCluster:
    """Stages with cost curves, links, a draft of `draft_s` a token, and the engine.

    Links take `hop` seconds, or are those of `links` (one more than stages, in a ring; a row of hidden
    states is `row_bytes`). The draft worker lives on the coordinator's machine.
    """

    def __init__(
        self,
        world: World,
        curves: Sequence[CostCurve],
        settings: Settings,
        *,
        draft_s: float = 0.002,
        hop: float = 0.0002,
        links: Sequence[LinkSpeed] = (),
        row_bytes: int = 0,
    ) -> None:
        self.world, self.hop = world, hop
        self.clock = Clock()
        self.engine = Engine(settings, [CostCurve(c.points) for c in curves], hop)
        self.stages = [SimStage(self, i, curve) for i, curve in enumerate(curves)]
        self.draft = SimDraft(self.clock, world, draft_s, settings.eog, lambda e: self._later(e))
        self.outcomes = [Outcome() for _ in self.engine.slots]
        """Of each slot's last turn."""
        self.aborted: set[int] = set()
        """Runs that died while a stage computed them."""
        self.bytes_sent = [0] * (len(curves) + 1)
        """By link: runs and draws."""
        self._row_bytes = row_bytes
        speeds = list(links) or [LinkSpeed(latency_ms=1000 * hop)] * (len(curves) + 1)
        self._forward = [Transit(speed, seed) for seed, speed in enumerate(speeds)]
        """From the coordinator to stage 0, between stages, from the last one back."""
        self._news = [Transit(speed, seed) for seed, speed in enumerate(speeds[1:])]
        self._cancels = [Transit(speed, seed) for seed, speed in enumerate(speeds[:-1])]

    @property
    def outcome(self) -> Outcome:
        """Of the first slot."""
        return self.outcomes[0]

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Outcome:
        """One turn, from the prompt to the end of its last header."""
        return self.generate_all([prompt], max_tokens)[0]

    def generate_all(self, prompts: Sequence[Sequence[int]], max_tokens: int, apart: float = 0.0) -> list[Outcome]:
        """A turn in each of the first slots, each beginning `apart` seconds after the one before; to their ends."""
        self.aborted.clear()
        for stage in self.stages:
            stage.busy = 0.0
        for slot, prompt in enumerate(prompts):
            when = self.clock.now + slot * apart
            self.outcomes[slot] = Outcome(began=when)
            event = ev.Prompt(tuple(prompt), max_tokens, slot=slot)
            self.clock.at(when, lambda event=event: self.feed(event))  # type: ignore[misc]
        while not all(outcome.reason for outcome in self.outcomes[: len(prompts)]):
            if not self.clock.step():
                raise AssertionError("nothing left to do, and a turn is not over")
        return self.outcomes[: len(prompts)]

    def feed(self, event: ev.Event) -> None:
        for action in self.engine.handle(event, self.clock.now):
            self._carry_out(action)

    def passed_on(self, stage: SimStage, run: Run, dead: bool, seconds: float) -> None:
        """A stage hands a run to the next, or its draws to the coordinator."""
        ready = ev.StageReady(stage.index, run.id, None if dead or not run.rows else seconds)
        self.clock.at(self._news[stage.index].arrival(self.clock.now, DRAW_BYTES), lambda: self.feed(ready))
        following = stage.index + 1
        if following < len(self.stages):
            size = header_bytes(run) + (0 if dead else len(run.rows) * self._row_bytes)
            self.clock.at(self._sent(following, size), lambda: self.stages[following].receive(run, dead))
        else:
            draws = (
                ()
                if dead
                else tuple((self.world.target(stage.history(r.seq, r.pos)), -1.0) for r in run.rows if r.draw)
            )
            back = ev.RunDone(run.id, draws)
            self.clock.at(self._sent(following, DRAW_BYTES * max(len(draws), 1)), lambda: self.feed(back))

    def _sent(self, link: int, n_bytes: int) -> float:
        """Something leaves on a link. Returns when it arrives."""
        self.bytes_sent[link] += n_bytes
        return self._forward[link].arrival(self.clock.now, n_bytes)

    def _later(self, event: ev.Event) -> None:
        """From the draft worker."""
        self.clock.at(self.clock.now + HERE, lambda: self.feed(event))

    def _carry_out(self, action: ev.Action) -> None:
        now = self.clock.now
        match action:
            case ev.Dispatch(run):
                self.clock.at(self._sent(0, header_bytes(run)), lambda: self.stages[0].receive(run, False))
            case ev.Cancel(runs):
                for stage, link in zip(self.stages, self._cancels, strict=True):
                    self.clock.at(link.arrival(now, 8 * len(runs)), lambda s=stage: s.cancel(runs))  # type: ignore[misc]
            case ev.Emit():
                outcome = self.outcomes[action.slot]
                outcome.tokens.append(action.token)
                outcome.times.append(now - outcome.began)
                outcome.origins.append(action.origin)
            case ev.Finish(reason, slot):
                self.outcomes[slot].reason = reason
                self.outcomes[slot].seconds = now - self.outcomes[slot].began
            case ev.Wake(when):
                self.clock.at(when, lambda: self.feed(ev.Tick()))
            case _:
                self.clock.at(now + HERE, lambda: self.draft.command(action))
