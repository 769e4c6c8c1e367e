"""The token tree: every token that is guessed but not yet final. Its root is the last final token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Node:
    """One token. `draw` is what the target sampled after it, once the run that carried it is back."""

    id: int
    token: int
    pos: int
    seq: int = -1
    """Sequence id its KV cell is written under, once it has left; -1 until then."""
    parent: Node | None = None
    parent_id: int = -1
    """The node before it, also when that is final and gone; -1 for the prompt's last token."""
    origin: str = "draft"
    """`prompt`, `target`, `draft` (its first choice), `sibling` (its second) or `ngram`: whoever guessed it first."""
    prob: float = 1.0
    """The draft's own confidence in it, or what a match of that length is worth."""
    drafted: bool = False
    """The draft model says so too, or alone."""
    match: int = 0
    """Tokens alike before it, where the text itself says so; else 0."""
    second: int = -1
    """The draft's second choice at the same place, whether or not it stands in the tree; -1: not told."""
    side: bool = False
    """It begins a branch with a sequence of its own; else it stands in its parent's."""
    depth: int = 0
    """Drafted tokens between it and the last token that the target gave itself."""
    paths: list[int] = field(default_factory=list)
    """The draft paths that guessed it."""
    run: int | None = None
    """The run it went out in."""
    draw: int | None = None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    """What else was likely behind it."""
    dead: bool = False
    children: list[Node] = field(default_factory=list)

    def subtree(self) -> Iterator[Node]:
        """The node and everything below it, parents first."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def child(self, token: int) -> Node | None:
        return next((c for c in self.children if c.token == token), None)


class Tree:
    """Verification is a walk from the root: a child that carries the root's draw becomes the root and
    its siblings die; if none does, everything below the root dies and the draw is the new root."""

    def __init__(self, token: int, pos: int, seq: int = 0) -> None:
        """`seq`: the canonical sequence of its slot."""
        self._next, self._main = 1, seq
        self.root = Node(0, token, pos, seq, origin="prompt")

    def add(
        self,
        parent: Node,
        token: int,
        prob: float,
        *,
        side: bool = False,
        origin: str = "draft",
        path: int = 0,
        second: int = -1,
    ) -> Node:
        """Hang a guess under its parent. Equal guesses are one node: it knows who made them."""
        node = parent.child(token)
        if node is None:
            node = Node(
                self._take_id(),
                token,
                parent.pos + 1,
                parent=parent,
                parent_id=parent.id,
                origin=origin,
                prob=prob,
                second=second,
                side=side,
                depth=parent.depth + 1,
            )
            parent.children.append(node)
        elif node.match and origin == "draft" and not node.drafted:
            node.prob, node.second = prob, second
        node.drafted = node.drafted or origin == "draft"
        node.paths.append(path)
        return node

    def accept(self, child: Node) -> list[Node]:
        """The child is final. Returns the nodes that died: its siblings and all below them."""
        dead = [n for c in self.root.children if c is not child for n in c.subtree()]
        self._bury(dead)
        self.root.children = []
        child.parent = None
        child.side = False
        if child.run is None:
            child.seq = self._main
        self.root = child
        return dead

    def replace(self, token: int) -> list[Node]:
        """No child carries the draw: `token` is the new root. Returns the nodes that died."""
        dead = self.kill()
        old = self.root
        self.root = Node(self._take_id(), token, old.pos + 1, self._main, parent_id=old.id, origin="target")
        return dead

    def drop(self, node: Node) -> list[Node]:
        """This guess is given up. Returns the nodes that died: it and all below it."""
        dead = [*node.subtree()]
        self._bury(dead)
        if node.parent is not None:
            node.parent.children.remove(node)
        return dead

    def kill(self) -> list[Node]:
        """Everything below the root dies; it is returned."""
        dead = [n for c in self.root.children for n in c.subtree()]
        self._bury(dead)
        self.root.children = []
        return dead

    def frontier(self) -> Iterator[Node]:
        """Live nodes that are not sent and whose parent is: where the next run can start."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node.run is None:
                yield node
            else:
                stack.extend(reversed(node.children))

    def _take_id(self) -> int:
        self._next += 1
        return self._next - 1

    @staticmethod
    def _bury(nodes: list[Node]) -> None:
        for node in nodes:
            node.dead = True
