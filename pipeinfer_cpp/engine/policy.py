"""How much to speculate: the cutoff on the draft's confidence, what that confidence is worth, how wide
a run should be, and whether speculation pays at all."""

from __future__ import annotations

from collections.abc import Sequence

from pipeinfer_cpp.engine.pacing import Pace


class Cutoff:
    """The paper's adaptive confidence cutoff (PipeInfer, section on continuous speculation).

    A drafted token leaves when the draft's confidence in it reaches `level`. Every speculative run
    raises the level by `recovery`, every chance that was left unused lowers it by `decay`; an
    accepted token sets it back to `base`.
    """

    def __init__(self, base: float, recovery: float, decay: float) -> None:
        self.base, self.recovery, self.decay = base, recovery, decay
        self.level = base

    def sent(self) -> None:
        self.level = min(self.level + self.recovery, 0.99)

    def idle(self) -> None:
        self.level = max(self.level - self.decay, 0.0)

    def accepted(self) -> None:
        self.level = self.base


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


class Governor:
    """Never slower than plain pipelining: if speculation does not pay on this machine, pause it.

    Compares the time a token takes while speculating with `plain` (the latency of one row, measured at
    start). Only when that comparison is close does it pay for a probe: a few tokens without
    speculation. A pause that was right doubles the next one.
    """

    SAMPLE, PROBE, PATIENCE = 24, 10, 64
    """Tokens looked at while speculating; in a probe; and until a decision is tested again."""

    def __init__(self, plain: float) -> None:
        self.plain = plain
        self.speculate = True
        self._times: list[float] = []
        self._settled = 0
        """Tokens for which the last decision stands."""
        self._pause = self.PATIENCE
        self._speculative = 0.0

    def begin(self) -> None:
        """A turn begins: the gap since the last one is not a token's time."""
        self._times.clear()

    def token(self, now: float) -> None:
        """A token was emitted."""
        self._times.append(now)
        self._settled -= 1
        if self._settled > 0:
            self._times.clear()
        elif self.speculate and len(self._times) > self.SAMPLE:
            self._speculative = self._mean()
            if self._speculative > 0.92 * self.plain:
                self.speculate = False  # a probe
        elif not self.speculate and self._settled == 0:
            self.speculate = True  # the pause is over
        elif not self.speculate and len(self._times) > self.PROBE:
            if self._mean() < 0.98 * self._speculative:
                self._settled, self._pause = self._pause, min(2 * self._pause, 4096)
            else:
                self.speculate, self._settled, self._pause = True, 4 * self.PATIENCE, self.PATIENCE

    def _mean(self) -> float:
        mean = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        self._times.clear()
        return mean
