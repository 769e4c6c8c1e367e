"""How much to speculate: the cutoff on the draft's confidence, what that confidence is worth, and how
wide a run should be."""

from __future__ import annotations

from collections.abc import Sequence

from pipeinfer_cpp.engine.pacing import Pace


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


class Calibration:
    """What a draft's confidence is worth: its acceptance rate by confidence, learnt as verdicts come.

    Drafts may be over- or under-confident; each tenth of confidence starts as the draft says, with
    the weight of `prior` verdicts.
    """

    def __init__(self, prior: float = 4.0, memory: float = 0.995) -> None:
        self._memory = memory
        self._hits = [prior * (i + 0.5) / 10 for i in range(10)]
        self._seen = [prior] * 10

    def __call__(self, prob: float) -> float:
        i = self._bin(prob)
        return self._hits[i] / self._seen[i]

    def learn(self, prob: float, accepted: bool) -> None:
        i = self._bin(prob)
        self._hits[i] = self._hits[i] * self._memory + accepted
        self._seen[i] = self._seen[i] * self._memory + 1

    @staticmethod
    def _bin(prob: float) -> int:
        return min(max(int(prob * 10), 0), 9)


def worth(pace: Pace, chances: Sequence[float], leaves: float) -> float:
    """Expected accepted tokens per second of a run of these rows.

    `chances` are the rows' path probabilities, given that the run's first parent is right; `leaves` is
    the summed chance of the paths' last rows. A wider run occupies the slowest stage for longer, and
    delays the news of a miss inside it by the extra time on all stages.
    """
    width = len(chances)
    late = pace.latency(width) - pace.latency(1)
    return sum(chances) / (pace.bottleneck(width) + max(late, 0.0) * (1.0 - min(leaves, 1.0)) + 1e-9)
