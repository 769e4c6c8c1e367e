"""What a draft would have said at each place of the target's own text: the trace that simulations replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.sim.worlds import Guess, Replay
from pipeinfer_cpp.system.formats import read_records, write_records

if TYPE_CHECKING:
    from pipeinfer_cpp.llama.context import SliceContext


class Recording(msgspec.Struct, frozen=True):
    """One prompt. `text`: the target's greedy tokens behind it. `guesses`: the draft's first and second
    choice, teacher-forced, at each of them, with its confidence in each."""

    prompt: list[int]
    text: list[int]
    guesses: list[tuple[int, float, int, float]]

    @property
    def hits(self) -> int:
        return sum(guess[0] == token for guess, token in zip(self.guesses, self.text, strict=True))

    def world(self) -> Replay:
        """The same in virtual time."""
        n = len(self.prompt)
        said = {n + i: Guess(*guess) for i, guess in enumerate(self.guesses)}
        return Replay([*self.prompt, *self.text, -1], said)


def acceptance(recordings: Sequence[Recording]) -> float:
    """The share of all texts' tokens that equal the draft's first choice."""
    return sum(r.hits for r in recordings) / max(sum(len(r.text) for r in recordings), 1)


def record(
    target: Path,
    draft: Path,
    prompts: Sequence[Sequence[int]],
    n: int,
    eog: frozenset[int],
    *,
    kv_type: str = "q8_0",
    threads: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Recording]:
    """Bare llama.cpp loops over both models, without any pipeline. At most n tokens behind each prompt."""
    from pipeinfer_cpp.llama.context import SliceContext

    n_ctx = -(-(max(len(p) for p in prompts) + n + 1) // 256) * 256
    contexts = []
    try:
        for path in (target, draft):
            contexts.append(SliceContext(path, n_ctx=n_ctx, kv_type=kv_type, n_threads=threads))
        out = []
        for i, prompt in enumerate(prompts):
            text = _continue(contexts[0], list(prompt), n, eog)
            out.append(Recording(list(prompt), text, _guesses(contexts[1], [*prompt, *text], len(prompt))))
            report(i + 1, len(prompts))
        return out
    finally:
        for context in contexts:
            context.close()


def save(path: Path, recordings: Sequence[Recording]) -> None:
    write_records(path, recordings, lines=False)


def load(path: Path) -> list[Recording]:
    """Raises UserError where it is no recording."""
    found = read_records(path, Recording, "is not a recording of `pipeinfer bench --record`")
    if not found or any(len(r.text) != len(r.guesses) or not r.prompt or not r.text for r in found):
        raise UserError(f"{path} is not a recording of `pipeinfer bench --record`: it lacks a text, or guesses for it.")
    return found


def _row(context: SliceContext, token: int, pos: int) -> NDArray[np.float32]:
    logits = context.decode(np.array([token], np.int32), np.array([pos], np.int32), np.zeros(1, np.int32))
    return np.asarray(logits[0], np.float32)


def _prefill(context: SliceContext, tokens: list[int], chunk: int = 64) -> NDArray[np.float32]:
    """In chunks, as the engine does it: the logits behind the last token."""
    logits = np.empty(0, np.float32)
    for a in range(0, len(tokens), chunk):
        part = np.array(tokens[a : a + chunk], np.int32)
        wanted = np.zeros(len(part), np.int8)
        wanted[-1] = a + chunk >= len(tokens)
        pos = np.arange(a, a + len(part), dtype=np.int32)
        found = context.decode(part, pos, np.zeros(len(part), np.int32), wanted)
        logits = found[0] if len(found) else logits
    return logits


def _continue(context: SliceContext, prompt: list[int], n: int, eog: frozenset[int]) -> list[int]:
    context.clear()
    logits = _prefill(context, prompt)
    text: list[int] = []
    while (token := int(logits.argmax())) not in eog:
        text.append(token)
        if len(text) == n:
            break
        logits = _row(context, token, len(prompt) + len(text) - 1)
    return text


def _guesses(context: SliceContext, tokens: list[int], n_prompt: int) -> list[tuple[int, float, int, float]]:
    context.clear()
    out = []
    for pos in range(len(tokens) - 1):
        logits = _row(context, tokens[pos], pos)
        if pos + 1 >= n_prompt:
            p = np.exp(logits - logits.max())
            p /= p.sum()
            first, second = (int(i) for i in np.argsort(p)[-1:-3:-1])
            out.append((first, float(p[first]), second, float(p[second])))
    return out
