"""What the stages hold of the conversation between turns, and how much of it a new prompt may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Cached:
    """The canonical sequence at rest: `tokens` whose KV cells every stage holds.

    The bits of a cell depend on the batch that it was computed in. In exact mode a text must not depend on what
    was asked before, so a prompt uses cells only up to a border of its own grid: chunks counted from its
    beginning. A prompt that goes on a conversation may begin where that one stands, or where a chunk of an
    earlier turn ended: the same turns give the same text.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._borders: list[int] = []
        """Where chunks of the turns so far began or ended."""
        self._grid = 0
        """So many of the first tokens were computed in whole chunks counted from the beginning."""

    def begin(
        self, prompt: Sequence[int], chunk: int, exact: bool, goes_on: bool, reach: Callable[[int], int]
    ) -> int:
        """A turn begins. Returns how many of the prompt's tokens need not be computed: never its last one,
        which must give a draw. `reach(n)` is the last position up to n that the stages can go back to."""
        n = len(prompt)
        common = _common(self.tokens, prompt[: n - 1])
        if not exact or (goes_on and common == len(self.tokens)):
            kept = reach(common)
        else:
            borders = self._borders if goes_on else range(0, self._grid + 1, chunk)
            kept = max((p for p in borders if p <= common and reach(p) == p), default=0)
        self._borders = [p for p in self._borders if p < kept] + list(range(kept, n + 1, chunk))
        on_grid = kept <= self._grid and kept % chunk == 0
        self._grid = n - n % chunk if on_grid else min(self._grid, kept)
        return kept

    def end(self, tokens: Sequence[int]) -> None:
        """A turn is over: the stages hold these."""
        self.tokens = list(tokens)
        self._borders = [p for p in self._borders if p <= len(tokens)]
        self._grid = min(self._grid, len(tokens))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
