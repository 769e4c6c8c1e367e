"""The samplers of the token tree on the last stage: one a live path."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import FormLost, PipeInferError
from pipeinfer_cpp.llama.guide import Guide
from pipeinfer_cpp.llama.pieces import Pieces
from pipeinfer_cpp.llama.sampler import Draw, Sampler
from pipeinfer_cpp.sampling import Sampling


class PathSamplers:
    """Draws for rows of a tree of tokens, each with the state of the path that leads to it.

    A node is an int, unique within a turn; the prompt's last token is node 0, unless `begin` says otherwise.
    A sampler is moved along its path in place, cloned from the last final node where the path forks, and rebuilt from
    there after a miss. Rows may be missing (a dead run brings none): what hangs below a row that
    never came is dead, as is what a grammar forbids. A stateless sampler keeps no books at all.
    """

    def __init__(self, vocab: Any, n_vocab: int, pieces: Pieces | None = None) -> None:
        """`pieces`: the vocabulary's, where others have made them already."""
        self._vocab, self._n_vocab = vocab, n_vocab
        self.pieces = pieces or Pieces(vocab, n_vocab)
        self._base: Sampler | None = None  # stands behind the last final node, the root
        self._root = 0
        self._awaited: int | None = None
        self._lost: FormLost | None = None
        self._drawn: dict[int, int] = {}  # behind the root and the nodes below it
        self._nodes: dict[int, tuple[int, int]] = {}  # below the root: (parent, token), parents first
        self._tips: dict[int, Sampler] = {}
        self._helper: ThreadPoolExecutor | None = None  # finds out what is allowed, while the stage decodes
        self._helps: Future[None] | None = None
        self._ahead: object = None  # the run that it works for

    def begin(
        self, sampling: Sampling, prompt_tokens: Iterable[int], said: Iterable[int] = (), root: int = 0
    ) -> None:
        """Start a turn. `prompt_tokens` are all that the penalties shall see, node 0's token last; or go on with one
        that has `said` some more already, up to node `root`.

        Raises UserError, and stays closed, for settings out of range or an invalid grammar.
        """
        self.close()
        self._base = Sampler(self._vocab, self._n_vocab, sampling, pieces=self.pieces)
        self._base.feed_prompt(prompt_tokens)
        self._root = root
        for token in said:
            self._base.accept(token)
        if (guide := self._base.guide()) is not None:
            self._help(guide.prepare)

    def look_ahead(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Find out, in another thread, what is allowed behind `rows`: (node, parent, token) of draws to come.

        Draws are the same without it, and come later. Greedy ones ask for a few tokens, which takes no time.
        """
        guide = self._base.guide() if self._base is not None and not self._base.few_looked_at else None
        if guide is None:
            return
        parents = {parent for _, parent, _ in rows}
        ways = {p: self._path(p) for p in parents if p == self._root or p in self._nodes}
        root, self._ahead = self._root, (now := object())  # what an earlier run still wanted is left
        self._help(lambda: _look_ahead(guide, root, ways, tuple(rows), lambda: self._ahead is now))

    def looked_ahead(self) -> None:
        """Wait until all that was looked ahead at is found out."""
        if self._helps is not None:
            self._helps.result()

    def draw(self, node: int, parent: int, token: int, pos: int, logits: NDArray[np.float32]) -> Draw | None:
        """What follows `node`, which carries `token` at position `pos` below `parent` (ignored for node 0).

        `logits` is `float32[n_vocab]`. None: the row is dead, as the grammar forbids `token` there or
        `parent` is not on a live path. Raises FormLost where that cannot be told; other rows may go on.
        """
        assert self._base is not None, "draw() before begin()"
        if self._base.stateless:
            return self._base.sample(logits, pos + 1)
        if self._lost is not None:
            raise self._lost
        sampler = self._reach(node, parent, token)
        if sampler is None:
            if self._drawn.get(parent) == token:  # llguidance is at its limits, and does not say so
                raise FormLost("The text cannot be kept to its form any further. Ask for a simpler form.")
            return None
        drawn = sampler.sample(logits, pos + 1)
        self._drawn[node] = drawn.token
        if node == self._awaited:
            self.final(node)
        return drawn

    def final(self, node: int) -> None:
        """`node` is final: forget all that does not descend from it. One that has not come yet is awaited."""
        assert self._base is not None, "final() before begin()"
        if self._base.stateless or node == self._root:
            return
        if node not in self._nodes:
            self._awaited = node
            return
        try:
            for token in self._path(node):
                self._base.accept(token)
        except FormLost as error:
            self._lost = error
            return
        kept = {node}
        nodes = self._nodes
        self._nodes = {}
        for child, (parent, token) in nodes.items():
            if parent in kept:
                kept.add(child)
                self._nodes[child] = (parent, token)
        for tip in [t for t in self._tips if t not in kept]:
            self._tips.pop(tip).close()
        self._drawn = {n: token for n, token in self._drawn.items() if n in kept}
        self._root, self._awaited = node, None

    def close(self) -> None:
        """End the turn and free its samplers. The mask that is being made is waited for."""
        self._ahead = None
        self.looked_ahead()
        self._helps = None
        for sampler in (self._base, *self._tips.values()):
            if sampler is not None:
                sampler.close()
        self._base, self._root, self._awaited, self._lost = None, 0, None, None
        self._nodes, self._tips, self._drawn = {}, {}, {}

    @property
    def size(self) -> tuple[int, int]:
        """Nodes below the last final one, and samplers held for them."""
        return len(self._nodes), len(self._tips)

    def _help(self, work: Callable[[], None]) -> None:
        self._helper = self._helper or ThreadPoolExecutor(1, "allowed")
        self._helps = self._helper.submit(_quietly, work)

    def _reach(self, node: int, parent: int, token: int) -> Sampler | None:
        """The sampler that stands behind `node`, or None for a dead one."""
        if node == self._root:
            return self._base
        if node in self._nodes:
            return self._tips.get(node) or self._rebuilt(node)
        if parent != self._root and parent not in self._nodes:
            return None
        sampler = self._tips.pop(parent, None) or self._rebuilt(parent)
        alive = sampler.accept(token)
        if alive:
            self._nodes[node] = (parent, token)
        self._tips[node if alive else parent] = sampler
        return sampler if alive else None

    def _rebuilt(self, node: int) -> Sampler:
        """A clone of the last final state, moved along the path to `node`."""
        assert self._base is not None
        sampler = self._base.clone()
        for token in self._path(node):
            sampler.accept(token)
        return sampler

    def _path(self, node: int) -> list[int]:
        """The tokens from below the root to `node`."""
        tokens = []
        while node != self._root:
            node, token = self._nodes[node]
            tokens.append(token)
        return tokens[::-1]


def _look_ahead(
    guide: Guide,
    root: int,
    ways: dict[int, list[int]],
    rows: tuple[tuple[int, int, int], ...],
    wanted: Callable[[], bool],
) -> None:
    """`ways`: tokens from the root to each parent that is known already."""
    known: dict[int, Guide] = {}
    for node, parent, token in rows:
        if not wanted():
            return
        if node == root:
            guide.prepare()
            continue
        if parent not in known and parent in ways:
            there = guide.clone()
            if all(there.accept(t) for t in ways[parent]):
                known[parent] = there
        if parent in known:
            here = known[parent].clone()
            if here.accept(token):
                here.prepare()
                known[node] = here


def _quietly(work: Callable[[], None]) -> None:
    with contextlib.suppress(PipeInferError):  # the draw itself will meet it, and say so
        work()
