"""Without exact mode: texts part only where a batch's shape can move the two best tokens past each other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from verify.bare import Bare
from verify.cases import Case, spread
from verify.report import parting

from pipeinfer_cpp.pipeline import Pipeline

WIDTHS = range(2, 17)
SIDES = 4
"""Further sequences in a batch, as many as `--branches 4` has beside the main one, and one more."""
MIXED = 8


@dataclass
class Partings:
    """What became of the texts of one row and mode; `measured`: the gap and the largest change of each parting."""

    texts: int = 0
    measured: list[tuple[float, float]] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)

    def cell(self) -> str:
        same = f"{self.texts - len(self.measured)} / {self.texts}"
        if not self.measured:
            return same
        gap, change = max(self.measured, key=lambda m: m[0] / m[1] if m[1] else float("inf"))
        return (
            f"{same}; {gap:.3f} < 2 x {change:.3f}" if gap < 2 * change else f"{same}; NOT {gap:.3f} < 2 x {change:.3f}"
        )


def check(pipeline: Pipeline, mode: str, cases: list[Case], bare: Bare, label: str) -> Partings:
    """Write all cases; measure wherever a text parts from the expected one."""
    pipeline.configure(mode=mode)
    found = Partings()
    for case in cases:
        pipeline.forget()
        result = pipeline.generate(case.prompt, max_tokens=case.n, sampling=case.sampling).wait()
        found.texts += 1
        at = parting(case.expected[0], result.token_ids)
        if at < 0:
            continue
        gap, change = measure(bare, case.prompt, case.expected[0][:at])
        found.measured.append((gap, change))
        if not gap < 2 * change:
            said = f"gap {gap:.4f}, largest change {change:.4f}; {result.runs}"
            found.unexplained.append(f"{label}, {mode}: {case.name}: parts at token {at}: {said}")
    return found


def narrow(bare: Bare, cases: list[Case], n: int) -> tuple[float, float]:
    """The median of the largest changes behind n of the texts; the share of all places with a gap below twice that."""
    changes = [measure(bare, c.prompt, c.expected[0][:-1])[1] for c in spread(cases, n)]
    bound, below = 2 * float(np.median(changes)), []
    for case in cases:
        bare.clear()
        logits = [bare.prompt(case.prompt), *(bare.extend([token], 1) for token in case.expected[0][:-1])]
        below += [float(np.diff(np.partition(x, -2)[-2:])[0]) < bound for x in logits]
    return bound / 2, float(np.mean(below))


def measure(bare: Bare, prompt: list[int], written: list[int], seed: int = 1) -> tuple[float, float]:
    """The gap between the two best logits behind `prompt + written`, by single rows; how far other shapes move any."""
    bare.clear()
    bare.prompt(prompt)
    reference = bare.extend(written, 1) if written else bare.prompt(prompt)
    best = np.partition(reference, -2)
    change = max((float(np.abs(x - reference).max()) for x in shapes(bare, len(prompt), written, seed)), default=0.0)
    return float(best[-1] - best[-2]), change


def shapes(bare: Bare, n_prompt: int, written: list[int], seed: int) -> Iterator[NDArray[np.float32]]:
    """The logits behind the written tokens, decoded again in other batch shapes behind the same prompt."""
    if not written:
        return
    rng = random.Random(seed)
    for width in WIDTHS:
        _back(bare, n_prompt)
        yield bare.extend(written, width)
        _back(bare, n_prompt)
        if 0 < (odd := len(written) % width) < len(written):  # now the first run is the odd one
            bare.extend(written[:odd], width)
            yield bare.extend(written[odd:], width)
            _back(bare, n_prompt)
        yield _beside(bare, written, width, rng)
    for _ in range(MIXED):
        _back(bare, n_prompt)
        yield _mixed(bare, written, rng)


def _back(bare: Bare, n: int) -> None:
    bare.remove(0, n)
    del bare.cached[n:]


def _beside(bare: Bare, written: list[int], width: int, rng: random.Random) -> NDArray[np.float32]:
    """Single rows, but the last one in a batch with rows of other sequences that have the same prefix."""
    if len(written) > 1:
        bare.extend(written[:-1], 1)
    return _run(bare, written[-1:], width - 1, rng)


def _mixed(bare: Bare, written: list[int], rng: random.Random) -> NDArray[np.float32]:
    """Runs of any width, with rows of side branches between: cells that they leave are taken by later rows."""
    at = 0
    while at < len(written):
        width = rng.randint(1, WIDTHS[-1])
        own = rng.randint(1, width)
        logits = _run(bare, written[at : at + own], width - own, rng)
        at += own
    return logits


def _run(bare: Bare, tokens: list[int], n_further: int, rng: random.Random) -> NDArray[np.float32]:
    """One batch: the tokens, and rows of side branches among them, which are dropped behind it."""
    at = len(bare.cached)
    used = range(1, 1 + min(SIDES, n_further))
    for seq in used:
        bare.copy(0, seq, at)
    ends = dict.fromkeys(used, at)
    order = [0] * len(tokens) + [1 + i % SIDES for i in range(n_further)]
    rng.shuffle(order)
    rows, own = [], 0
    for seq in order:
        if seq == 0:
            rows.append((tokens[own], at + own, 0))
            own, tip = own + 1, len(rows)
        else:
            rows.append((rng.randrange(bare.n_vocab), ends[seq], seq))
            ends[seq] += 1
    logits = bare.rows(rows, tip - 1)
    bare.cached += tokens
    for seq in used:
        bare.remove(seq, 0)
    return logits
