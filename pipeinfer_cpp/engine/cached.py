"""What the stages hold of the conversation between turns, and how much of it a new prompt may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Span(NamedTuple):
    """Positions [begin, end) of a conversation that were computed alike: in chunks counted from `begin`, as a
    prompt is, or (`drawn`) in runs of rows that each have the bits of a row alone, as an answer is."""

    begin: int
    end: int
    drawn: bool


class Past(NamedTuple):
    """A conversation so far, for `recall` on another engine of the same model. `chunk`: rows of a prompt chunk."""

    tokens: tuple[int, ...]
    spans: tuple[Span, ...]
    chunk: int

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        return {"tokens": list(self.tokens), "spans": [list(span) for span in self.spans], "chunk": self.chunk}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Past:
        """What `to_json` gave. Raises ValueError for anything else."""
        try:
            tokens = tuple(int(token) for token in data["tokens"])
            spans = tuple(Span(int(begin), int(end), bool(drawn)) for begin, end, drawn in data["spans"])
            past = cls(tokens, spans, int(data["chunk"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no past of a conversation: {error}") from None
        ends = [0, *(span.end for span in spans)]
        if any(s.begin != at or s.end <= at for s, at in zip(spans, ends, strict=False)) or ends[-1] != len(tokens):
            raise ValueError("this is no past of a conversation: its spans do not cover its tokens")
        return past


class Cached:
    """The conversation at rest: its tokens, how their KV cells were computed, and how many of them are held.

    The bits of a cell depend on the batch that it was computed in. In exact mode a text must not depend on what
    was asked before, so a prompt uses cells only up to a border of its own grid: chunks counted from its
    beginning. A prompt that goes on a conversation may begin where that one stands, or where a chunk of an
    earlier turn ended: the same turns give the same text. Cells that the stages have lost by then are computed
    again in the batches they were first computed in.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.spans: list[Span] = []
        """They cover `tokens` without a gap."""
        self.held = 0
        """So many of the first tokens have cells on every stage."""
        self._begun: list[Span] = []
        """The spans of the turn under way, up to its prompt's end."""
        self._prompt: Sequence[int] = ()
        """Of the turn under way."""

    def recall(self, tokens: Sequence[int] = (), spans: Sequence[Span] = ()) -> None:
        """This was the conversation so far, of which the stages hold nothing."""
        self.tokens, self.spans, self.held = list(tokens), list(spans), 0

    def begin(
        self, prompt: Sequence[int], chunk: int, width: int, exact: bool, goes_on: bool, reach: Callable[[int], int]
    ) -> tuple[int, list[tuple[int, int]]]:
        """A turn begins. Returns how many of the prompt's tokens need not be computed, and the ranges that
        the others are computed in: never without the last one, which must give a draw.

        `width`: rows of a run whose rows have the bits of rows alone. `reach(n)` is the last position up to n that
        the stages can go back to.
        """
        n, self._prompt = len(prompt), prompt
        common = common_length(self.tokens, prompt[: n - 1])
        if not exact:
            base = kept = reach(min(common, self.held))
        else:
            if goes_on and common == len(self.tokens):
                base = common
            else:
                borders = self._borders(chunk) if goes_on else range(0, _grid(self.spans, chunk) + 1, chunk)
                base = max((p for p in borders if p <= common), default=0)
            again = [a for a, _ in _ranges(self.spans, base, chunk, 1)]
            kept = next((p for p in (base, *reversed(again)) if p <= self.held and reach(p) == p), 0)
        self._begun = _joined([*_cut(self.spans, base), Span(base, n, False)], chunk)
        ranges = [(a, b) for a, b in _ranges(self.spans, base, chunk, width, kept) if b > kept] if exact else []
        self.held = kept
        return kept, ranges + [(a, min(a + chunk, n)) for a in range(base, n, chunk)]

    def usable(self, prompt: Sequence[int], chunk: int, exact: bool, read: bool = False) -> int:
        """How many of a prompt's first tokens another conversation, or a new one here, could take over. `read`: the
        prompt of the turn under way is held, too."""
        tokens: Sequence[int] = self.tokens
        spans, held = self.spans, self.held
        if read:
            tokens, spans, held = self._prompt, self._begun, len(self._prompt)
        common = min(common_length(tokens, prompt[:-1]), held)
        return min(common, _grid(spans, chunk)) // chunk * chunk if exact else common

    def adopt(self, tokens: Sequence[int]) -> None:
        """The stages hold these, computed in whole chunks from the beginning on."""
        self.recall(tokens, [Span(0, len(tokens), False)] if tokens else [])
        self.held = len(tokens)

    def again(self, n: int, chunk: int, width: int) -> list[tuple[int, int]]:
        """The batches in which the first `n` tokens of the turn under way were computed, and its last ones will be:
        the stages have lost them."""
        read = self._begun[-1].end
        spans = [*self._begun, Span(read, n, True)] if n > read else self._begun
        self.held = 0
        return list(_ranges(spans, n, chunk, width))

    def end(self, tokens: Sequence[int], held: int | None = None) -> None:
        """The turn is over: the stages hold these, or the first `held` of them. One that ended within its prompt
        leaves no trace but that the stages hold less."""
        read = self._begun[-1].end if self._begun else 0
        self.held = len(tokens) if held is None else held
        if len(tokens) >= read:
            answer = [Span(read, len(tokens), True)] if len(tokens) > read else []
            self.tokens, self.spans = list(tokens), self._begun + answer

    def _borders(self, chunk: int) -> Iterator[int]:
        """Where chunks of the turns so far began or ended."""
        for begin, end, drawn in self.spans:
            if not drawn:
                yield from range(begin, end + 1, chunk)


def _ranges(
    spans: Sequence[Span], end: int, chunk: int, width: int, begin: int = 0
) -> Iterator[tuple[int, int]]:
    """The batches that the first `end` tokens were computed in; of answers, what is left from `begin` on."""
    for span in _cut(spans, end):
        if span.drawn:
            first = max(span.begin, begin)
            yield from ((a, min(a + width, span.end)) for a in range(first, span.end, width))
        else:
            yield from ((a, min(a + chunk, span.end)) for a in range(span.begin, span.end, chunk))


def _grid(spans: Sequence[Span], chunk: int) -> int:
    """So many of the first tokens were computed in whole chunks counted from the beginning."""
    first = spans[0].end if spans and not spans[0].drawn else 0
    return first - first % chunk


def _cut(spans: Sequence[Span], end: int) -> list[Span]:
    return [Span(s.begin, min(s.end, end), s.drawn) for s in spans if s.begin < end]


def _joined(spans: Sequence[Span], chunk: int) -> list[Span]:
    """Chunks behind whole chunks are one span, as if they had come in one prompt."""
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last and not (last.drawn or span.drawn or (last.end - last.begin) % chunk):
            joined[-1] = Span(last.begin, span.end, False)
        else:
            joined.append(span)
    return joined


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
