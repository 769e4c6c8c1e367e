"""Is this pipeline slower than it was, and where?"""

from __future__ import annotations

from pipeinfer_cpp.engine.pacing import Pace

SETTLED = 3
"""Generations after which the measured costs are taken for those of the start."""
LIMIT = 1.5


class Slowdown:
    """Looks at what a row takes through the pipeline, which no acceptance or prompt changes."""

    def __init__(self) -> None:
        self._turns = 0
        self._stages: list[float] = []
        self._hop = 0.0
        self._said = False

    def look(self, pace: Pace) -> str | None:
        """Behind each generation: a sentence when the speed has fallen by more than a third since the start."""
        self._turns += 1
        stages = [curve(1) for curve in pace.curves]
        if self._turns <= SETTLED:
            self._stages, self._hop = stages, pace.hop
            return None
        n_links = len(stages) + 1
        before, now = sum(self._stages) + n_links * self._hop, sum(stages) + n_links * pace.hop
        if now <= LIMIT * before:
            self._said = self._said and now > 0.9 * LIMIT * before
            return None
        if self._said:
            return None
        self._said = True
        rises = [b - a for a, b in zip(self._stages, stages, strict=True)]
        worst = max(range(len(rises)), key=rises.__getitem__)
        if n_links * (pace.hop - self._hop) > rises[worst]:
            where = f"a link takes {1000 * pace.hop:.1f} ms instead of {1000 * self._hop:.1f} ms"
        else:
            old, new = 1000 * self._stages[worst], 1000 * stages[worst]
            where = f"stage {worst} takes {new:.1f} ms for a row instead of {old:.1f} ms"
        return f"The pipeline runs at {100 * before / now:.0f}% of its speed at the start: {where}."
