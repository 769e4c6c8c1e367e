"""llama.cpp sequence ids as KV multibuffers: one id a live path, edited by operations in run headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pipeinfer_cpp.engine.tree import Node

MAIN = 0
"""The canonical sequence of the conversation, which the main path extends."""


class Op(NamedTuple):
    """One KV operation, applied by every stage in the order of the headers, also on dead runs.

    `rm` removes positions [p0, p1) of `seq`; `cp` gives `seq` the cells of `src` there. p1 = -1 is
    "to the end". Where no part of a sequence can be removed (see `checkpoints`): `snapshot` keeps its state, which
    stands before position p0, in the slot `src`; `restore` takes it from there and removes all cells from p0 on.
    """

    kind: str
    seq: int
    p0: int
    p1: int
    src: int = -1


def rm(seq: int, p0: int) -> Op:
    return Op("rm", seq, p0, -1)


def cp(src: int, seq: int, p0: int, p1: int) -> Op:
    return Op("cp", seq, p0, p1, src)


def snapshot(slot: int, pos: int) -> Op:
    return Op("snapshot", MAIN, pos, -1, slot)


def restore(slot: int, pos: int) -> Op:
    return Op("restore", MAIN, pos, -1, slot)


class SequencePool:
    """Ids for side branches: 1 to n. Each is taken and given back once."""

    def __init__(self, n: int) -> None:
        self._free = list(range(n, 0, -1))
        self._taken: set[int] = set()

    def take(self) -> int | None:
        """A free id, or None."""
        if not self._free:
            return None
        seq = self._free.pop()
        self._taken.add(seq)
        return seq

    def bury(self, dead: Iterable[Node], root: Node) -> list[Op]:
        """Give back the ids that no node below `root` uses any more. Returns what removes the dead cells."""
        ids = {node.seq for node in dead}
        live = {node.seq for node in root.subtree()} | {MAIN}
        ends: dict[int, int] = {}
        for node in dead:
            if node.run is not None:
                ends[node.seq] = min(node.pos, ends.get(node.seq, node.pos))
        for seq in ids - live:
            self._give(seq)
        gone = [rm(seq, 0) for seq in ids - live if seq in ends]
        return gone + [rm(seq, ends[seq]) for seq in live & ends.keys()]

    def adopt(self, node: Node) -> list[Op]:
        """A side branch won: its cells become the main path's, its id is free again."""
        side = node.seq
        for below in node.subtree():
            if below.seq == side:
                below.seq = MAIN
        self._give(side)
        return [cp(side, MAIN, node.pos, -1), rm(side, 0)] if node.run is not None else []

    def _give(self, seq: int) -> None:
        self._taken.remove(seq)
        self._free.append(seq)

    @property
    def taken(self) -> frozenset[int]:
        return frozenset(self._taken)
