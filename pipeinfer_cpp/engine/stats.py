"""What happened in a turn, counted."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Stats:
    """Drafts: `proposed` = accepted + rejected (the first wrong one) + wasted (behind a wrong one, or
    never asked for). Runs: `cancelled` died before they were back, `aborted` of those died while a
    stage computed them."""

    proposed: int = 0
    accepted: int = 0
    rejected: int = 0
    wasted: int = 0
    by_depth: dict[int, list[int]] = field(default_factory=dict)
    """Depth below the last token the target gave itself -> [accepted, verified]."""
    second_asked: int = 0
    second_hit: int = 0
    sent: int = 0
    cancelled: int = 0
    rows: int = 0
    replayed: int = 0
    """Of the rows, those that were computed again behind a restored checkpoint."""
    flight_seconds: float = 0.0
    decode_seconds: float = 0.0

    def verdict(self, depth: int, accepted: bool) -> None:
        entry = self.by_depth.setdefault(depth, [0, 0])
        entry[0] += accepted
        entry[1] += 1
        if accepted:
            self.accepted += 1
        else:
            self.rejected += 1

    def second(self, hit: bool) -> None:
        """The draft's first choice was wrong; was its second right?"""
        self.second_asked += 1
        self.second_hit += hit

    def flight(self, runs: int, seconds: float) -> None:
        self.flight_seconds += runs * seconds
        self.decode_seconds += seconds

    @property
    def acceptance(self) -> float | None:
        asked = self.accepted + self.rejected
        return self.accepted / asked if asked else None

    @property
    def sibling_hit(self) -> float | None:
        """How often the draft's second choice was right when its first was wrong."""
        return self.second_hit / self.second_asked if self.second_asked else None

    @property
    def in_flight_mean(self) -> float:
        return self.flight_seconds / self.decode_seconds if self.decode_seconds else 0.0

    def accept_by_depth(self) -> list[float]:
        """Share accepted at depth 1, 2, ... as far as verdicts go."""
        out = []
        for depth in range(1, max(self.by_depth, default=0) + 1):
            hit, asked = self.by_depth.get(depth, [0, 0])
            out.append(hit / asked if asked else 0.0)
        return out
