"""llama.cpp sequence ids as KV multibuffers: one id a live path, edited by operations in run headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pipeinfer_cpp.engine.tree import Node


class Op(NamedTuple):
    """One KV operation, applied by every stage in the order of the headers, also on dead runs.

    `rm` removes positions [p0, p1) of `seq`; `cp` gives `seq` the cells of `src` there. p1 = -1 is
    "to the end". Where no part of a sequence can be removed (see `checkpoints`): `snapshot` keeps its state, which
    stands before position p0, as state number `src`; `restore` takes it from there and removes all cells from p0 on.
    Where it can (see `stash`): `stash` moves all of `seq`, its first p0 positions, out of the cache, to be kept as
    number `src`; `unstash` moves it from there into the empty `seq`; `drop` gives number `src` up.
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


def snapshot(seq: int, state: int, pos: int) -> Op:
    return Op("snapshot", seq, pos, -1, state)


def restore(seq: int, state: int, pos: int) -> Op:
    return Op("restore", seq, pos, -1, state)


def stash(seq: int, number: int, n: int) -> Op:
    return Op("stash", seq, n, -1, number)


def unstash(seq: int, number: int, n: int) -> Op:
    return Op("unstash", seq, n, -1, number)


def drop(number: int) -> Op:
    return Op("drop", 0, 0, -1, number)


class SequencePool:
    """Ids for side branches: `n` of them from `first` on, below which each slot has its own canonical one.
    Each is taken when its branch first leaves, and given back once."""

    def __init__(self, n: int, first: int = 1) -> None:
        self._free = list(range(first + n - 1, first - 1, -1))
        self._taken: set[int] = set()

    def take(self) -> int:
        """A free id. There is one: no slot has more branches than its share of them."""
        seq = self._free.pop()
        self._taken.add(seq)
        return seq

    def bury(self, dead: Iterable[Node], root: Node, main: int) -> list[Op]:
        """Give back the ids that no node below `root` uses any more; `main` is the slot's own. Returns what
        removes the dead cells."""
        live = {node.seq for node in root.subtree()} | {main}
        ends: dict[int, int] = {}
        for node in dead:
            if node.run is not None:
                ends[node.seq] = min(node.pos, ends.get(node.seq, node.pos))
        for seq in ends.keys() - live:
            self._give(seq)
        gone = [rm(seq, 0) for seq in ends.keys() - live]
        return gone + [rm(seq, ends[seq]) for seq in live & ends.keys()]

    def adopt(self, node: Node, main: int) -> list[Op]:
        """A side branch that had left won: its cells become the main path's, its id is free again."""
        side = node.seq
        for below in node.subtree():
            if below.seq == side:
                below.seq = main
        self._give(side)
        return [cp(side, main, node.pos, -1), rm(side, 0)]

    def _give(self, seq: int) -> None:
        self._taken.remove(seq)
        self._free.append(seq)

    @property
    def taken(self) -> frozenset[int]:
        return frozenset(self._taken)
