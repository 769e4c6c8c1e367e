"""What the models of a simulated pipeline say."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Guess(NamedTuple):
    """A draft's first and second choice with its confidence in each."""

    token: int
    prob: float
    second: int
    second_prob: float


class World(Protocol):
    def target(self, history: Sequence[int]) -> int:
        """The target's token after this history."""

    def draft(self, history: Sequence[int]) -> Guess:
        """The draft's guess after this history."""


class Replay:
    """A recorded text: the target says it again, the draft guesses as it did (teacher-forced).

    text: prompt and generated tokens. guesses: by position of the guessed token. Off the text both
    say something, but nothing of it can become final.
    """

    OFF = 1 << 30

    def __init__(self, text: Sequence[int], guesses: dict[int, Guess]) -> None:
        self.text, self.guesses = list(text), guesses

    def _on_text(self, history: Sequence[int]) -> bool:
        n = len(history)
        return n < len(self.text) and history[-1] == self.text[n - 1] and self.OFF not in history

    def target(self, history: Sequence[int]) -> int:
        return self.text[len(history)] if self._on_text(history) else self.OFF - 1

    def draft(self, history: Sequence[int]) -> Guess:
        guess = self.guesses.get(len(history), Guess(self.OFF, 0.5, self.OFF - 2, 0.2))
        if not self._on_text(history):
            return guess._replace(token=self.OFF, second=self.OFF - 2)
        wrong = guess.token != self.text[len(history)]
        second = guess.second if guess.second == self.text[len(history)] else self.OFF - 2
        return guess._replace(token=self.OFF if wrong else guess.token, second=second)


def independent(n: int, acceptance: float, seed: int = 0, second_hit: float = 0.3) -> Replay:
    """A made-up text of n tokens whose drafts are right with the same probability, independently."""
    rng = random.Random(seed)
    text = [1 + i % 1000 for i in range(n)]
    guesses = {}
    for i in range(1, n):
        right = rng.random() < acceptance
        second = text[i] if rng.random() < second_hit and not right else Replay.OFF - 2
        guesses[i] = Guess(text[i] if right else Replay.OFF, acceptance, second, (1 - acceptance) / 2)
    return Replay(text, guesses)
