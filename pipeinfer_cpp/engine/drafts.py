"""Who guesses what comes next, as a slot sees it: which guesses may still come, and how far they may run ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.engine.tree import Node


class Proposer(Protocol):
    """Whoever guesses for one slot. Guesses come as events; what a method returns is to be done for them."""

    def forget(self, tokens: Sequence[int]) -> list[ev.Action]:
        """Use nothing of what was read before for a prompt of these tokens: it was another owner's."""

    def begin(self, tokens: Sequence[int], root: Node) -> list[ev.Action]:
        """A turn begins behind these tokens."""

    def final(self) -> list[ev.Action]:
        """A guess came true: the root moved on to one of its children."""

    def miss(self, root: Node) -> list[ev.Action]:
        """The target said something else, which is the root now."""

    def propose(self, pos: int) -> list[ev.Action]:
        """Guess up to and including position `pos`."""

    def end(self) -> list[ev.Action]:
        """The turn is over."""


@dataclass(slots=True)
class DraftWorker:
    """The draft worker, which all slots share."""

    alive: bool
    interval: float = 0.0
    """Seconds that a drafted token takes, as measured."""
    next_path: int = 1
    """A path's number is used once, so what the worker still says of a dead path is recognised and ignored."""

    def number(self) -> int:
        self.next_path += 1
        return self.next_path - 1


class Drafts:
    """A slot's paths on the draft worker, by number, each with the node at its tip. A `Proposer`."""

    def __init__(self, settings: Settings, worker: DraftWorker, slot: int = 0) -> None:
        self.worker = worker
        self._settings, self._slot = settings, slot
        self._tips: dict[int, Node] = {}
        self._room = -1

    @property
    def alive(self) -> bool:
        return self.worker.alive

    def forget(self, tokens: Sequence[int]) -> list[ev.Action]:
        """What the draft worker still has read for this slot is another owner's: of it nothing is used for a prompt
        that begins so, whose guesses would come sooner. (A path of one token keeps no cells.)"""
        return [ev.DraftReset(self.worker.number(), 0, (tokens[0],), self._slot)] if self.alive else []

    def begin(self, tokens: Sequence[int], root: Node) -> list[ev.Action]:
        return self._reset(root, 0, tuple(tokens))

    def miss(self, root: Node) -> list[ev.Action]:
        """All paths are dead, the new root starts a new one."""
        return self._reset(root, root.pos, (root.token,))

    def place(self, event: ev.Drafted) -> Node | None:
        """The node that the drafted token extends, None when its path is dead or another slot's."""
        tip = self._tips.get(event.path)
        if tip is None or event.pos != tip.pos + 1:
            return None
        if event.seconds > 0:
            known = self.worker.interval
            self.worker.interval = event.seconds if not known else 0.9 * known + 0.1 * event.seconds
        return tip

    def extend(self, path: int, node: Node) -> None:
        self._tips[path] = node

    def fork(self, sibling: Node, of: int) -> ev.Action:
        """The draft worker shall extend this second choice too."""
        path = self.worker.number()
        sibling.paths.append(path)
        self._tips[path] = sibling
        return ev.DraftFork(path, of, sibling.pos, sibling.token)

    def follow(self, node: Node, path: int) -> list[ev.Action]:
        """Another proposer's guess is kept instead of what `path` says: the draft goes on behind that, unless it has
        other paths."""
        if len(self._tips) == 1:
            return self._reset(node, node.pos, (node.token,))
        del self._tips[path]
        return [ev.DraftDrop((path,))]

    def catch_up(self, root: Node, tokens: Sequence[int]) -> list[ev.Action]:
        """The text is final beyond what was drafted: the draft goes on behind `tokens`, whose last is the root."""
        behind = {path: tip.pos for path, tip in self._tips.items() if tip.pos < root.pos}
        if behind and len(behind) == len(self._tips):
            keep = min(behind.values()) + 1
            return self._reset(root, keep, tuple(tokens[keep:]))
        for path in behind:
            del self._tips[path]
        return [ev.DraftDrop(tuple(behind))] if behind else []

    def final(self) -> list[ev.Action]:
        """Paths that ended in dead nodes are dropped."""
        dead = tuple(path for path, tip in self._tips.items() if tip.dead)
        for path in dead:
            del self._tips[path]
        return [ev.DraftDrop(dead)] if dead else []

    def propose(self, pos: int) -> list[ev.Action]:
        if pos == self._room or not self._tips:
            return []
        self._room = pos
        return [ev.DraftRoom(pos, self._slot)]

    def ahead(self, latency: float) -> int:
        """Tokens worth drafting beyond the root: half as many again as a run's way through the pipeline takes."""
        if not self.worker.interval:
            return self._settings.max_ahead
        return max(8, min(self._settings.max_ahead, math.ceil(1.5 * latency / self.worker.interval)))

    def end(self) -> list[ev.Action]:
        if not self._tips or not self.alive:
            return []
        self._tips.clear()
        self._room = -1
        return [ev.DraftRoom(-1, self._slot)]

    def lost(self) -> None:
        """The draft worker is gone."""
        self._tips.clear()

    def _reset(self, root: Node, keep: int, tokens: tuple[int, ...]) -> list[ev.Action]:
        if not self.alive:
            return []
        path = self.worker.number()
        root.paths.append(path)
        self._tips = {path: root}
        return [ev.DraftReset(path, keep, tokens, self._slot)]
