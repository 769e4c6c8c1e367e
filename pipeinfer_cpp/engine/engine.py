"""PipeInfer as a state machine: events in, actions out; no socket, no thread, no clock.

A turn goes through PREFILL (chunks of the prompt fill the pipeline), DECODE (verify, dispatch,
speculate) and DRAIN (one last header truncates the canonical sequence everywhere), back to IDLE.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.costs import CostCurve
from pipeinfer_cpp.engine.drafts import Drafts
from pipeinfer_cpp.engine.pacing import Pace
from pipeinfer_cpp.engine.policy import Calibration, Cutoff, Governor
from pipeinfer_cpp.engine.run import InFlight, Row, Run
from pipeinfer_cpp.engine.selection import select
from pipeinfer_cpp.engine.sequences import MAIN, Op, SequencePool, cp, rm
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.engine.stats import Stats
from pipeinfer_cpp.engine.tree import Node, Tree

IDLE, PREFILL, DECODE, DRAIN = "idle", "prefill", "decode", "drain"


class EngineError(Exception):
    """An event that cannot be: a bug in a driver or in the engine. Carries the run's story."""


class Engine:
    """One conversation over one pipeline. Feed events with `handle(event, now)`, carry out what it returns.

    `now` is any clock that does not run backwards, in seconds; it is only used for pacing and counting.
    """

    def __init__(self, settings: Settings, curves: Sequence[CostCurve], hop: float = 0.0) -> None:
        self.settings = settings
        self.phase = IDLE
        self.cached: list[int] = []
        """The canonical sequence: tokens whose KV cells every stage holds."""
        self.tokens: list[int] = []
        """Prompt and final tokens of this turn; the last one is the root's."""
        self.stats = Stats()
        self.pace = Pace(curves, hop)
        self.in_flight: dict[int, InFlight] = {}
        self.pool = SequencePool(settings.branches - 1 if settings.on("multibuffer") else 0)
        self.drafts = Drafts(settings)
        self.calibration = Calibration()
        self.governor = Governor(self.pace.latency(1))
        self._cutoff = Cutoff(settings.cutoff, settings.recovery, settings.decay)
        self._tree = Tree(0, 0)
        self._chunks: deque[tuple[int, int]] = deque()
        self._ops: list[Op] = []
        self._next_run = 1
        self._n_prompt = self._max_tokens = 0
        self._reason = ""
        self._kept = 0
        self._now = 0.0
        self._woken: float | None = None
        self._out: list[ev.Action] = []
        self._log: deque[tuple[float, int, str]] = deque(maxlen=2000)

    def succeed(self, other: Engine) -> None:
        """Take over an idle engine's pipeline: its cached conversation; run and path numbers go on."""
        if other.phase != IDLE:
            raise EngineError(f"the engine to succeed is in {other.phase}")
        self.cached, self._next_run, self._ops = other.cached, other._next_run, other._ops
        self.drafts.succeed(other.drafts)

    def forget(self) -> None:
        """Drop the cached conversation; the stages do with the next run. Only between turns."""
        if self.phase != IDLE:
            raise EngineError(f"a conversation to forget while the engine is in {self.phase}")
        self.cached = []
        self._ops.append(rm(MAIN, 0))

    # ------------------------------------------------------------------------------- the one door

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Take one event, return what is to be done, in order."""
        if self.phase == DECODE:
            self.stats.flight(len(self.in_flight), now - self._now)
        self._now = now
        match event:
            case ev.RunDone():
                self._run_done(event)
            case ev.Drafted():
                self._drafted(event)
            case ev.StageReady():
                self._stage_ready(event)
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

    def story(self, run: int) -> str:
        """Everything that happened to one run."""
        return "\n".join(f"{at:.6f} run {r}: {what}" for at, r, what in self._log if r == run)

    # ------------------------------------------------------------------------------------- events

    def _prompt(self, event: ev.Prompt) -> None:
        if self.phase != IDLE:
            raise EngineError(f"a prompt while the engine is in {self.phase}")
        if not 0 < len(event.tokens) < self.settings.n_ctx or event.max_tokens < 1:
            raise EngineError(f"{len(event.tokens)} prompt tokens, context {self.settings.n_ctx}")
        self.stats = Stats()
        self.tokens = list(event.tokens)
        self._n_prompt, self._max_tokens = len(self.tokens), event.max_tokens
        keep = min(_common(self.cached, self.tokens), len(self.tokens) - 1)
        if keep < len(self.cached):
            self._ops.append(rm(MAIN, keep))
        step = self.settings.chunk
        self._chunks = deque((a, min(a + step, len(self.tokens))) for a in range(keep, len(self.tokens), step))
        self._tree = Tree(self.tokens[-1], len(self.tokens) - 1)
        self._kept = keep
        self._cutoff.accepted()
        self.governor.begin()
        self.phase = PREFILL
        if self.settings.mode != "off":
            self._out += self.drafts.begin(self.tokens, self._tree.root)

    def _drafted(self, event: ev.Drafted) -> None:
        if self.phase not in (PREFILL, DECODE):
            return
        parent = self.drafts.place(event, self._now)
        if parent is None:
            return  # from a path that is dead by now
        tree, path = self._tree, event.path
        node = tree.add(
            parent, event.token, prob=event.prob, seq=parent.seq, origin="draft", path=path, second=event.second
        )
        self.stats.proposed += 1
        self.drafts.extend(path, node)
        wanted = event.second >= 0 and event.second_prob >= self.settings.split and not self._ends(event.second)
        if self.settings.mode != "async" or not wanted or parent.pos + 1 > self._last_row:
            return
        branch = self.pool.take()
        if branch is not None:
            sibling = tree.add(
                parent,
                event.second,
                prob=event.second_prob,
                seq=branch,
                origin="sibling",
                path=0,
                second=-1,
            )
            self.stats.proposed += 1
            self._out.append(self.drafts.fork(sibling, path))

    def _stage_ready(self, event: ev.StageReady) -> None:
        flight = self.in_flight.get(event.run)
        self.pace.ready(event.stage, event.run, self._now)
        if flight is None:
            return
        flight.stages.add(event.stage)
        if event.seconds is not None and flight.run.rows:
            self.pace.curves[event.stage].observe(len(flight.run.rows), event.seconds)

    def _run_done(self, event: ev.RunDone) -> None:
        flight = self.in_flight.pop(event.run, None)
        if flight is None:
            raise EngineError(f"run {event.run} came back twice or never left:\n{self.story(event.run)}")
        self._tell(event.run, f"back with {len(event.draws)} draws")
        self.pace.gone(event.run)
        if self.phase == DRAIN:
            if flight.run.kind == "end":
                self.phase = IDLE
                self._out.append(ev.Finish(self._reason))
            return
        if flight.alive == 0:
            return
        wanted = [row for row in flight.run.rows if row.draw]
        if len(event.draws) != len(wanted):
            raise EngineError(f"{len(event.draws)} draws for {len(wanted)} rows:\n{self.story(event.run)}")
        draws = {row.node: draw for row, draw in zip(wanted, event.draws, strict=True)}
        for node in self._tree.root.subtree():
            if node.id in draws and node.run == event.run:
                node.draw, node.logprob = draws[node.id]
        self._verify()

    def _stop(self, event: ev.Stop) -> None:
        if self.phase not in (PREFILL, DECODE):
            return
        if event.keep is not None:
            del self.tokens[self._n_prompt + event.keep :]
        generated = len(self.tokens) > self._n_prompt
        # A turn that was stopped inside its prompt leaves no trace: chunk boundaries stay those of a turn.
        self._finish(event.reason, len(self.tokens) - 1 if generated else self._kept)

    # ------------------------------------------------------------------------------- verification

    def _verify(self) -> None:
        """Walk from the root as far as draws are known."""
        while self.phase in (PREFILL, DECODE):
            root = self._tree.root
            token = root.draw
            if token is None:
                return
            if token < 0:
                raise EngineError(f"the sampler refused a final token:\n{self.story(root.run or 0)}")
            hit = root.child(token)
            self._judge(root, hit)
            if token in self.settings.eog:
                self.stats.wasted -= hit is not None  # accepted, though it goes down with the tree
                self._finish("stop", root.pos + 1)
                return
            origin = hit.origin if hit else "target"
            self.tokens.append(token)
            self._out.append(ev.Emit(token, root.pos + 1, root.logprob, origin))
            self.governor.token(self._now)
            if hit:
                self._accept(hit)
            else:
                self._miss(token)
            n_generated = len(self.tokens) - self._n_prompt
            if n_generated >= self._max_tokens or len(self.tokens) >= self.settings.n_ctx:
                self._finish("length", len(self.tokens) - 1)

    def _judge(self, root: Node, hit: Node | None) -> None:
        """Count the verdict on the root's children."""
        first = next((c for c in root.children if c.origin == "draft"), None)
        if first is not None:
            self.calibration.learn(first.prob, first is hit)
            if first is not hit and first.second is not None and first.second >= 0:
                self.stats.second_asked += 1
                self.stats.second_hit += first.second == root.draw
        judged = hit or first
        if judged is not None:
            self.stats.verdict(judged.depth, hit is not None)
            self.stats.wasted -= hit is None  # it is among the dead, who count as wasted

    def _accept(self, node: Node) -> None:
        old = node.parent
        dead = self._tree.accept(node)
        self._bury(dead)
        if node.seq != MAIN:
            self._adopt(node)
        self._out += self.drafts.follow()
        self._cutoff.accepted()
        if old is not None:
            old.children = []

    def _adopt(self, node: Node) -> None:
        """A side branch won: its cells become the main path's, its id is free again."""
        side = node.seq
        if node.run is not None:
            self._ops += [cp(side, MAIN, node.pos, -1), rm(side, 0)]
        for n in node.subtree():
            if n.seq == side:
                n.seq = MAIN
        self.pool.give(side)

    def _miss(self, token: int) -> None:
        self._bury(self._tree.replace(token))
        if self.settings.mode != "off":
            self._out += self.drafts.miss(self._tree.root)

    def _bury(self, dead: list[Node]) -> None:
        """Free what dead nodes held, cancel the runs that carry nothing else."""
        if not dead:
            return
        self.stats.wasted += len(dead)
        ends: dict[int, int] = {}
        for node in dead:
            if node.run is not None:
                ends[node.seq] = min(node.pos, ends.get(node.seq, node.pos))
                flight = self.in_flight.get(node.run)
                if flight is not None:
                    flight.alive -= 1
        live = {n.seq for n in self._tree.root.subtree()} | {MAIN}
        for seq in {n.seq for n in dead} - live:
            if seq in ends:
                self._ops.append(rm(seq, 0))
            self.pool.give(seq)
        for seq in live & ends.keys():
            self._ops.append(rm(seq, ends[seq]))
        self._cancel()

    def _cancel(self) -> None:
        """Cancel the dead runs. With side branches a dead run may hold cells that the dead rows of a live
        one build on; it is computed to the end then, as no stage can decode rows without their past."""
        needed: set[int] = set()
        for run in sorted(self.in_flight, reverse=True):
            flight = self.in_flight[run]
            if flight.alive or run in needed:
                needed |= flight.needs
        runs = [r for r, f in self.in_flight.items() if not (f.alive or f.cancelled or r in needed)]
        if not runs:
            return
        self.stats.cancelled += len(runs)
        for run in runs:
            self.in_flight[run].cancelled = True
            self._tell(run, "dead")
        if self.settings.on("cancel"):
            for run in runs:
                self.pace.dead(run)
            self._out.append(ev.Cancel(tuple(runs)))

    def _finish(self, reason: str, cached: int) -> None:
        """Truncate the canonical sequence to what every stage knows, and wait for that header's return."""
        self._bury(self._tree.kill())
        alive = [r for r, f in self.in_flight.items() if f.alive]
        for run in alive:
            self.in_flight[run].alive = 0
        self._cancel()
        self._chunks.clear()
        self.cached = self.tokens[:cached]
        self._ops.append(rm(MAIN, cached))
        self._reason = reason
        self.phase = DRAIN
        self._out += self.drafts.stop()
        self._send("end", [], alive=1)

    # ----------------------------------------------------------------------------------- dispatch

    @property
    def _last_row(self) -> int:
        """The last position worth a row: its draw is the last token that can be emitted."""
        return min(self.settings.n_ctx, self._n_prompt + self._max_tokens) - 2

    def _ends(self, token: int) -> bool:
        return token in self.settings.eog

    def _pump(self) -> None:
        if self.phase == PREFILL:
            self._prefill()
        if self.phase == DECODE:
            self._send_root()
            if self.settings.mode == "async":
                self._speculate()
        if self.phase in (PREFILL, DECODE) and self.drafts.alive and self.settings.mode != "off":
            self._out += self.drafts.room(self._room())

    def _prefill(self) -> None:
        """Chunk k is at stage 0 while chunk k-1 is at stage 1: two more than stages are under way."""
        while self._chunks and len(self.in_flight) < len(self.pace.curves) + 2:
            a, b = self._chunks.popleft()
            last = not self._chunks
            rows = [
                Row(self.tokens[p], p, MAIN, 0 if last and p == b - 1 else -1, -1, last and p == b - 1)
                for p in range(a, b)
            ]
            run = self._send("prefill", rows, alive=1)
            if last:
                self._tree.root.run = run
                self.phase = DECODE

    def _send_root(self) -> None:
        """The run that carries a final token leaves at once, with the drafts known below it."""
        root, settings = self._tree.root, self.settings
        if root.run is not None or (not settings.on("multibuffer") and self.in_flight):
            return
        if settings.mode == "sync" and self.drafts.alive:
            nodes = [n for n in root.subtree() if n.pos <= self._last_row]
            whole = min(1 + self._sync_length(), 1 + max(self._last_row - root.pos, 0))
            if len(nodes) < whole and not self._ends(nodes[-1].token):
                return
            self._dispatch([n for n in nodes if not self._ends(n.token)][:whole], speculative=False)
        elif settings.mode == "async":
            self._dispatch(self._select(), speculative=False)
        else:
            self._dispatch([root], speculative=False)

    def _speculate(self) -> None:
        if not (self.drafts.alive and self.governor.speculate) or self._tree.root.run is None:
            return
        if not self.settings.on("continuous") and any(f.speculative for f in self.in_flight.values()):
            return
        if len(self.in_flight) > 3 * len(self.pace.curves):
            return
        early = self.pace.wait(1, self._now) - self._slack
        if early > 1e-6:
            self._wake(self._now + max(early, 1e-4))
            return
        nodes = self._select()
        if nodes:
            self._dispatch(nodes, speculative=True)
            self._cutoff.sent()
        elif any(n is not self._tree.root for n in self._tree.frontier()):
            self._cutoff.idle()
            self._wake(self._now + self.pace.bottleneck(1))

    def _select(self) -> list[Node]:
        root = self._tree.root
        if root.run is None and not (self.drafts.alive and self.governor.speculate):
            return [root]
        return select(
            self._tree.root,
            pace=self.pace,
            calibration=self.calibration,
            level=self._cutoff.level,
            max_rows=self.settings.max_rows,
            last_row=self._last_row,
            eog=self.settings.eog,
        )

    def _dispatch(self, nodes: list[Node], speculative: bool) -> None:
        rows = []
        needs = {n.parent.run for n in nodes if n.parent is not None and n.parent.run in self.in_flight}
        for node in nodes:
            parent = node.parent
            if node.seq != MAIN and parent is not None and parent.seq != node.seq:
                self._ops.append(cp(parent.seq, node.seq, 0, node.pos))
            rows.append(Row(node.token, node.pos, node.seq, node.id, node.parent_id, True))
        run = self._send("decode", rows, alive=len(rows), speculative=speculative)
        self.in_flight[run].needs = frozenset(r for r in needs if r is not None)
        for node in nodes:
            node.run = run

    def _send(self, kind: str, rows: list[Row], alive: int, speculative: bool = False) -> int:
        run = Run(self._next_run, kind, tuple(self._ops), tuple(rows), self._tree.root.id)
        self._next_run += 1
        self._ops.clear()
        self.in_flight[run.id] = InFlight(run, speculative, self._now, alive)
        self.pace.sent(run.id, len(rows), self._now)
        self.stats.sent += 1
        self.stats.rows += len(rows)
        self._tell(run.id, f"{kind} of {len(rows)} rows from {rows[0].pos if rows else '-'}")
        self._out.append(ev.Dispatch(run))
        return run.id

    # ------------------------------------------------------------------------------------- pacing

    @property
    def _slack(self) -> float:
        """A run leaves this long before the slowest stage is free, so that it waits there and not the stage."""
        return max(0.001, 0.04 * self.pace.bottleneck(1))

    def _sync_length(self) -> int:
        return min(self.settings.draft_max, self.settings.max_rows - 1)

    def _room(self) -> int:
        """How far the draft worker may run ahead: what the pipeline can hold by the time it is drafted."""
        root = self._tree.root.pos
        if self.settings.mode == "sync":
            return min(root + self._sync_length(), self._last_row)
        if not self.governor.speculate:
            return root
        if not self.settings.on("draft-ahead"):
            waits = any(n is not self._tree.root for n in self._tree.frontier())
            if waits or self.phase == PREFILL or self.pace.wait(1, self._now) > self._slack:
                return root
            deepest = max(n.pos for n in self._tree.root.subtree())
            return min(deepest + 1, self._last_row)
        ahead = self.drafts.ahead(self.pace.latency(1))
        return min(root + ahead, self._last_row)

    def _wake(self, at: float) -> None:
        if self._woken is None or at < self._woken - 1e-5 or self._woken <= self._now:
            self._woken = at
            self._out.append(ev.Wake(at))

    def _tell(self, run: int, what: str) -> None:
        self._log.append((self._now, run, what))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
