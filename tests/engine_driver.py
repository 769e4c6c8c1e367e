"""A driver for the engine that does everything in any order it may happen in.

Stages, the draft worker and the wires between them keep what a real pipeline keeps, and nothing more:
runs stay in order, cancellations overtake them, and anything may take any time.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeinfer_cpp.engine import CostCurve, Engine, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.run import Run
from pipeinfer_cpp.sim.worlds import Guess

VOCABULARY = 7
EOG = 0
History = tuple[int, ...]


class ChaosWorld:
    """A target and a draft over seven tokens; both say what they say for a history, always."""

    def __init__(self, seed: int, acceptance: float, eog_share: float = 0.01) -> None:
        self.seed, self.acceptance, self.eog_share = seed, acceptance, eog_share

    def _random(self, history: Sequence[int], what: int) -> random.Random:
        return random.Random(hash((self.seed, what, *history)))

    def target(self, history: Sequence[int]) -> int:
        rng = self._random(history, 1)
        return EOG if rng.random() < self.eog_share else rng.randrange(1, VOCABULARY)

    def draft(self, history: Sequence[int]) -> Guess:
        rng, right = self._random(history, 2), self.target(history)
        order = rng.sample(range(VOCABULARY), VOCABULARY)
        order.remove(right)
        order.insert(0 if rng.random() < self.acceptance else rng.randrange(1, 4), right)
        prob = rng.random()
        return Guess(order[0], prob, order[1], (1 - prob) * rng.random())

    def text(self, prompt: Sequence[int], max_tokens: int, n_ctx: int) -> list[int]:
        """Prompt and answer, as the target alone writes them."""
        tokens = list(prompt)
        while len(tokens) - len(prompt) < max_tokens and len(tokens) < n_ctx:
            token = self.target(tokens)
            if token == EOG:
                break
            tokens.append(token)
        return tokens


@dataclass(eq=False)
class Cell:
    """One KV cell, shared by sequences as llama.cpp's are."""

    pos: int
    token: int
    seqs: set[int]


@dataclass
class ChaosStage:
    """One stage. It may learn of a dead run before it begins, while it computes, or too late."""

    cells: list[Cell] = field(default_factory=list)
    inbox: deque[tuple[Run, bool]] = field(default_factory=deque)
    cancels: deque[tuple[int, ...]] = field(default_factory=deque)
    """Under way to this stage."""
    dead: set[int] = field(default_factory=set)
    current: tuple[Run, bool] | None = None
    ready: deque[ev.StageReady] = field(default_factory=deque)
    peak: int = 0
    states: dict[int, History | None] = field(default_factory=dict)
    """By sequence, what a recurrent model has read; None when an aborted decode left it half written."""
    kept: dict[int, History | None] = field(default_factory=dict)
    recurrent: bool = False
    stashed: dict[int, History] = field(default_factory=dict)
    """Sequences that are out of the cache, by number."""

    def begin(self) -> None:
        run, dead = self.inbox.popleft()
        for op in run.ops:
            if op.kind == "snapshot":
                self.kept[op.src] = self.states.get(op.seq, ())
                continue
            if op.kind == "stash":
                assert op.src not in self.stashed
                self.stashed[op.src] = self.history(op.seq, op.p0 - 1)
                assert max(c.pos for c in self.cells if op.seq in c.seqs) == op.p0 - 1, f"run {run.id}: not all of it"
                for cell in self.cells:
                    cell.seqs.discard(op.seq)
                self.cells = [c for c in self.cells if c.seqs]
                continue
            if op.kind == "unstash":
                assert not any(op.seq in c.seqs for c in self.cells), f"run {run.id}: {op} on what is not empty"
                tokens = self.stashed.pop(op.src)
                assert len(tokens) == op.p0
                self.cells += [Cell(pos, token, {op.seq}) for pos, token in enumerate(tokens)]
                continue
            if op.kind == "drop":
                del self.stashed[op.src]
                continue
            if op.kind == "restore":
                state = self.states[op.seq] = self.kept[op.src]
                assert state is not None and len(state) == op.p0, f"run {run.id}: {op} finds {state}"
                self.cells = [c for c in self.cells if c.pos < op.p0 or op.seq not in c.seqs]
                continue
            if self.recurrent:
                assert op.kind == "rm" and op.p0 == 0, f"run {run.id}: {op} on a state that cannot be taken back"
                self.states[op.seq] = ()
            end = op.p1 if op.p1 >= 0 else 1 << 40
            for cell in self.cells:
                if op.p0 <= cell.pos < end:
                    if op.kind == "rm":
                        cell.seqs.discard(op.seq)
                    elif op.src in cell.seqs:
                        cell.seqs.add(op.seq)
            self.cells = [c for c in self.cells if c.seqs]
        self.current = run, dead or run.id in self.dead

    def end(self) -> tuple[Run, bool]:
        assert self.current is not None
        (run, dead), self.current = self.current, None
        if not dead:
            if self.recurrent and run.rows:
                state = self.states.get(run.rows[0].seq, ())
                assert state is not None and len(state) == run.rows[0].pos, f"run {run.id}: {state}"
                self.states[run.rows[0].seq] = state + tuple(row.token for row in run.rows)
            for row in run.rows:
                past = sorted(c.pos for c in self.cells if row.seq in c.seqs)
                assert past == list(range(row.pos)), f"run {run.id}: a row at {row.pos} of {row.seq} sees {past}"
                self.cells.append(Cell(row.pos, row.token, {row.seq}))
            self.peak = max(self.peak, len(self.cells))
        return run, dead

    def history(self, seq: int, pos: int) -> History:
        own = {c.pos: c.token for c in self.cells if seq in c.seqs}
        return tuple(own[p] for p in range(pos + 1))


class ChaosDraft:
    """The draft worker: its paths, and what is under way to and from it."""

    def __init__(self, world: ChaosWorld) -> None:
        self.world = world
        self.commands: deque[ev.Action] = deque()
        self.says: deque[ev.Drafted] = deque()
        self.paths: dict[int, list[int]] = {}
        self.slots: dict[int, int] = {}
        """Of each path."""
        self.room: dict[int, int] = {}
        self.alive = True

    def obey(self) -> None:
        match self.commands.popleft():
            case ev.DraftReset(path, keep, tokens, slot):
                own = [p for p in self.paths if self.slots[p] == slot]
                longest = max((self.paths.pop(p) for p in own), key=len, default=[])
                self.paths[path], self.slots[path] = longest[:keep] + list(tokens), slot
            case ev.DraftFork(path, of, keep, token) if of in self.paths:
                self.paths[path], self.slots[path] = [*self.paths[of][:keep], token], self.slots[of]
            case ev.DraftDrop(paths):
                for path in paths:
                    self.paths.pop(path, None)
            case ev.DraftRoom(pos, slot):
                self.room[slot] = pos

    def able(self) -> list[int]:
        return [p for p, t in self.paths.items() if len(t) <= self.room.get(self.slots[p], -1) and t[-1] != EOG]

    def extend(self, path: int) -> None:
        tokens = self.paths[path]
        guess = self.world.draft(tokens)
        self.says.append(ev.Drafted(path, len(tokens), *guess, seconds=0.002))
        tokens.append(guess.token)


@dataclass
class Told:
    """What became of a slot's turn."""

    prompt: History = ()
    max_tokens: int = 0
    emitted: list[int] = field(default_factory=list)
    finished: str = ""
    nodes: dict[int, History] = field(default_factory=dict)
    carried: list[tuple[int, History]] = field(default_factory=list)
    """Every row that left: its run, and its history down to itself."""


class Chaos:
    """An engine among all that may happen, at the speed of `rng`."""

    def __init__(self, world: ChaosWorld, settings: Settings, curves: Sequence[CostCurve], rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.engine = Engine(settings, curves)
        self.stages = [ChaosStage(recurrent=settings.checkpoints) for _ in curves]
        self.draft = ChaosDraft(world)
        self.back: deque[ev.RunDone] = deque()
        self.now = 0.0
        self.wakes: list[float] = []
        self.weights = {
            kind: rng.choice((0.1, 1.0, 1.0, 10.0)) for kind in ("stage", "cancel", "wire", "draft", "tick")
        }
        self.pace = rng.choice((1e-5, 1e-3, 0.05))
        self.told = [Told() for _ in self.engine.slots]
        self.cancelled: set[int] = set()

    @property
    def emitted(self) -> list[int]:
        return self.told[0].emitted

    @property
    def finished(self) -> str:
        return self.told[0].finished

    @property
    def carried(self) -> list[tuple[int, History]]:
        return self.told[0].carried

    def turn(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        stop_after: int | None = None,
        keep: int | None = None,
        goes_on: bool = False,
    ) -> None:
        """One turn to its end. It is stopped from outside after that many steps."""
        self.cancelled.clear()
        self.begin(0, prompt, max_tokens, goes_on=goes_on)
        steps = 0
        while not self.engine.idle:
            if steps == stop_after and not self.finished:
                self.stop(0, keep)
            steps += 1
            assert steps < 20_000, "the turn does not end"
            self.step()
        while self.draft.commands:
            self.draft.obey()
        assert self.finished

    def begin(self, slot: int, prompt: Sequence[int], max_tokens: int, goes_on: bool = False, owner: str = "") -> None:
        """A slot's turn begins."""
        self.told[slot] = Told(tuple(prompt), max_tokens, nodes={0: tuple(prompt)})
        self.feed(ev.Prompt(tuple(prompt), max_tokens, goes_on, slot, owner))

    def stop(self, slot: int, keep: int | None = None) -> None:
        self.feed(ev.Stop("cancelled", None if keep is None else min(keep, len(self.told[slot].emitted)), slot))

    def lose(self) -> None:
        """All stages are replaced by empty ones."""
        self.stages = [ChaosStage(recurrent=stage.recurrent) for stage in self.stages]
        self.back.clear()
        for told in self.told:
            told.carried.clear()
        self.feed(ev.Lost())

    def step(self) -> None:
        """Let one of the things happen that can happen now."""
        able: list[tuple[str, object]] = []
        for stage in self.stages:
            able += [("stage", stage)] if stage.current or stage.inbox else []
            able += [("cancel", stage)] if stage.cancels else []
            able += [("wire", stage.ready)] if stage.ready else []
        able += [("wire", self.back)] if self.back else []
        able += [("wire", self.draft.says)] if self.draft.says else []
        able += [("draft", self.draft.commands)] if self.draft.commands else []
        able += [("draft", path) for path in self.draft.able()] if self.draft.alive else []
        able += [("tick", None)] if self.wakes else []
        assert able, "nothing can happen, and the turn is not over"
        kind, what = self.rng.choices(able, [self.weights[kind] for kind, _ in able])[0]
        self.now += self.pace * self.rng.random()
        if isinstance(what, ChaosStage):
            self._stage(what) if kind == "stage" else self._cancel(what)
        elif what is self.draft.commands:
            self.draft.obey()
        elif isinstance(what, deque):
            self.feed(what.popleft())
        elif isinstance(what, int):
            self.draft.extend(what)
        else:
            self.now = max(self.now, min(self.wakes))
            self.wakes.remove(min(self.wakes))
            self.feed(ev.Tick())

    def _stage(self, stage: ChaosStage) -> None:
        if stage.current is None:
            stage.begin()
            return
        run, dead = stage.end()
        stage.ready.append(ev.StageReady(self.stages.index(stage), run.id, None if dead else 0.001 * len(run.rows)))
        following = self.stages.index(stage) + 1
        if following < len(self.stages):
            self.stages[following].inbox.append((run, dead))
        else:
            self.back.append(ev.RunDone(run.id, () if dead else tuple(self._draws(stage, run))))

    def _draws(self, last: ChaosStage, run: Run) -> list[tuple[int, float]]:
        draws = []
        for row in run.rows:
            if row.draw:
                history, nodes = last.history(row.seq, row.pos), self.told[row.slot].nodes
                assert history == nodes[row.node], "the cells are not those of the node's history"
                truth = self.world.text(nodes[0], len(history), len(history))
                forbidden = tuple(truth[: len(history)]) != history and self.rng.random() < 0.1
                draws.append((-1 if forbidden else self.world.target(history), -0.5))
        return draws

    def _cancel(self, stage: ChaosStage) -> None:
        runs = stage.cancels.popleft()
        stage.dead.update(runs)
        if stage.current and stage.current[0].id in runs and stage.current[0].rows and self.rng.random() < 0.8:
            run = stage.current[0]
            stage.current = run, True  # aborted; else it had just ended
            stage.states.update({row.seq: None for row in run.rows})

    def feed(self, event: ev.Event) -> None:
        for action in self.engine.handle(event, self.now):
            self._carry_out(action)
        engine = self.engine
        if engine.settings.mode != "sync" and engine.settings.on("multibuffer") and len(engine.active) == 1:
            assert not any(slot.waits for slot in engine.slots), "a final token waits"

    def _carry_out(self, action: ev.Action) -> None:
        match action:
            case ev.Dispatch(run):
                settings = self.engine.settings
                assert len(run.rows) <= (settings.chunk if run.kind == "prefill" else settings.max_rows), "too wide"
                assert run.kind == "decode" or len({row.slot for row in run.rows}) <= 1
                self.stages[0].inbox.append((run, False))
                for row in run.rows:
                    told = self.told[row.slot]
                    if row.node not in told.nodes and row.node > 0:
                        told.nodes[row.node] = (*told.nodes[row.parent], row.token)
                    if row.node >= 0:
                        assert len(told.nodes[row.node]) == row.pos + 1 <= self.engine.settings.n_ctx
                        told.carried.append((run.id, told.nodes[row.node]))
            case ev.Cancel(runs):
                assert not self.cancelled & set(runs), "cancelled twice"
                self.cancelled.update(runs)
                for stage in self.stages:
                    stage.cancels.append(runs)
            case ev.Emit(token):
                self.told[action.slot].emitted.append(token)
            case ev.Finish(reason, slot):
                self.told[slot].finished = reason
            case ev.Again(said, root, slot):
                told = self.told[slot]
                assert list(said) == told.emitted
                told.nodes[root] = (*told.prompt, *said)
            case ev.Wake(at):
                self.wakes.append(at)
            case _:
                self.draft.commands.append(action)
