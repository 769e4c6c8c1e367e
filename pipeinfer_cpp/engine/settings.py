"""How the engine is asked to work."""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("async", "sync", "off")
DRAFT_STATES = 24
"""States that a draft worker keeps where its model's cannot be taken back in part."""
PROPOSERS = ("draft", "ngram")
TECHNIQUES = ("continuous", "multibuffer", "cancel", "draft-ahead")


@dataclass(frozen=True, slots=True)
class Settings:
    """`mode`: `async` (PipeInfer), `sync` (draft `draft_max`, verify, repeat) or `off` (plain pipeline).

    n_ctx: positions a sequence can have. chunk: rows of a prompt chunk. max_rows: rows of the widest
    run (the exact mode's limit goes in here). branches: paths of the token tree. cutoff, recovery,
    decay: see `policy.Cutoff`. split: the draft's second choice becomes a branch from this probability.
    max_ahead: drafted tokens beyond the root. eog: token ids that end a generation. ablate: techniques
    switched off, see TECHNIQUES. governor: pause speculation where it does not pay.
    exact: a text does not depend on what was asked before, see `cached`.
    slots: conversations at a time, each with a canonical sequence of its own, of n_ctx positions.
    checkpoints: the stages cannot remove a part of a sequence (recurrent and hybrid models, see `checkpoints`);
    needs branches = 1.
    proposers: who guesses, see PROPOSERS: the draft model, and what followed in the text itself (see `ngram`).
    stash: so many positions of conversations without a slot are kept on every stage beside its cache, see `stash`;
    stash_longest: of one that has no more than these.
    """

    mode: str = "async"
    n_ctx: int = 1024
    chunk: int = 64
    max_rows: int = 8
    branches: int = 1
    cutoff: float = 0.1
    recovery: float = 0.02
    decay: float = 0.01
    split: float = 0.2
    draft_max: int = 4
    max_ahead: int = 64
    eog: frozenset[int] = frozenset()
    ablate: frozenset[str] = frozenset()
    governor: bool = True
    exact: bool = False
    checkpoints: bool = False
    slots: int = 1
    proposers: frozenset[str] = frozenset({"draft"})
    stash: int = 0
    stash_longest: int = 1 << 30

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is not one of {', '.join(MODES)}")
        unknown = self.ablate - set(TECHNIQUES)
        if unknown:
            raise ValueError(f"technique {min(unknown)!r} is not one of {', '.join(TECHNIQUES)}")
        unknown = self.proposers - set(PROPOSERS)
        if unknown:
            raise ValueError(f"proposers: {min(unknown)!r} is not one of {', '.join(PROPOSERS)}")
        if self.slots < 1:
            raise ValueError("there is at least one slot")
        if self.checkpoints and self.branches > 1:
            raise ValueError("a state that is restored from checkpoints has one branch")
        if self.checkpoints and self.stash:
            raise ValueError("a state that is restored from checkpoints is not kept without a slot")

    def on(self, technique: str) -> bool:
        return technique not in self.ablate

    def kv_cells(self, n_stages: int) -> int:
        """KV cells a stage needs: of each slot the context, runs in flight, and side branches."""
        return self.slots * (self.n_ctx + (3 * n_stages + 2) * self.max_rows + self.branches * self.max_ahead)

    def states(self, n_stages: int) -> int:
        """States that a stage keeps of a slot at most, with `checkpoints`: one for each run in flight and before the
        oldest, and where the last turns began."""
        return 3 * n_stages + 2 + 6

    @property
    def sides(self) -> int:
        """Side branches that a slot may have."""
        return self.branches - 1 if self.on("multibuffer") else 0

    @property
    def apart(self) -> bool:
        """No sequence shares a KV cell with another: each slot has cells of its own, so that the bits of its rows do
        not depend on where those of others lie."""
        return self.sides == 0
