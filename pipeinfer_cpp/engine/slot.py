"""A slot: one conversation, its turn, its tree of guesses and what the stages hold of it.

A turn goes through PREFILL (chunks of the prompt fill the pipeline), DECODE (verify, dispatch, speculate) and DRAIN
(one last header truncates the canonical sequence everywhere), back to IDLE. Other slots' turns go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.cached import Cached, Past
from pipeinfer_cpp.engine.checkpoints import Checkpoints
from pipeinfer_cpp.engine.drafts import Drafts, DraftWorker
from pipeinfer_cpp.engine.governor import Governor
from pipeinfer_cpp.engine.ngram import Ngrams
from pipeinfer_cpp.engine.pipe import EngineError, Pipe
from pipeinfer_cpp.engine.run import Row, Run
from pipeinfer_cpp.engine.sequences import SequencePool, cp, rm, unstash
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.engine.speculation import Speculation, Trust
from pipeinfer_cpp.engine.stash import Stash
from pipeinfer_cpp.engine.stats import Stats
from pipeinfer_cpp.engine.tree import Node, Tree
from pipeinfer_cpp.engine.turn import Turn

Drawn = tuple[int, float, tuple[tuple[int, float], ...]]
"""A token, its log-probability, and what else was likely."""
IDLE, PREFILL, DECODE, DRAIN = "idle", "prefill", "decode", "drain"
STATES = 1024
"""Numbers of checkpoints that each slot has for itself."""


@dataclass(slots=True)
class Common:
    """What all slots share: the pipeline, ids of side branches, the draft worker, what is kept of conversations without
    a slot, what is learnt."""

    pipe: Pipe
    pool: SequencePool
    worker: DraftWorker
    stash: Stash
    governor: Governor
    trust: Trust = field(default_factory=Trust)
    out: list[ev.Action] = field(default_factory=list)
    """What is to be done."""
    alone: bool = True
    """No more than one slot has a turn under way."""


class Slot:
    """One conversation over a pipeline that others may use too. Its number is the id of its canonical sequence."""

    def __init__(self, number: int, settings: Settings, common: Common) -> None:
        self.number, self.settings = number, settings
        self.phase = IDLE
        self.owner = ""
        self.used = 0.0
        """When its last turn began."""
        self.cache = Cached()
        self.turn = Turn([], 0, 0, settings.n_ctx, slot=number)
        self.tree = Tree(0, 0, number)
        self.stats = Stats()
        self.checkpoints = Checkpoints(number, number * STATES) if settings.checkpoints else None
        self.drafts = Drafts(settings, common.worker, number)
        self.speculation = Speculation(settings, common.pipe, self.drafts, common.trust, common.governor)
        self.ngrams = Ngrams() if "ngram" in settings.proposers else None
        self._common = common
        self._pipe, self._pool, self._out = common.pipe, common.pool, common.out
        self.replay: list[Row] = []
        """Rows behind a restored checkpoint, to be computed again before the root."""
        self._read = False
        """The stages have computed the whole prompt of the turn: nothing can cancel it any more."""
        self.waits_since = 0.0
        """When its root became final."""
        self._asked: Node | None = None
        """The guess behind which the text had nothing to say."""
        self._reason = ""
        self._now = 0.0

    # ------------------------------------------------------------------------------ between turns

    @property
    def cached(self) -> list[int]:
        """The canonical sequence: tokens whose KV cells every stage holds."""
        return self.cache.tokens[: self.cache.held]

    @property
    def past(self) -> Past:
        """The conversation so far, for `recall`."""
        return Past(tuple(self.cache.tokens), tuple(self.cache.spans), self.settings.chunk)

    def recall(self, past: Past) -> None:
        """This was the conversation so far. A prompt that goes on it computes it again in the batches that it was
        first computed in, so that the same text follows."""
        self.forget()
        if past.chunk == self.settings.chunk:
            self.cache.recall(past.tokens, past.spans)

    def forget(self) -> None:
        """Drop the cached conversation; the stages do with the next run."""
        if self.phase != IDLE:
            raise EngineError(f"a conversation to forget while slot {self.number} is in {self.phase}")
        self.cache.recall()
        self._truncate(0)

    def change(self, past: Past | None, stashed: int, keep: bool) -> int:
        """Another conversation moves in: its `past`, and the number under which the stages keep it (0: none does). With
        `keep` they keep the one before, too. Returns the number for that; 0 where it must be computed again."""
        stash, before = self._common.stash, self.cache.held
        n = stash.take(stashed)  # before what makes room for the other
        number, ops = stash.put(self.number, before) if keep else (0, [])
        self._pipe.ops += ops
        self.recall(past) if past is not None else self.forget()
        if n:
            self._pipe.ops.append(unstash(self.number, stashed, n))
            self.cache.held = n
        return number

    def succeed(self, other: Slot) -> None:
        """Take over an idle slot's conversation."""
        if other.phase != IDLE:
            raise EngineError(f"the slot to succeed is in {other.phase}")
        self.cache, self.checkpoints, self.owner, self.used = other.cache, other.checkpoints, other.owner, other.used

    # ------------------------------------------------------------------------------------- a turn

    def begin(self, event: ev.Prompt, now: float, like: Slot | None = None) -> None:
        """A turn begins. `like`: a slot whose cells may be copied where its prompt began as this one does."""
        if self.phase != IDLE:
            raise EngineError(f"a prompt while slot {self.number} is in {self.phase}")
        tokens, n_ctx, of = event.tokens, self.settings.n_ctx, self.settings
        if not 0 < len(tokens) < n_ctx or event.max_tokens < 1:
            raise EngineError(f"{len(tokens)} prompt tokens, {event.max_tokens} to generate, context {n_ctx}")
        self._now = self.used = now
        others, self.owner = self.owner not in ("", event.owner), event.owner
        self.stats = Stats()
        if like is not None:
            self._copy(like, tokens)
        reach = self.checkpoints.reach if self.checkpoints else lambda n: n
        held = self.cache.held
        kept, chunks = self.cache.begin(tokens, of.chunk, min(of.chunk, of.max_rows), of.exact, event.goes_on, reach)
        self.turn = Turn.begin(tokens, event.max_tokens, n_ctx, kept, chunks, self.number)
        if kept < held:
            self._truncate(kept)
        if self.checkpoints:
            self.checkpoints.begin(kept)
        self.tree = Tree(tokens[-1], len(tokens) - 1, self.number)
        self.speculation.cutoff.final()
        self.phase, self._read = PREFILL, False
        if others:
            self._out += self.drafts.forget(tokens)
        if self.ngrams:
            self.ngrams.begin(tokens)
        self._out += self.drafts.begin(tokens, self.tree.root)

    def shared(self, tokens: Sequence[int]) -> int:
        """How many of these first tokens a slot whose prompt begins so could copy from here."""
        of = self.settings
        return self.cache.usable(tokens, of.chunk, of.exact, self.phase == DECODE and self._read)

    def _copy(self, like: Slot, tokens: Sequence[int]) -> None:
        n = like.shared(tokens)
        own = self.number
        if self.settings.apart:  # cells of its own: all of them are copied, or none
            self._pipe.ops += [rm(own, 0), cp(like.number, own, 0, -1), rm(own, n)]
        else:
            self._pipe.ops += [rm(own, 0), cp(like.number, own, 0, n)]
        self.cache.adopt(tokens[:n])

    def drafted(self, event: ev.Drafted) -> None:
        parent = self.drafts.place(event) if self.phase in (PREFILL, DECODE) else None
        if parent is None:
            return  # from a path that is dead by now
        if self.ngrams and self._contradicted(parent, event):
            return
        self.stats.proposed += parent.child(event.token) is None
        node = self.tree.add(parent, event.token, event.prob, path=event.path, second=event.second)
        self.drafts.extend(event.path, node)
        fork = parent.pos < self.turn.last_row and self.speculation.forks(event.second, event.second_prob)
        if fork and parent.child(event.second) is None and self._branches < self.settings.sides:
            sibling = self.tree.add(parent, event.second, event.second_prob, side=True, origin="sibling")
            self.stats.proposed += 1
            self._out.append(self.drafts.fork(sibling, event.path))

    def _contradicted(self, parent: Node, said: ev.Drafted) -> bool:
        """The text's own guess at the draft's place is another one, and is kept as the better one or as it has left
        already. Else it is dropped."""
        other = next((c for c in parent.children if c.match and not c.drafted and c.token != said.token), None)
        if other is None:
            return False
        trust = self.speculation.trust
        if other.run is not None or trust(other) >= trust.draft(said.prob):
            self._out += self.drafts.follow(other, said.path)
            return True
        self.stats.wasted += len(self.tree.drop(other))
        self._out += self.drafts.final()
        return False

    def guess(self, now: float) -> None:
        """The text's own guesses go on from what is guessed already."""
        if self.ngrams is None or self.phase not in (PREFILL, DECODE) or not self.speculation.speculates:
            return
        chain = []
        tip = self.tree.root
        while below := next((c for c in tip.children if not c.side), None):
            tip = below
            chain.append(tip.token)
        room = self.speculation.room(self.tree, self.turn.last_row, now, self.phase == PREFILL)
        if tip.pos >= room or tip.token in self.settings.eog or tip is self._asked:
            return
        found, grown = self.ngrams.propose(chain, room - tip.pos), tip.match
        if not found or not self.speculation.trust.pays(max(found[0][1], grown + 1), self.drafts.alive):
            self._asked = tip
            return
        for i, (token, length) in enumerate(found):
            length = max(length, grown + 1 + i)
            tip = self.tree.add(tip, token, self.speculation.trust.ngram(length), origin="ngram")
            tip.match = length
            self.stats.proposed += 1
            if token in self.settings.eog:
                return

    @property
    def _branches(self) -> int:
        """Side branches that may still come true."""
        return sum(node.side for node in self.tree.root.subtree())

    def back(self, run: Run, draws: dict[int, Drawn], now: float) -> None:
        """A run is back, with what was drawn behind nodes of this slot."""
        self._now = now
        if run.kind == "end":
            self.phase = IDLE
            self._out.append(ev.Finish(self._reason, self.number))
        if self.phase not in (PREFILL, DECODE):
            return
        if self.checkpoints:
            self.checkpoints.settle(self.tree.root.pos)
        for node in self.tree.root.subtree():
            if node.run == run.id and node.id in draws:
                node.draw, node.logprob, node.top = draws[node.id]
        self._verify()

    def stop(self, event: ev.Stop, now: float) -> None:
        if self.phase not in (PREFILL, DECODE):
            return
        self._now = now
        turn = self.turn
        if event.keep is not None:
            del turn.tokens[turn.n_prompt + event.keep :]
        # A turn that was stopped inside its prompt leaves no trace: chunk boundaries stay those of a turn.
        cached = len(turn.tokens) - 1 if turn.n_generated else turn.kept
        self._finish(event.reason, cached, cached if self._read else turn.kept)

    def lost(self, now: float) -> None:
        """The stages hold nothing any more, and nothing that was under way comes back."""
        self._now = now
        self.cache.held = 0
        self.replay = []
        if self.checkpoints:
            self.checkpoints.lost()
        if self.phase == DRAIN:
            self.phase = IDLE
            self._out.append(ev.Finish(self._reason, self.number))
        if self.phase not in (PREFILL, DECODE):
            return
        dead, turn, of = self.tree.kill(), self.turn, self.settings
        self.stats.wasted += len(dead)
        self._pool.bury(dead, self.tree.root, self.number)
        root = self.tree.root
        root.run, root.draw, root.seq = None, None, self.number
        turn.kept = 0
        turn.chunks.clear()
        turn.chunks.extend(self.cache.again(len(turn.tokens), of.chunk, min(of.chunk, of.max_rows)))
        self.phase, self._read = PREFILL, False
        self._out.append(ev.Again(tuple(turn.tokens[turn.n_prompt :]), root.id, self.number))
        self._out += self.drafts.miss(root)

    # ------------------------------------------------------------------------------- verification

    def _verify(self) -> None:
        """Walk from the root as far as draws are known."""
        policy = self.speculation
        while self.phase in (PREFILL, DECODE) and (token := self.tree.root.draw) is not None:
            root = self.tree.root
            if token == ev.LOST:
                self._finish("form", root.pos + 1)
                return
            if token < 0:
                raise EngineError(f"the sampler refused a final token:\n{self._pipe.story(root.run or 0)}")
            hit = root.child(token)
            self._judge(root, hit)
            if token in self.settings.eog:
                self.stats.wasted -= hit is not None  # accepted, though it goes down with the tree
                self._finish("stop", root.pos + 1)
                return
            self._read = True
            self.turn.tokens.append(token)
            if self.ngrams and (said := self.ngrams.final(token)):
                policy.trust.ngram.learn(*said)
            self.waits_since = self._now
            origin = hit.origin if hit else "target"
            self._out.append(ev.Emit(token, root.pos + 1, root.logprob, origin, self.number, root.top))
            policy.cutoff.final()
            if self._common.alone:
                self._common.governor.token(self._now, ahead=hit is not None and hit.run is not None)
            if hit:
                self._accept(hit)
            else:
                self._bury(self.tree.replace(token))
                if self.checkpoints:
                    self.replay = self._truncate(self.tree.root.pos)
                self._out += self.drafts.miss(self.tree.root)
            if self.turn.full:
                self._finish("length", len(self.turn.tokens) - 1)

    def _judge(self, root: Node, hit: Node | None) -> None:
        """Count the verdict on the root's children."""
        first = next((c for c in root.children if c.origin != "sibling"), None)
        if first is not None and first.drafted:
            self.speculation.trust.draft.learn(first.prob, first is hit)
            if first is not hit and first.second >= 0:
                self.stats.second(first.second == root.draw)
        judged = hit or first
        if judged is not None:
            self.stats.verdict(judged.depth, hit is not None)
            self.stats.wasted -= hit is None  # it is among the dead, who count as wasted

    def _accept(self, hit: Node) -> None:
        self._bury(self.tree.accept(hit))
        if hit.seq != self.number:  # a side branch, whose id is not the slot's
            self._pipe.ops += self._pool.adopt(hit, self.number)
        self._out += self.drafts.final()
        if self.ngrams:
            self._out += self.drafts.catch_up(self.tree.root, self.turn.tokens)

    def _bury(self, dead: list[Node]) -> None:
        """Free what dead nodes held, cancel the runs that carry nothing else."""
        self.stats.wasted += len(dead)
        removals = self._pool.bury(dead, self.tree.root, self.number)
        if not self.checkpoints:
            self._pipe.ops += removals
        self._pipe.lose(dead, self.number)
        if dead:
            self._cancel()

    def _cancel(self) -> None:
        runs = self._pipe.newly_dead(self._now)
        self.stats.cancelled += len(runs)
        if runs and self.settings.on("cancel"):
            for run in runs:
                self._pipe.pace.dead(run)
            self._out.append(ev.Cancel(tuple(runs)))

    def _finish(self, reason: str, cached: int, held: int | None = None) -> None:
        """Truncate the canonical sequence to what every stage knows, and wait for that header's return. Of the first
        `cached` tokens the stages hold all, or `held`."""
        held = cached if held is None else held
        self._bury(self.tree.kill())
        self._pipe.lose_all(self.number)
        self._cancel()
        self.turn.chunks.clear()
        self.cache.end(self.turn.tokens[:cached], held)
        again = self._truncate(held)
        self.replay = []
        self._reason = reason
        self.phase = DRAIN
        self._out += self.drafts.end()
        for at in range(0, len(again), self.settings.max_rows):
            self._send("replay", again[at : at + self.settings.max_rows])
        self._send("end", [])

    def _truncate(self, n: int) -> list[Row]:
        """Every stage goes back to the first `n` positions of the canonical sequence, with the next header.
        Returns the rows that must be computed again for that: none where a part of a sequence can be removed."""
        if self.checkpoints is None:
            self._pipe.ops.append(rm(self.number, n))
            return []
        ops, at = self.checkpoints.rewind(n)
        self._pipe.ops += ops
        return self.turn.rows(at, n)

    # ----------------------------------------------------------------------------------- dispatch

    @property
    def waits(self) -> bool:
        """Its root, a final token, has not left yet."""
        return self.phase == DECODE and self.tree.root.run is None

    def send_chunk(self) -> None:
        """The next chunk of the prompt leaves."""
        turn = self.turn
        begins = turn.chunks[0][0] == turn.kept or len(turn.chunks) == 1
        run = self._send("prefill", turn.next_chunk(self.tree.root), pin=begins)
        if not turn.chunks:
            self.tree.root.run = run
            self.phase = DECODE

    def rows(self, nodes: Sequence[Node]) -> list[Row]:
        """Of nodes that leave now, behind what must be computed again. What gives side branches their past is
        added to the operations of the next run."""
        for node in nodes:
            parent = node.parent
            if parent is None:
                node.seq = self.number
            elif node.side:
                node.seq = self._pool.take()
                self._pipe.ops.append(cp(parent.seq, node.seq, 0, node.pos))
            else:
                node.seq = parent.seq
        rows = [Row(n.token, n.pos, n.seq, n.id, n.parent_id, True, self.number) for n in nodes]
        rows, self.replay = self.replay + rows, []
        self._leave(rows, sum(row.node < 0 for row in rows))
        return rows

    def propose(self, now: float, most: int | None = None) -> None:
        """Say how far guesses may go: no more than `most` beyond the root."""
        if self.phase in (PREFILL, DECODE) and self.drafts.alive:
            room = self.speculation.room(self.tree, self.turn.last_row, now, self.phase == PREFILL)
            room = room if most is None else min(room, self.tree.root.pos + most)
            self._out += self.drafts.propose(room)

    def _send(self, kind: str, rows: list[Row], pin: bool = False) -> int:
        reading = kind == "prefill"
        # Within a prompt nothing goes back but to where a turn may begin.
        self._leave(rows, 0 if reading else len(rows), keep=pin or not reading, pin=pin)
        finals = [(self.number, self.tree.root.id)]
        run = self._pipe.send(kind, rows, finals, self._now, slot=-1 if rows else self.number)
        self._out.append(ev.Dispatch(run))
        return run.id

    def _leave(self, rows: Sequence[Row], replayed: int, *, keep: bool = True, pin: bool = False) -> None:
        """These are about to leave, `replayed` of them once more. See `Checkpoints.send`."""
        if self.checkpoints and rows:
            self._pipe.ops += self.checkpoints.send(rows[0].pos, len(rows), keep=keep, pin=pin)
        self.stats.sent += 1
        self.stats.rows += len(rows)
        self.stats.replayed += replayed
