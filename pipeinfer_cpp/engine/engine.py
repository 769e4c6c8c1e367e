"""PipeInfer as a state machine: events in, actions out; no socket, no thread, no clock.

A turn goes through PREFILL (chunks of the prompt fill the pipeline), DECODE (verify, dispatch,
speculate) and DRAIN (one last header truncates the canonical sequence everywhere), back to IDLE.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.cached import Cached, Past
from pipeinfer_cpp.engine.checkpoints import Checkpoints
from pipeinfer_cpp.engine.costs import CostCurve
from pipeinfer_cpp.engine.drafts import Drafts
from pipeinfer_cpp.engine.pacing import Pace
from pipeinfer_cpp.engine.pipe import EngineError, Pipe
from pipeinfer_cpp.engine.run import Row
from pipeinfer_cpp.engine.sequences import MAIN, SequencePool, cp, rm
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.engine.speculation import Speculation
from pipeinfer_cpp.engine.stats import Stats
from pipeinfer_cpp.engine.tree import Node, Tree
from pipeinfer_cpp.engine.turn import Turn

IDLE, PREFILL, DECODE, DRAIN = "idle", "prefill", "decode", "drain"


class Engine:
    """One conversation over one pipeline. Feed events with `handle(event, now)`, carry out what it returns.

    `now` is any clock that does not run backwards, in seconds; it is only used for pacing and counting.
    """

    def __init__(self, settings: Settings, curves: Sequence[CostCurve], hop: float = 0.0) -> None:
        self.settings = settings
        self.phase = IDLE
        self._cached = Cached()
        self.turn = Turn([], 0, 0, settings.n_ctx)
        self.tree = Tree(0, 0)
        self.stats = Stats()
        self.pipe = Pipe(Pace(curves, hop), cancels=settings.on("cancel"))
        self.pool = SequencePool(settings.branches - 1 if settings.on("multibuffer") else 0)
        self.checkpoints = Checkpoints() if settings.checkpoints else None
        self.drafts = Drafts(settings)
        self.speculation = Speculation(settings, self.pipe, self.drafts)
        self._replay: list[Row] = []
        """Rows behind a restored checkpoint, to be computed again before the root."""
        self._reason = ""
        self._now = 0.0
        self._woken: float | None = None
        self._out: list[ev.Action] = []

    def succeed(self, other: Engine) -> None:
        """Take over an idle engine's pipeline: its cached conversation; run and path numbers go on."""
        if other.phase != IDLE:
            raise EngineError(f"the engine to succeed is in {other.phase}")
        self._cached, self.checkpoints = other._cached, other.checkpoints
        self.pipe.succeed(other.pipe)
        self.drafts.succeed(other.drafts)

    def forget(self) -> None:
        """Drop the cached conversation; the stages do with the next run. Only between turns."""
        if self.phase != IDLE:
            raise EngineError(f"a conversation to forget while the engine is in {self.phase}")
        self._cached.recall()
        self._truncate(0)

    def recall(self, past: Past) -> None:
        """This was the conversation so far. A prompt that goes on it computes it again in the batches that it was
        first computed in, so that the same text follows. Only between turns."""
        self.forget()
        if past.chunk == self.settings.chunk:
            self._cached.recall(past.tokens, past.spans)

    @property
    def past(self) -> Past:
        """The conversation so far, for `recall`."""
        return Past(tuple(self._cached.tokens), tuple(self._cached.spans), self.settings.chunk)

    @property
    def cached(self) -> list[int]:
        """The canonical sequence: tokens whose KV cells every stage holds."""
        return self._cached.tokens[: self._cached.held]

    # ------------------------------------------------------------------------------- the one door

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Take one event, return what is to be done, in order."""
        if self.phase == DECODE:
            self.stats.flight(len(self.pipe), now - self._now)
        self._now = now
        match event:
            case ev.RunDone():
                self._run_done(event)
            case ev.Drafted():
                self._drafted(event)
            case ev.StageReady():
                self.pipe.passed(event, now)
            case ev.Prompt():
                self._prompt(event)
            case ev.Stop():
                self._stop(event)
            case ev.DraftLost():
                self.drafts.lost()
            case ev.Tick():
                self._woken = None
        self._pump()
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------------------------------- events

    def _prompt(self, event: ev.Prompt) -> None:
        if self.phase != IDLE:
            raise EngineError(f"a prompt while the engine is in {self.phase}")
        tokens, n_ctx = event.tokens, self.settings.n_ctx
        if not 0 < len(tokens) < n_ctx or event.max_tokens < 1:
            raise EngineError(f"{len(tokens)} prompt tokens, {event.max_tokens} to generate, context {n_ctx}")
        self.stats = Stats()
        reach = self.checkpoints.reach if self.checkpoints else lambda n: n
        held, of = self._cached.held, self.settings
        kept, chunks = self._cached.begin(tokens, of.chunk, of.max_rows, of.exact, event.goes_on, reach)
        self.turn = Turn.begin(tokens, event.max_tokens, n_ctx, kept, chunks)
        if kept < held:
            self._truncate(kept)
        if self.checkpoints:
            self.checkpoints.begin(kept)
        self.tree = Tree(tokens[-1], len(tokens) - 1)
        self.speculation.cutoff.final()
        self.speculation.governor.begin()
        self.phase = PREFILL
        self._out += self.drafts.begin(tokens, self.tree.root)

    def _drafted(self, event: ev.Drafted) -> None:
        parent = self.drafts.place(event) if self.phase in (PREFILL, DECODE) else None
        if parent is None:
            return  # from a path that is dead by now
        node = self.tree.add(parent, event.token, event.prob, parent.seq, path=event.path, second=event.second)
        self.stats.proposed += 1
        self.drafts.extend(event.path, node)
        fork = parent.pos < self.turn.last_row and self.speculation.forks(event.second, event.second_prob)
        if fork and (branch := self.pool.take()) is not None:
            sibling = self.tree.add(parent, event.second, event.second_prob, branch, origin="sibling")
            self.stats.proposed += 1
            self._out.append(self.drafts.fork(sibling, event.path))

    def _run_done(self, event: ev.RunDone) -> None:
        flight = self.pipe.back(event, self._now)
        self.speculation.cutoff.returned()
        if self.phase == DRAIN:
            if flight.run.kind == "end":
                self.phase = IDLE
                self._out.append(ev.Finish(self._reason))
            return
        if flight.alive == 0:
            return
        wanted = [row for row in flight.run.rows if row.draw]
        if len(event.draws) != len(wanted):
            story = self.pipe.story(event.run)
            raise EngineError(f"{len(event.draws)} draws for {len(wanted)} rows:\n{story}")
        if self.checkpoints:
            self.checkpoints.settle(self.tree.root.pos)
        draws = {row.node: draw for row, draw in zip(wanted, event.draws, strict=True)}
        for node in self.tree.root.subtree():
            if node.run == event.run and node.id in draws:
                node.draw, node.logprob = draws[node.id]
        self._verify()

    def _stop(self, event: ev.Stop) -> None:
        if self.phase not in (PREFILL, DECODE):
            return
        turn = self.turn
        if event.keep is not None:
            del turn.tokens[turn.n_prompt + event.keep :]
        # A turn that was stopped inside its prompt leaves no trace: chunk boundaries stay those of a turn.
        self._finish(event.reason, len(turn.tokens) - 1 if turn.n_generated else turn.kept)

    # ------------------------------------------------------------------------------- verification

    def _verify(self) -> None:
        """Walk from the root as far as draws are known."""
        while self.phase in (PREFILL, DECODE) and (token := self.tree.root.draw) is not None:
            root = self.tree.root
            if token < 0:
                raise EngineError(f"the sampler refused a final token:\n{self.pipe.story(root.run or 0)}")
            hit = root.child(token)
            self._judge(root, hit)
            if token in self.settings.eog:
                self.stats.wasted -= hit is not None  # accepted, though it goes down with the tree
                self._finish("stop", root.pos + 1)
                return
            self.turn.tokens.append(token)
            self._out.append(ev.Emit(token, root.pos + 1, root.logprob, hit.origin if hit else "target"))
            self.speculation.cutoff.final()
            self.speculation.governor.token(self._now, ahead=hit is not None and hit.run is not None)
            if hit:
                self._accept(hit)
            else:
                self._bury(self.tree.replace(token))
                if self.checkpoints:
                    self._replay = self._truncate(self.tree.root.pos)
                self._out += self.drafts.miss(self.tree.root)
            if self.turn.full:
                self._finish("length", len(self.turn.tokens) - 1)

    def _judge(self, root: Node, hit: Node | None) -> None:
        """Count the verdict on the root's children."""
        first = next((c for c in root.children if c.origin == "draft"), None)
        if first is not None:
            self.speculation.calibration.learn(first.prob, first is hit)
            if first is not hit and first.second >= 0:
                self.stats.second(first.second == root.draw)
        judged = hit or first
        if judged is not None:
            self.stats.verdict(judged.depth, hit is not None)
            self.stats.wasted -= hit is None  # it is among the dead, who count as wasted

    def _accept(self, hit: Node) -> None:
        self._bury(self.tree.accept(hit))
        if hit.seq != MAIN:
            self.pipe.ops += self.pool.adopt(hit)
        self._out += self.drafts.follow()

    def _bury(self, dead: list[Node]) -> None:
        """Free what dead nodes held, cancel the runs that carry nothing else."""
        self.stats.wasted += len(dead)
        removals = self.pool.bury(dead, self.tree.root)
        if not self.checkpoints:
            self.pipe.ops += removals
        self.pipe.lose(dead)
        if dead:
            self._cancel()

    def _cancel(self) -> None:
        runs = self.pipe.newly_dead(self._now)
        self.stats.cancelled += len(runs)
        if runs and self.settings.on("cancel"):
            for run in runs:
                self.pipe.pace.dead(run)
            self._out.append(ev.Cancel(tuple(runs)))

    def _finish(self, reason: str, cached: int) -> None:
        """Truncate the canonical sequence to what every stage knows, and wait for that header's return."""
        self._bury(self.tree.kill())
        self.pipe.lose_all()
        self._cancel()
        self.turn.chunks.clear()
        self._cached.end(self.turn.tokens[:cached])
        again = self._truncate(cached)
        self._replay = []
        self._reason = reason
        self.phase = DRAIN
        self._out += self.drafts.stop()
        for at in range(0, len(again), self.settings.max_rows):
            self._send("replay", again[at : at + self.settings.max_rows])
        self._send("end", [])

    def _truncate(self, n: int) -> list[Row]:
        """Every stage goes back to the first `n` positions of the canonical sequence, with the next header.
        Returns the rows that must be computed again for that: none where a part of a sequence can be removed."""
        if self.checkpoints is None:
            self.pipe.ops.append(rm(MAIN, n))
            return []
        ops, at = self.checkpoints.rewind(n)
        self.pipe.ops += ops
        return [Row(self.turn.tokens[pos], pos, MAIN, -1, -1, False) for pos in range(at, n)]

    # ----------------------------------------------------------------------------------- dispatch

    def _pump(self) -> None:
        """Send what can leave now."""
        if self.phase == PREFILL:
            self._prefill()
        if self.phase == DECODE:
            if self.tree.root.run is None:
                nodes = self.speculation.root_run(self.tree, self.turn.last_row, len(self._replay))
                self._dispatch(nodes, speculative=False)
            nodes, wake = self.speculation.next_run(self.tree, self.turn.last_row, self._now)
            self._dispatch(nodes, speculative=True)
            if wake is not None:
                self._wake(wake)
        if self.phase in (PREFILL, DECODE) and self.drafts.alive:
            room = self.speculation.room(self.tree, self.turn.last_row, self._now, self.phase == PREFILL)
            self._out += self.drafts.room(room)

    def _prefill(self) -> None:
        """Chunk k is at stage 0 while chunk k-1 is at stage 1: two more than stages are under way."""
        turn = self.turn
        while turn.chunks and len(self.pipe) < self.pipe.n_stages + 2:
            begins = turn.chunks[0][0] == turn.kept or len(turn.chunks) == 1
            run = self._send("prefill", turn.next_chunk(self.tree.root), pin=begins)
            if not turn.chunks:
                self.tree.root.run = run
                self.phase = DECODE

    def _dispatch(self, nodes: list[Node], speculative: bool) -> None:
        if not nodes:
            return
        for node in nodes:
            parent = node.parent
            if parent is not None and node.seq not in (MAIN, parent.seq):
                self.pipe.ops.append(cp(parent.seq, node.seq, 0, node.pos))
        rows = [Row(node.token, node.pos, node.seq, node.id, node.parent_id, True) for node in nodes]
        rows, self._replay = self._replay + rows, []
        self.pipe.carry(self._send("decode", rows, speculative), nodes)

    def _send(self, kind: str, rows: list[Row], speculative: bool = False, pin: bool = False) -> int:
        if self.checkpoints and rows:
            # Within a prompt nothing goes back but to where a turn may begin.
            keep = pin or kind != "prefill"
            self.pipe.ops += self.checkpoints.send(rows[0].pos, len(rows), keep=keep, pin=pin)
        run = self.pipe.send(kind, rows, self.tree.root.id, self._now, speculative=speculative)
        self.stats.sent += 1
        self.stats.rows += len(rows)
        self.stats.replayed += sum(row.node < 0 for row in rows) if kind != "prefill" else 0
        self._out.append(ev.Dispatch(run))
        return run.id

    def _wake(self, at: float) -> None:
        if self._woken is None or at < self._woken - 1e-5 or self._woken <= self._now:
            self._woken = at
            self._out.append(ev.Wake(at))
