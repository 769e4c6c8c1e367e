"""Whether speculation pays at all on this pipeline."""

from __future__ import annotations

from collections.abc import Callable


class Governor:
    """Never slower than plain pipelining: if speculation does not pay on this machine, pause it.

    Compares the time a token takes while speculating with `plain()`, what the pipeline is known to take for
    a token without. Only when that comparison is close does it pay for a probe: a few tokens without
    speculation. A pause that was right doubles the next one. What is measured goes on from turn to turn, so
    that short answers are governed too.
    """

    SAMPLE, PROBE, PATIENCE = 24, 10, 64
    """Tokens looked at while speculating; in a probe; and until a decision is tested again."""

    def __init__(self, plain: Callable[[], float]) -> None:
        self._plain = plain
        self.speculate = True
        self._seconds = 0.0
        self._tokens = 0
        self._last: float | None = None
        self._settled = 0
        """Tokens for which the last decision stands."""
        self._pause = self.PATIENCE
        self._speculative = 0.0

    def begin(self) -> None:
        """A turn begins: the gap since the last one is not a token's time."""
        self._last = None

    def token(self, now: float, ahead: bool = False) -> None:
        """A token was emitted. `ahead`: the run behind it had left already, so the next one says nothing of
        a pipeline without speculation."""
        last, self._last = self._last, now
        if self._settled > 0:
            self._settled -= 1
            if self._settled == 0:
                self.speculate = True  # also when it was a pause that is over
            return
        if last is not None:
            self._seconds += now - last
            self._tokens += 1
        if not self.speculate and ahead:
            self._mean()  # what was under way when the probe began
        elif self.speculate and self._tokens >= self.SAMPLE:
            self._speculative = self._mean()
            self.speculate = self._speculative <= 0.92 * self._plain()
        elif not self.speculate and self._tokens >= self.PROBE:
            if self._mean() < 0.98 * self._speculative:
                self._settled, self._pause = self._pause, min(2 * self._pause, 4096)
            else:
                self.speculate, self._settled, self._pause = True, 4 * self.PATIENCE, self.PATIENCE

    def _mean(self) -> float:
        mean = self._seconds / max(self._tokens, 1)
        self._seconds, self._tokens = 0.0, 0
        return mean
