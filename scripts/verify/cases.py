"""What is generated: prompts, long prompts and second chat turns, with the texts that they must give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agreement import load_prompts
from verify.bare import Bare

from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.sampling import Sampling

Generate = Callable[[list[int], int, Sampling], list[int]]


@dataclass
class Case:
    """One conversation: the prompt's tokens, what is asked in later turns, and the expected tokens of each turn."""

    name: str
    prompt: list[int]
    n: int
    sampling: Sampling
    further: list[list[int]] = field(default_factory=list)
    expected: list[list[int]] = field(default_factory=list)

    def turns(self, generate: Generate) -> list[tuple[list[int], list[int]]]:
        """Prompt and answer of each turn; a later prompt continues what was really answered."""
        out: list[tuple[list[int], list[int]]] = []
        prompt = self.prompt
        for tail in [*self.further, None]:
            answer = generate(prompt, self.n, self.sampling)
            out.append((prompt, answer))
            prompt = prompt + answer + (tail or [])
        return out


def spread(rows: list[Any], n: int | None) -> list[Any]:
    """n of them, evenly spaced (None: all)."""
    return rows if n is None or n >= len(rows) else [rows[i * len(rows) // n] for i in range(n)]


def plain(vocabulary: Vocabulary, n: int | None, max_tokens: int, samplings: list[Sampling]) -> list[Case]:
    """The prompts as they are."""
    rows = spread(load_prompts(None, None), n)
    prompts = [(f"prompt {r['id']}", vocabulary.tokenize(r["text"], begin=True)) for r in rows]
    return [Case(name, tokens, max_tokens, s) for s in samplings for name, tokens in prompts]


LENGTHS = (505, 490, 540, 500, 760, 700, 512, 900)
"""Prompt lengths: some are passed by 512 while the answer is written, others lie behind."""


def long(vocabulary: Vocabulary, n: int, max_tokens: int, samplings: list[Sampling]) -> list[Case]:
    """Story beginnings one after the other, up to some length."""
    rows = [r["text"] for r in load_prompts("completion", None)]
    prompts = []
    for i in range(n):
        first, length = i * 7 % len(rows), LENGTHS[i % len(LENGTHS)]
        text = " ".join([*rows[first:], *rows[:first], *rows, *rows])
        prompts.append((f"long {i} ({length})", vocabulary.tokenize(text, begin=True)[:length]))
    return [Case(name, tokens, max_tokens, s) for s in samplings for name, tokens in prompts]


def turns(vocabulary: Vocabulary, n: int, max_tokens: int, samplings: list[Sampling]) -> list[Case]:
    """A question, and another one behind its answer."""
    rows = load_prompts("chat", None)
    chosen = spread(list(zip(rows, rows[1:] + rows[:1], strict=True)), n)
    out = []
    for s in samplings:
        for row, following in chosen:
            prompt = vocabulary.tokenize(row["text"], begin=True)
            tail = vocabulary.tokenize("<|im_end|>\n" + following["text"])
            out.append(Case(f"turns {row['id']}, {following['id']}", prompt, max_tokens, s, [tail]))
    return out


PARTS = {"matrix": plain, "long": long, "turns": turns}


def expect(cases: list[Case], generate: Generate, forget: Callable[[], None]) -> None:
    """Fill in what is generated."""
    for case in cases:
        forget()
        case.expected = [answer for _, answer in case.turns(generate)]


def anew(cases: list[Case], bare: Bare) -> tuple[int, int]:
    """Later turns that the bare loop writes alike when it computes all before them in prompt chunks; all of them."""
    same = n = 0
    for case in cases:
        prompt = case.prompt
        for tail, answer, expected in zip(case.further, case.expected, case.expected[1:], strict=False):
            prompt = prompt + answer + tail
            bare.clear()
            same += bare.generate(prompt, case.n, case.sampling) == expected
            n += 1
    return same, n
