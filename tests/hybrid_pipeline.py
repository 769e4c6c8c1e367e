"""The engine over real slices in this process, in any order of events: for models whose state cannot be taken back."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.engine import CostCurve, Engine, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.run import Run
from pipeinfer_cpp.llama.checkpoints import Checkpoints
from pipeinfer_cpp.llama.context import Aborted, SliceContext

Hidden = NDArray[np.float32]
CONTEXT = {"n_ctx": 512, "n_ubatch": 32, "n_seq_max": 2}


def single_rows(path: Path, text: Sequence[int], n_prompt: int) -> Hidden:
    """float32[len(text), n_vocab]: the uncut model, the prompt in one batch and then row by row."""
    return in_rows(path, text, n_prompt, 1)


def in_rows(path: Path, text: Sequence[int], n_prompt: int, width: int) -> Hidden:
    context = SliceContext(path, **CONTEXT)
    out, at = [], 0
    while at < len(text):
        n = min(width if at else n_prompt, len(text) - at)
        pos = np.arange(at, at + n, dtype=np.int32)
        out.append(context.decode(np.array(text[at : at + n], np.int32), pos, np.zeros(n, np.int32)).copy())
        at += n
    context.close()
    return np.concatenate(out)


@dataclass
class Stage:
    """A slice, its inbox, and what it has heard of dead runs."""

    context: SliceContext
    checkpoints: Checkpoints
    inbox: deque[tuple[Run, Hidden | None, bool]] = field(default_factory=deque)
    cancels: deque[tuple[int, ...]] = field(default_factory=deque)
    dead: set[int] = field(default_factory=set)

    def execute(self, run: Run, hidden: Hidden | None, dead: bool, abort_after: float | None) -> Hidden | None:
        """Operations, then the decode unless the run is dead. None: there is nothing to pass on."""
        for op in run.ops:
            match op.kind:
                case "rm":
                    self.context.seq_rm(op.seq, op.p0, op.p1)
                case "snapshot":
                    self.checkpoints.save(op.src)
                case "restore":
                    self.checkpoints.restore(op.src, op.p0)
        if dead or run.id in self.dead or not run.rows:
            return None
        tokens, pos = (np.array([getattr(row, name) for row in run.rows], np.int32) for name in ("token", "pos"))
        timer = None
        self.context.abort.clear()
        if abort_after is not None:
            timer = threading.Timer(abort_after, self.context.abort.set)
            timer.start()
        try:
            return np.array(self.context.decode(tokens, pos, np.zeros(len(pos), np.int32), hidden=hidden))
        except Aborted:
            return None
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()


class Hybrid:
    """An engine, slices that compute, and a draft that is right with a probability: `text` is what comes out."""

    def __init__(
        self, slices: Sequence[Path], text: Sequence[int], reference: Hidden, settings: Settings, rng: random.Random
    ) -> None:
        self.off: list[float] = []
        """Of each accepted row: the largest difference from the reference."""
        self.text, self.reference, self.rng = list(text), reference, rng
        self.engine = Engine(settings, [CostCurve.linear(0.01)] * len(slices))
        governor = self.engine.slots[0].speculation.governor
        governor.token = lambda now, ahead=False: None  # type: ignore[method-assign]  # time is made up here
        contexts = [SliceContext(path, **CONTEXT) for path in slices]
        assert all(context.checkpointed for context in contexts)
        self.stages = [Stage(context, Checkpoints(context)) for context in contexts]
        self.back: deque[tuple[Run, Hidden | None]] = deque()
        self.emitted: list[int] = []
        self.aborted = 0
        self.now = 0.0
        self._paths: dict[int, list[int]] = {}
        self._room = -1
        self._wake = False

    def close(self) -> None:
        for stage in self.stages:
            stage.context.close()

    def turn(self, n_prompt: int, max_tokens: int) -> None:
        self.emitted = []
        self.feed(ev.Prompt(tuple(self.text[:n_prompt]), max_tokens))
        while not self.engine.idle:
            self.step()
        assert self.emitted == self.text[n_prompt : n_prompt + max_tokens]

    def step(self) -> None:
        able: list[object] = [stage for stage in self.stages if stage.inbox or stage.cancels]
        able += [self.back] if self.back else []
        able += [path for path, tokens in self._paths.items() if len(tokens) <= self._room] * 3
        able += [None] if self._wake else []
        chosen = self.rng.choice(able)
        self.now += 0.002 * self.rng.random()
        if isinstance(chosen, Stage):
            self._stage(chosen)
        elif isinstance(chosen, int):
            self._draft(chosen)
        elif chosen is None:
            self._wake, self.now = False, self.now + 0.01
            self.feed(ev.Tick())
        else:
            self._done(*self.back.popleft())

    def _stage(self, stage: Stage) -> None:
        if stage.cancels and (not stage.inbox or self.rng.random() < 0.5):
            stage.dead.update(stage.cancels.popleft())
            return
        run, hidden, dead = stage.inbox.popleft()
        doomed = any(run.id in runs for runs in stage.cancels)  # its cancellation comes while it is computed
        out = stage.execute(run, hidden, dead, self.rng.random() * 0.002 if doomed and not dead else None)
        self.aborted += doomed and out is None and not dead
        index = self.stages.index(stage)
        self.feed(ev.StageReady(index, run.id, None if out is None else 0.01))
        if index + 1 < len(self.stages):
            self.stages[index + 1].inbox.append((run, out, out is None))
        else:
            self.back.append((run, out))

    def _done(self, run: Run, logits: Hidden | None) -> None:
        """The draws are the text's own, whatever the logits say: those of accepted rows must be the reference's."""
        draws = []
        if logits is not None:
            final = self.engine.slots[0].turn.tokens
            for row, out in zip(run.rows, logits, strict=True):
                known = self.text[: row.pos + 1]
                right = row.pos < len(final) or row.token == known[-1]
                path = self._history(row.node, run)
                if right and path == known:
                    self.off.append(float(np.abs(out - self.reference[row.pos]).max()))
                if row.draw:
                    draws.append((self.text[row.pos + 1] if path == known else 1, -1.0))
        self.feed(ev.RunDone(run.id, tuple(draws)))

    def _history(self, node: int, run: Run) -> list[int]:
        """The tokens down to a node, also when it is not final yet."""
        if node < 0:
            return self.text[: 1 + next(row.pos for row in run.rows if row.node == node)]
        for found in self.engine.slots[0].tree.root.subtree():
            if found.id == node:
                below: list[int] = []
                while found.parent is not None:
                    below.insert(0, found.token)
                    found = found.parent
                return self.engine.slots[0].turn.tokens[: self.engine.slots[0].tree.root.pos + 1] + below
        return []  # dead

    def _draft(self, path: int) -> None:
        tokens = self._paths[path]
        right = self.text[len(tokens)] if len(tokens) < len(self.text) else 1
        token = right if self.rng.random() < 0.8 else (right + 31) % 120 + 3
        tokens.append(token)
        self.feed(ev.Drafted(path, len(tokens) - 1, token, 0.8, seconds=0.001))

    def feed(self, event: ev.Event) -> None:
        for action in self.engine.handle(event, self.now):
            match action:
                case ev.Dispatch(run):
                    self.stages[0].inbox.append((run, None, False))
                case ev.Cancel(runs):
                    for stage in self.stages:
                        stage.cancels.append(runs)
                case ev.Emit(token):
                    self.emitted.append(token)
                case ev.DraftReset(path, keep, tokens):
                    longest = max(self._paths.values(), key=len, default=[])
                    self._paths = {path: [*longest[:keep], *tokens]}
                case ev.DraftDrop(paths):
                    for path in paths:
                        self._paths.pop(path, None)
                case ev.DraftRoom(pos):
                    self._room = pos
                case ev.Wake():
                    self._wake = True
