"""What a generation gives: tokens while it runs, a result at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.engine.stats import Stats


@dataclass(frozen=True, slots=True)
class Token:
    """One final token. `text` is what became certain with it (maybe nothing: half a character, or the
    beginning of a stop string). `origin`: `target`, `draft` (accepted), `sibling` or `ngram`."""

    id: int
    text: str
    logprob: float
    origin: str
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens there with their log-probabilities, see `Sampling.top_logprobs`."""


class Itl(msgspec.Struct, frozen=True):
    """Inter-token latency, seconds; tokens of one run come together, with nothing between."""

    mean: float | None
    p50: float | None
    p99: float | None


class DraftResult(msgspec.Struct, frozen=True):
    proposed: int
    accepted: int
    rejected: int
    wasted: int
    acceptance: float | None
    accept_by_depth: list[float]
    sibling_hit: float | None


class RunsResult(msgspec.Struct, frozen=True):
    sent: int
    cancelled: int
    aborted: int
    rows: int
    in_flight_mean: float


class Result(msgspec.Struct, frozen=True):
    """One generation, as `generate --json` prints it. Units are in the names; None: nothing to measure."""

    text: str
    token_ids: list[int]
    finish_reason: str
    mode: str
    stages: int
    exact: bool
    n_prompt: int
    n_generated: int
    ttft_s: float | None
    tokens_per_s: float | None
    itl_s: Itl
    draft: DraftResult
    runs: RunsResult
    wire_bytes_per_token: float | None
    memory_mb: dict[str, float]
    seed: int
    warnings: list[str] = []

    def short_line(self) -> str:
        """What most people want to know behind an answer."""
        parts = [f"{self.n_generated} token{'s' if self.n_generated != 1 else ''}"]
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.1f} tokens/s")
        if self.mode == "async" and self.draft.acceptance is not None:
            parts.append(f"acceptance {self.draft.acceptance:.2f}")
        return " · ".join(parts)

    def line(self) -> str:
        """The one line that ends a run."""

        def ms(seconds: float | None) -> str:
            return "-" if seconds is None else f"{1000 * seconds:.1f} ms"

        speed = "-" if self.tokens_per_s is None else f"{self.tokens_per_s:.1f}"
        parts = [
            f"{self.n_generated} tokens",
            f"{speed} tokens/s",
            f"first after {ms(self.ttft_s)}",
            f"between {ms(self.itl_s.mean)} (p99 {ms(self.itl_s.p99)})",
        ]
        if self.draft.acceptance is not None:
            parts.append(f"acceptance {self.draft.acceptance:.2f}")
        parts.append(
            f"runs {self.runs.sent} sent / {self.runs.cancelled} cancelled / {self.runs.aborted} aborted mid-decode"
        )
        parts.append(f"{self.mode}, {self.stages} stage{'s' if self.stages != 1 else ''}")
        parts.append("exact" if self.exact else "not exact")
        return " · ".join(parts)


@dataclass(slots=True)
class Tally:
    """What the driver counts while a turn runs."""

    accepted_at: float
    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    aborted: set[int] = field(default_factory=set)
    link_bytes: dict[int, float] = field(default_factory=dict)
    """Bytes of decoding by link: 0 to stage 0, k from stage k - 1."""
    other_bytes: int = 0
    busy: dict[int, float] = field(default_factory=dict)
    """Seconds of decoding that each stage computed."""
    memory_mb: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def link(self, index: int, n_bytes: float) -> None:
        self.link_bytes[index] = self.link_bytes.get(index, 0.0) + n_bytes

    def result(
        self,
        reason: str,
        stats: Stats,
        *,
        mode: str,
        stages: int,
        exact: bool,
        n_prompt: int,
        seed: int,
        keep: int | None,
    ) -> Result:
        """`keep`: generated tokens that count (a stop string may have come while more were emitted)."""
        ids, times = self.ids[:keep], self.times[:keep]
        gaps = np.diff(np.array(times, np.float64))
        speed = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None
        return Result(
            text="".join(self.texts),
            token_ids=ids,
            finish_reason=reason,
            mode=mode,
            stages=stages,
            exact=exact,
            n_prompt=n_prompt,
            n_generated=len(ids),
            seed=seed,
            ttft_s=times[0] - self.accepted_at if times else None,
            tokens_per_s=speed,
            itl_s=Itl(*_moments(gaps)),
            draft=DraftResult(
                stats.proposed,
                stats.accepted,
                stats.rejected,
                stats.wasted,
                stats.acceptance,
                stats.accept_by_depth(),
                stats.sibling_hit,
            ),
            runs=RunsResult(stats.sent, stats.cancelled, len(self.aborted), stats.rows, stats.in_flight_mean),
            wire_bytes_per_token=(sum(self.link_bytes.values()) + self.other_bytes) / len(ids) if ids else None,
            memory_mb={name: round(mb, 1) for name, mb in sorted(self.memory_mb.items())},
            warnings=self.warnings,
        )


def _moments(gaps: NDArray[np.float64]) -> tuple[float | None, float | None, float | None]:
    if len(gaps) == 0:
        return None, None, None
    return float(np.mean(gaps)), float(np.percentile(gaps, 50)), float(np.percentile(gaps, 99))
