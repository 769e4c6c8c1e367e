"""How much to speculate: how sure the draft must be and what that is worth, which rows the next run carries, when it
leaves, and how far the draft worker may run ahead."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from pipeinfer_cpp.engine.drafts import Drafts
from pipeinfer_cpp.engine.governor import Governor
from pipeinfer_cpp.engine.pacing import Pace
from pipeinfer_cpp.engine.pipe import Pipe
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.engine.tree import Node, Tree

HORIZON = 16
"""Rows beyond a widest run that a plan looks at."""
DOUBTFUL = 0.25
"""What is rarer right than this is not guessed: a cancellation costs a stage a moment, too."""


class Cutoff:
    """The adaptive confidence cutoff of the PipeInfer authors' code (`calc_p_adjust` in their speculative.cpp).

    A drafted token leaves when the draft's confidence in it reaches `level`. That is `base`, plus `recovery`
    for each speculative run since a result was last back, minus `decay` for each look at drafts that were
    not sure enough since a token last became final. At 1 and above nothing is speculated. A branch's
    threshold moves by the same `shift`.
    """

    def __init__(self, base: float, recovery: float, decay: float) -> None:
        self.base, self.recovery, self.decay = base, recovery, decay
        self._sent = self._refused = 0

    @property
    def shift(self) -> float:
        return self._sent * self.recovery - self._refused * self.decay

    @property
    def level(self) -> float:
        level = self.base + self.shift
        return level if level < 1.0 else float("inf")

    def sent(self) -> None:
        """A speculative run left."""
        self._sent += 1

    def refused(self) -> None:
        """A run could leave, and no draft was sure enough."""
        self._refused += 1
        self._sent = 0

    def returned(self) -> None:
        """A run is back, whatever it says."""
        self._sent = 0

    def final(self) -> None:
        """A token became final, or a turn begins."""
        self._sent = self._refused = 0


class _Rates:
    """How often guesses are right, by a number that says how good they look, learnt as verdicts come. What it begins
    with has the weight of `prior` verdicts."""

    def __init__(self, first: Sequence[float], prior: float, memory: float) -> None:
        self._memory = memory
        self._hits = [prior * share for share in first]
        self._seen = [prior] * len(first)

    def of(self, i: int) -> float:
        return self._hits[i] / self._seen[i]

    @property
    def mean(self) -> float:
        """The share of all guesses that is right."""
        return sum(self._hits) / sum(self._seen)

    def count(self, i: int, accepted: bool) -> None:
        self._hits[i] = self._hits[i] * self._memory + accepted
        self._seen[i] = self._seen[i] * self._memory + 1


class Calibration(_Rates):
    """What a draft's confidence is worth: its acceptance rate by tenths of confidence. Drafts may be over- or
    under-confident; each tenth starts as the draft says."""

    def __init__(self, prior: float = 4.0, memory: float = 0.995) -> None:
        super().__init__([(i + 0.5) / 10 for i in range(10)], prior, memory)

    def __call__(self, prob: float) -> float:
        return self.of(self._tenth(prob))

    def learn(self, prob: float, accepted: bool) -> None:
        self.count(self._tenth(prob), accepted)

    @staticmethod
    def _tenth(prob: float) -> int:
        return min(max(int(prob * 10), 0), 9)


class MatchCalibration(_Rates):
    """How often a match is right, by its length; where guesses are trusted that are right behind each other, the match
    grows with them."""

    FIRST = (0.25, 0.25, 0.25, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.75, 0.8, 0.8, 0.8, 0.85, 0.85, 0.9)
    """By length."""

    def __init__(self, prior: float = 4.0, memory: float = 0.99) -> None:
        super().__init__(self.FIRST, prior, memory)

    def __call__(self, length: int) -> float:
        return self.of(min(length, len(self.FIRST) - 1))

    def learn(self, length: int, accepted: bool) -> None:
        self.count(min(length, len(self.FIRST) - 1), accepted)


class Trust:
    """The chance that a guess is right if the one before it is, by who made it, as verdicts have taught."""

    def __init__(self) -> None:
        self.draft, self.ngram = Calibration(), MatchCalibration()

    def __call__(self, node: Node) -> float:
        if node.origin == "sibling":
            return min(node.prob, 0.9)
        draft = self.draft(node.prob) if node.drafted else 0.0
        ngram = self.ngram(node.match) if node.match else 0.0
        return min(1.0 - (1.0 - draft) * (1.0 - ngram), 0.99) if draft and ngram else max(draft, ngram)

    def pays(self, length: int, drafts: bool) -> bool:
        """A match of that length is worth guessing by. Where there is a draft model, it is as good as what that says in
        the mean: what has left is not taken back, and would be in the way of better guesses."""
        return self.ngram(length) >= (max(self.draft.mean, DOUBTFUL) if drafts else DOUBTFUL)


def plan_width(alive: Sequence[float], pace: Pace, max_rows: int, ahead: int = 0) -> int:
    """Rows of each run, so that a plan is expected to take the least time.

    alive[k]: the chance that the text still goes on inside the plan when its first k rows are verified; never rising.
    The last one is that of what follows the plan. ahead: rows of the widest run under way.

    A run occupies the slowest stage if the plan is still alive when it begins. Where the text leaves the plan, what is
    left of a run's way through the pipeline passes until that is known; a wide run holds up all that is behind it, so
    that narrow ones between wide ones win nothing.
    """
    n, missed = len(alive) - 1, alive[0] - alive[-1]
    best, least = 1, math.inf
    held_up = pace.latency(ahead) - pace.bottleneck(ahead) if ahead else 0.0
    for w in range(1, min(max_rows, n) + 1):
        slowest = pace.bottleneck(w)
        runs = sum(alive[k] * min((n - k) / w, 1.0) for k in range(0, n, w))
        seconds = runs * slowest + missed * max(pace.latency(w) - slowest, held_up, 0.0)
        if seconds < least:
            best, least = w, seconds
    return best


def select(
    root: Node,
    *,
    pace: Pace,
    trust: Trust,
    level: float,
    max_rows: int,
    last_row: int,
    eog: frozenset[int],
    ahead: int = 0,
    drafts: bool = True,
) -> list[Node]:
    """The root if it has not left yet, then the likeliest unsent nodes: as many as a run has in the best plan for all
    that are drafted, and for those that will be.

    `level` is the cutoff on the draft's confidence; `ahead`: rows of the widest run under way; `drafts`: a
    draft model will go on. Rows of one path are consecutive. A side branch never starts in its parent's run: its
    prefix is copied from cells that must be there already.
    """
    waits = root.run is None
    plan, alive = ([root], [1.0]) if waits else ([], [])
    candidates: dict[Node, float] = {}

    def add(nodes: Iterable[tuple[Node, float]]) -> None:
        candidates.update(
            (n, chance) for n, chance in nodes if n.pos <= last_row and n.token not in eog and n.prob >= level
        )

    add(_children(root, 1.0, trust) if waits else _frontier(root, trust))
    horizon = max_rows + HORIZON
    while candidates and len(plan) < horizon:
        alive.append(min(sum(candidates.values()), *alive[-1:], 1.0))
        node = max(candidates, key=candidates.__getitem__)
        chance = candidates.pop(node)
        plan.append(node)
        add(_children(node, chance, trust))
    if not plan:
        return []
    follows = sum(candidates.values())
    while drafts and not candidates and not plan[-1].children and plan[-1].pos + len(alive) - len(plan) < last_row:
        follows = alive[-1] * trust.draft.mean  # what is not drafted yet
        if len(alive) > horizon or follows < 0.01:
            break
        alive.append(follows)
    alive.append(min(follows, alive[-1]))
    return plan[: plan_width(alive, pace, max_rows, ahead)]


def _children(node: Node, chance: float, trust: Trust) -> Iterator[tuple[Node, float]]:
    return ((c, chance * trust(c)) for c in node.children if not c.side)


def _frontier(root: Node, trust: Trust) -> Iterator[tuple[Node, float]]:
    """Unsent nodes whose parent is sent, each with the probability of its path."""
    stack = [(root, 1.0)]
    while stack:
        node, chance = stack.pop()
        for child in node.children:
            probability = chance * trust(child)
            if child.run is None:
                yield child, probability
            else:
                stack.append((child, probability))


class Speculation:
    """The policy of the three modes for one slot. It decides, and sends nothing itself."""

    def __init__(
        self, settings: Settings, pipe: Pipe, drafts: Drafts, trust: Trust, governor: Governor
    ) -> None:
        """What guesses are worth and whether speculation pays is learnt by all slots together."""
        self._settings, self._pipe, self._pace, self._drafts = settings, pipe, pipe.pace, drafts
        self.trust, self.governor = trust, governor
        self.cutoff = Cutoff(settings.cutoff, settings.recovery, settings.decay)
        self._look_again = 0.0
        """When drafts that were not sure enough are looked at again."""

    @property
    def speculates(self) -> bool:
        governed = self.governor.speculate or not self._settings.governor
        return self._settings.mode != "off" and self.guesses and governed

    @property
    def guesses(self) -> bool:
        """There is somebody who guesses."""
        return self._drafts.alive or "ngram" in self._settings.proposers

    def root_run(self, tree: Tree, last_row: int, taken: int = 0) -> list[Node]:
        """The root with the drafts known below it, for a run in which `taken` rows are others'; empty while it
        must wait."""
        settings, root = self._settings, tree.root
        if not settings.on("multibuffer") and self._pipe.in_flight:
            return []  # one sequence: what is dead in it must be out of the pipe first
        if settings.mode == "async":
            return self._select(tree, last_row, taken) if self.speculates else [root]
        if settings.mode == "off" or not self.guesses:
            return [root]
        known = [node for node in root.subtree() if node.pos <= last_row]
        whole = 1 + max(min(self._sync_length, last_row - root.pos, settings.max_rows - 1 - taken), 0)
        if self._drafts.alive and len(known) < whole and known[-1].token not in settings.eog:
            return []  # the draft is not complete
        return [node for node in known if node.token not in settings.eog][:whole]

    def next_run(self, tree: Tree, last_row: int, now: float) -> tuple[list[Node], float | None]:
        """A speculative run, if one should leave now; else when to ask again, if time alone may change that."""
        if self._settings.mode != "async" or not self.speculates or tree.root.run is None or self._pipe.full:
            return [], None
        if not self._settings.on("continuous") and any(f.speculative for f in self._pipe.in_flight.values()):
            return [], None
        early = self._pace.early(now)
        if early > 1e-6:
            return [], now + max(early, 1e-4)
        nodes = self._select(tree, last_row)
        if nodes:
            self.cutoff.sent()
            return nodes, None
        return [], self._refused(tree, last_row, now)

    def _refused(self, tree: Tree, last_row: int, now: float) -> float | None:
        """A run could leave now and only the cutoff holds it back. It is lowered once in the time that a draft
        takes, as the authors' is with each attempt at one. Returns when to look again."""
        eog = self._settings.eog
        waits = any(n is not tree.root and n.pos <= last_row and n.token not in eog for n in tree.frontier())
        if not waits or not self.cutoff.decay:
            return None
        if now >= self._look_again:
            self.cutoff.refused()
            self._look_again = now + max(self._drafts.worker.interval or self._pace.bottleneck(1), 1e-3)
        return self._look_again

    def forks(self, second: int, prob: float) -> bool:
        """The draft is unsure: its second choice goes along."""
        threshold = self._settings.split + self.cutoff.shift
        return self._settings.mode == "async" and prob >= threshold and 0 <= second not in self._settings.eog

    def room(self, tree: Tree, last_row: int, now: float, prefilling: bool) -> int:
        """The position that the draft worker may draft up to: what the pipeline can hold by the time it is there."""
        root = tree.root.pos
        if self._settings.mode == "sync":
            return min(root + self._sync_length, last_row)
        if not self.speculates:
            return root
        if not self._settings.on("draft-ahead"):
            waits = any(node is not tree.root for node in tree.frontier())
            if waits or prefilling or self._pace.early(now) > 0:
                return root
            return min(max(node.pos for node in tree.root.subtree()) + 1, last_row)
        return min(root + self._drafts.ahead(self._pace.latency(1)), last_row)

    def _select(self, tree: Tree, last_row: int, taken: int = 0) -> list[Node]:
        return select(
            tree.root,
            pace=self._pace,
            trust=self.trust,
            level=self.cutoff.level,
            max_rows=self._settings.max_rows - taken,
            last_row=last_row,
            eog=self._settings.eog,
            ahead=self._pipe.widest,
            drafts=self._drafts.alive,
        )

    @property
    def _sync_length(self) -> int:
        return min(self._settings.draft_max, self._settings.max_rows - 1)
