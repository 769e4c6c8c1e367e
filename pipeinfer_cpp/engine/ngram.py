"""Guesses without a model: what followed the last time that the text went like this."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST, LONGEST = 2, 8
"""Tokens that must be alike, and those that are compared."""
TRIES = 64
"""Earlier places that are looked at, the latest first."""


class Matches:
    """An index of a text's pairs of tokens, each with the place before where the same pair stands: it grows with the
    text, by one number a token and one entry for each pair that is new."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._last: dict[tuple[int, int], int] = {}
        """By pair: where it ends, the last time that something follows it."""
        self._before: list[int] = []
        """By place: where the pair that ends there ended before; -1: nowhere."""

    def begin(self, tokens: Sequence[int]) -> None:
        """This is the text now. What goes on the text before costs only what is new."""
        if list(tokens[: len(self.tokens)]) != self.tokens:
            self.tokens.clear()
            self._last.clear()
            self._before.clear()
        self.extend(tokens[len(self.tokens) :])

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            at = len(self.tokens) - 1
            pair = (self.tokens[at - 1], token) if at else (-1, token)
            self._before.append(self._last.get(pair, -1))
            self._last[pair] = at

    def find(self, guessed: Sequence[int] = ()) -> tuple[int, int]:
        """Where the text with these guesses behind it goes on as it did before: the place of the token that followed,
        and how many tokens before that are alike, SHORTEST to LONGEST; (-1, 0) where there is none. The latest of
        the longest."""
        tail = [*self.tokens[-LONGEST:], *guessed][-LONGEST:]
        if len(tail) < SHORTEST:
            return -1, 0
        end = self._last.get((tail[-2], tail[-1]), -1)
        if not guessed:
            end = self._before[-1]  # the text's own end is followed by nothing
        best, found = SHORTEST - 1, -1
        for _ in range(TRIES):
            if end < 1:
                break
            length = SHORTEST
            while length < len(tail) and end >= length and self.tokens[end - length] == tail[-1 - length]:
                length += 1
            if length > best:
                best, found = length, end + 1
                if length == LONGEST:
                    break
            end = self._before[end]
        return (found, best) if found > 0 else (-1, 0)


class Ngrams:
    """A slot's guesses from its own text. They are there at once."""

    def __init__(self) -> None:
        self._matches = Matches()
        self._at, self._length = -1, 0
        """Where what comes next stood before, and how many tokens before it are alike, as far as they were followed."""

    def begin(self, tokens: Sequence[int]) -> None:
        """A turn begins behind these tokens."""
        self._matches.begin(tokens)
        self._at, self._length = self._matches.find()

    def final(self, token: int) -> tuple[int, bool] | None:
        """The text is longer by this token. Returns what the text itself would have said there: the length of the
        match, and whether that was right."""
        said = None
        if self._at >= 0:
            said = self._length, self._matches.tokens[self._at] == token
        self._matches.extend((token,))
        if said and said[1]:
            self._at, self._length = self._at + 1, self._length + 1
        else:
            self._at, self._length = self._matches.find()
        return said

    def propose(self, guessed: Sequence[int], n: int) -> list[tuple[int, int]]:
        """Up to n further tokens behind the text and these guesses, each with the length of the match before it.
        A text that repeats itself goes on through its own guesses."""
        at, length = self._matches.find(guessed) if guessed else (self._at, self._length)
        if at < 0:
            return []
        text, new = self._matches.tokens, list(guessed)
        out = []
        for i in range(n):
            token = text[at + i] if at + i < len(text) else new[at + i - len(text)]
            out.append((token, length + i))
            new.append(token)
        return out
