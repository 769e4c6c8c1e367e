"""One turn of a conversation: its prompt, what is final so far, and where it must end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeinfer_cpp.engine.run import Row
from pipeinfer_cpp.engine.tree import Node


@dataclass(slots=True)
class Turn:
    """`tokens`: the prompt's, then the final ones; the last is the root's. `kept`: how many the cache held
    when the turn began. `chunks`: ranges of the prompt that are still to be sent. `slot` is also the id of its
    canonical sequence."""

    tokens: list[int]
    n_prompt: int
    max_tokens: int
    n_ctx: int
    kept: int = 0
    chunks: deque[tuple[int, int]] = field(default_factory=deque)
    slot: int = 0

    @classmethod
    def begin(
        cls,
        tokens: Sequence[int],
        max_tokens: int,
        n_ctx: int,
        kept: int,
        chunks: Iterable[tuple[int, int]],
        slot: int = 0,
    ) -> Turn:
        """All but the first `kept` tokens of the prompt are computed, in these chunks."""
        return cls(list(tokens), len(tokens), max_tokens, n_ctx, kept, deque(chunks), slot)

    def next_chunk(self, root: Node) -> list[Row]:
        """Rows of the next chunk; the last token of all is the root, and asks for a draw."""
        a, b = self.chunks.popleft()
        rows = self.rows(a, b)
        if not self.chunks:
            rows[-1] = rows[-1]._replace(node=root.id, draw=True)
        return rows

    def rows(self, begin: int, end: int) -> list[Row]:
        """Of these positions; no draw is wanted."""
        return [Row(self.tokens[p], p, self.slot, -1, -1, False, self.slot) for p in range(begin, end)]

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def full(self) -> bool:
        """No further token may be generated."""
        return self.n_generated >= self.max_tokens or len(self.tokens) >= self.n_ctx

    @property
    def last_row(self) -> int:
        """The last position worth a row: its draw is the last token that can be emitted."""
        return min(self.n_ctx, self.n_prompt + self.max_tokens) - 2
