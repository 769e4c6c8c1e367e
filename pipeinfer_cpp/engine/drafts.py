"""The draft worker as the engine sees it: which of its paths are live, and how far it may run ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.engine.tree import Node


class Drafts:
    """Draft paths by number, each with the node at its tip. A number is used once, so what the draft
    worker still says of a dead path is recognised and ignored."""

    def __init__(self, settings: Settings) -> None:
        self.alive = settings.mode != "off"
        self._settings = settings
        self._tips: dict[int, Node] = {}
        self._next = 1
        self._room = -1
        self.interval = 0.0
        """Seconds that a drafted token takes, as measured."""

    def begin(self, tokens: Sequence[int], root: Node) -> list[ev.Action]:
        return self._reset(root, 0, tuple(tokens))

    def miss(self, root: Node) -> list[ev.Action]:
        """The target said something else: all paths are dead, the new root starts a new one."""
        return self._reset(root, root.pos, (root.token,))

    def place(self, event: ev.Drafted) -> Node | None:
        """The node that the drafted token extends, None when its path is dead."""
        tip = self._tips.get(event.path)
        if tip is None or event.pos != tip.pos + 1:
            return None
        if event.seconds > 0:
            self.interval = event.seconds if not self.interval else 0.9 * self.interval + 0.1 * event.seconds
        return tip

    def extend(self, path: int, node: Node) -> None:
        self._tips[path] = node

    def fork(self, sibling: Node, of: int) -> ev.Action:
        """The draft worker shall extend this second choice too."""
        path = self._take()
        sibling.path = path
        self._tips[path] = sibling
        return ev.DraftFork(path, of, sibling.pos, sibling.token)

    def follow(self) -> list[ev.Action]:
        """The root moved on to one of its children: paths that ended in dead nodes are dropped."""
        dead = tuple(path for path, tip in self._tips.items() if tip.dead)
        for path in dead:
            del self._tips[path]
        return [ev.DraftDrop(dead)] if dead else []

    def room(self, pos: int) -> list[ev.Action]:
        if pos == self._room or not self._tips:
            return []
        self._room = pos
        return [ev.DraftRoom(pos)]

    def ahead(self, latency: float) -> int:
        """Tokens worth drafting beyond the root: half as many again as a run's way through the pipeline takes."""
        if not self.interval:
            return self._settings.max_ahead
        return max(8, min(self._settings.max_ahead, math.ceil(1.5 * latency / self.interval)))

    def stop(self) -> list[ev.Action]:
        if not self._tips or not self.alive:
            return []
        self._tips.clear()
        self._room = -1
        return [ev.DraftRoom(-1)]

    def succeed(self, other: Drafts) -> None:
        self._next = other._next

    def lost(self) -> None:
        self.alive = False
        self._tips.clear()

    def _reset(self, root: Node, keep: int, tokens: tuple[int, ...]) -> list[ev.Action]:
        if not self.alive:
            return []
        path = self._take()
        root.path = path
        self._tips = {path: root}
        return [ev.DraftReset(path, keep, tokens)]

    def _take(self) -> int:
        self._next += 1
        return self._next - 1
