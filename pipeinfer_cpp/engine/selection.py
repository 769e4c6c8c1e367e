"""Which rows the next run carries."""

from __future__ import annotations

from collections.abc import Iterator

from pipeinfer_cpp.engine.pacing import Pace
from pipeinfer_cpp.engine.policy import Calibration, worth
from pipeinfer_cpp.engine.tree import Node


def select(
    root: Node,
    *,
    pace: Pace,
    calibration: Calibration,
    level: float,
    max_rows: int,
    last_row: int,
    eog: frozenset[int],
) -> list[Node]:
    """The root if it has not left yet, then the likeliest unsent nodes as long as they are worth their time.

    `level` is the cutoff on the draft's confidence. Rows of one path are consecutive. A side branch
    never starts in its parent's run: its prefix is copied from cells that must be there already.
    """
    chosen = [root] if root.run is None else []
    chances: dict[Node, float] = {root: 1.0} if chosen else {}
    base = 1.0
    best = worth(pace, [1.0], 1.0) if chosen else 0.0
    candidates = dict(_frontier(root, calibration)) if not chosen else _children(root, 1.0, calibration, root.seq)
    while len(chosen) < max_rows:
        usable = {n: c for n, c in candidates.items() if n.pos <= last_row and n.token not in eog and n.prob >= level}
        if not usable:
            break
        node = max(usable, key=usable.__getitem__)
        chance = usable[node]
        if not chosen:
            base = chance / _chance(node, calibration)
        rows = {**chances, node: chance / max(base, 1e-9)}
        parents = {n.parent for n in rows}
        value = worth(pace, list(rows.values()), sum(c for n, c in rows.items() if n not in parents))
        if chosen and value <= best:
            break
        best, chances = value, rows
        chosen.append(node)
        del candidates[node]
        candidates.update(_children(node, chance, calibration, node.seq))
    return chosen


def _chance(node: Node, calibration: Calibration) -> float:
    return calibration(node.prob) if node.origin == "draft" else min(node.prob, 0.9)


def _children(node: Node, chance: float, calibration: Calibration, seq: int) -> dict[Node, float]:
    return {c: chance * _chance(c, calibration) for c in node.children if c.seq == seq}


def _frontier(root: Node, calibration: Calibration) -> Iterator[tuple[Node, float]]:
    """Unsent nodes whose parent is sent, each with the probability of its path."""
    stack = [(root, 1.0)]
    while stack:
        node, chance = stack.pop()
        for child in node.children:
            probability = chance * _chance(child, calibration)
            if child.run is None:
                yield child, probability
            else:
                stack.append((child, probability))
