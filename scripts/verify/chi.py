"""Pearson's chi-square test of tokens drawn by a pipeline against the target's distribution."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import msgspec
from verify.bare import Bare
from verify.cases import Case

from pipeinfer_cpp.pipeline import Pipeline

LIMIT = 0.001
"""A p-value below this is a failure."""


@dataclass(frozen=True)
class Fit:
    """One test: what was drawn, how well it fits."""

    name: str
    draws: int
    bins: int
    statistic: float
    p: float

    def row(self) -> str:
        return f"| {self.name} | {self.draws} | {self.bins} | {self.statistic:.2f} | {self.p:.4f} |"


HEAD = "| drawn | draws | bins | chi-square | p |\n| --- | --- | --- | --- | --- |"


def open_ended(cases: list[Case], bare: Bare, n: int) -> list[Case]:
    """Those whose first token is the least certain: a test of one that has no choice says nothing."""

    def entropy(case: Case) -> float:
        p = bare.probabilities(bare.prompt(case.prompt), case.sampling)
        return -sum(x * math.log(x) for x in p.values())

    return sorted(cases, key=entropy, reverse=True)[:n]


def sample(pipeline: Pipeline, bare: Bare, case: Case, n: int) -> tuple[Fit, Fit]:
    """n generations, a seed each, in async mode: their first tokens, and their first two.

    Of the pairs those that begin with one of the three likeliest tokens are told apart: there the draft
    guesses ahead, so that the second token is often one that was accepted.
    """
    name, prompt, sampling = case.name, case.prompt, case.sampling
    pipeline.configure(mode="async")
    seen = []
    for seed in range(n):
        pipeline.forget()
        drawn = msgspec.structs.replace(sampling, seed=sampling.seed + seed)
        ids = pipeline.generate(prompt, max_tokens=4, sampling=drawn).wait().token_ids
        seen.append((*ids, -1, -1)[:2])  # -1: the text ended
    bare.clear()
    first = ended(bare.probabilities(bare.prompt(prompt), sampling), pipeline)
    pairs: dict[tuple[int, ...], float] = {}
    likely = sorted((t for t in first if t >= 0), key=lambda t: -first[t])[:3]
    for token, p in first.items():
        if token in likely:
            logits = bare.prompt([*prompt, token])
            second = ended(bare.probabilities(logits, sampling), pipeline)
            pairs |= {(token, t): p * q for t, q in second.items()}
        else:
            pairs[(token,)] = p
    told = Counter(s if s[0] in likely else s[:1] for s in seen)
    singles = pearson(f"{name}, first token", Counter(s[:1] for s in seen), {(t,): p for t, p in first.items()})
    return singles, pearson(f"{name}, first two", told, pairs)


def ended(probabilities: dict[int, float], pipeline: Pipeline) -> dict[int, float]:
    """The same with one outcome, -1, for all tokens that end a text."""
    eog = pipeline.vocabulary.eog
    out = {t: p for t, p in probabilities.items() if t not in eog}
    if len(out) < len(probabilities):
        out[-1] = sum(p for t, p in probabilities.items() if t in eog)
    return out


def pearson(name: str, seen: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> Fit:
    """Outcomes that are expected fewer than five times share a bin. One that cannot be makes p zero."""
    n = sum(seen.values())
    bins, rest = [], [0.0, 0.0]
    for outcome, p in expected.items():
        if n * p >= 5:
            bins.append([float(seen[outcome]), n * p])
        else:
            rest = [rest[0] + seen[outcome], rest[1] + n * p]
    if rest[1] >= 5 or not bins:
        bins.append(rest)
    else:
        smallest = min(bins, key=lambda b: b[1])
        smallest[0], smallest[1] = smallest[0] + rest[0], smallest[1] + rest[1]
    statistic = sum((o - e) ** 2 / e for o, e in bins)
    fit = Fit(name, n, len(bins), statistic, upper_gamma((len(bins) - 1) / 2, statistic / 2))
    return replace(fit, p=0.0) if set(seen) - set(expected) else fit


def upper_gamma(a: float, x: float) -> float:
    """The regularised upper incomplete gamma function Q(a, x): 1 - P by its series, or the continued fraction."""
    if x <= 0 or a <= 0:
        return 1.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        k = a
        while term > total * 1e-15:
            k += 1
            term *= x / k
            total += term
        return 1 - front * total
    tiny = 1e-300
    b = x + 1 - a
    c, d = 1 / tiny, 1 / b
    h = d
    for i in range(1, 10_000):
        an, b = -i * (i - a), b + 2
        d = 1 / (an * d + b or tiny)
        c = b + an / c or tiny
        h *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return front * h
