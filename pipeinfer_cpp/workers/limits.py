"""What a run may ask of a stage: a coordinator's numbers reach llama.cpp only when they fit this session."""

from __future__ import annotations

from dataclasses import dataclass

from pipeinfer_cpp.engine.slot import STATES
from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.net.messages import RunHeader

POSITIONS = 1 << 30
"""Positions are smaller, in any context."""


@dataclass(frozen=True, slots=True)
class Limits:
    """n_seq: sequence ids. n_ctx: cells. n_rows: rows of a run. n_vocab: tokens. checkpointed: states are kept.
    stash: positions of the longest sequence that can leave the cache and come back."""

    n_seq: int
    n_ctx: int
    n_rows: int
    n_vocab: int
    checkpointed: bool
    stash: int = 0

    def check(self, run: RunHeader) -> None:
        """Raise PipeInferError, before anything of the run is applied, when a number of it cannot be."""
        for op in run.ops:
            match op.kind:
                case "rm":
                    fits = op.seq in range(self.n_seq)
                case "cp":
                    fits = op.seq in range(self.n_seq) and op.src in range(self.n_seq)
                case "snapshot" | "restore":
                    fits = self.checkpointed and op.seq in range(self.n_seq) and op.src in range(STATES * self.n_seq)
                case "stash" | "unstash":
                    fits = op.seq in range(self.n_seq) and op.src > 0 and 0 < op.p0 <= min(self.stash, self.n_ctx)
                case "drop":
                    fits = op.src > 0
                case _:
                    fits = False
            if not (fits and 0 <= op.p0 < POSITIONS and -1 <= op.p1 < POSITIONS):
                raise PipeInferError(f"run {run.id} asks for an impossible operation: {tuple(op)}")
        if len(run.rows) > self.n_rows:
            raise PipeInferError(f"run {run.id} has {len(run.rows)} rows, and this stage takes {self.n_rows}")
        for row in run.rows:
            ids = row.seq in range(self.n_seq) and row.slot in range(self.n_seq)
            if not (ids and row.pos in range(self.n_ctx) and row.token in range(self.n_vocab)):
                raise PipeInferError(f"run {run.id} has an impossible row: {tuple(row)}")
        for turn in run.turns:
            turn.sampling.check()
            if not all(token in range(self.n_vocab) for token in (*turn.prompt, *turn.said)):
                raise PipeInferError(f"run {run.id} names tokens that this model does not have")
