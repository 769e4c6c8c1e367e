"""How long a draw waits for the form of the answer, by where in the text it is.

    python scripts/mask_time.py                       # the demo's target
    python scripts/mask_time.py --model gemma.gguf    # a GGUF, such as Gemma 3 270M with its 262144 tokens
    python scripts/mask_time.py --rows 8              # with seven guesses in each run
    python scripts/mask_time.py --temp 0

The model decodes each text row by row, as a last stage does that has all layers, and draws behind each row with the
form and without. What the first takes longer, in time of the processor, is the wait: for what is allowed, for the
choice among it, and for the step to this row. It is measured with masks that are made while the model decodes (with
the time from the end of a decode until all masks of its run are there), and with none made before the draw.
Each text is gone through as for the first time, a few times; the best one counts for each of its points.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import pipeinfer_cpp
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.guide import Guide, tokenizer
from pipeinfer_cpp.llama.paths import PathSamplers
from pipeinfer_cpp.llama.pieces import Pieces
from pipeinfer_cpp.llama.schema import guided_text
from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.sampling import Sampling

DEMO = Path(pipeinfer_cpp.__file__).parent / "models" / "demo" / "demo-target-q8_0.gguf"
PROSE = (
    "It was a quiet morning by the sea, and Ærøskøbing's old harbour-master (78) counted eleven boats: \"eleven\", "
    "he wrote, as on every day since the war. 日本語のテキストも少し。 Nobody had asked him to; nobody ever did. "
)


class Case(NamedTuple):
    """A form, and a text of that form: what stands before the part that is timed, and that part."""

    name: str
    form: dict[str, Any]
    before: str
    timed: str


def bounded(least: int, most: int) -> dict[str, Any]:
    return {"json_schema": {"type": "string", "minLength": least, "maxLength": most}}


def quoted(n: int) -> str:
    """`n` characters of prose as JSON writes them, without the quotes."""
    return json.dumps((PROSE * (n // len(PROSE) + 1))[:n], ensure_ascii=False)[1:-1]


def early(n: int) -> str:
    """All but the last 120 characters of `quoted(n)`."""
    return quoted(n)[:-120]


def late(n: int) -> str:
    return quoted(n)[-120:]


def cases() -> list[Case]:
    pattern = r"^[A-Za-z]{2,40}( [A-Za-z]{2,40}){1,20}$"
    names = {f"{word}_{i}": {"type": "integer"} for i in range(10) for word in ("first", "second", "size", "weight")}
    lark = 'start: item (" " item)*\nitem: /[a-z]+/ "=" /[0-9]{1,20}/'
    colours = [f"colour {i} of fifty" for i in range(50)]
    item = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}
    words = "The old harbour master counted eleven boats again"
    return [
        Case("key", {"json_schema": {"type": "object", "properties": names}}, '{"', 'first_3": 1, "size_4": 20, "wei'),
        Case("free key", {"json_schema": {"type": "object"}}, '{"', 'harbour master": 1, "boats by the sea": 20, "a'),
        Case("number", {"json_schema": {"type": "number", "minimum": -500, "maximum": 80000}}, "", "-123.4567890"),
        Case("punctuation", {"json_schema": {"type": "array", "items": item}}, "[", '{"name": "a", "n": 1}, {"n": 2}]'),
        Case("any value", {"json_schema": {}}, "", '{"a": [1, null, {"b": "some words"}], "c": true}'),
        Case("free string", {"json_schema": {"type": "string"}}, '"', quoted(200)),
        *(Case(f"string of at most {n}", bounded(0, n), '"' + early(n), late(n)) for n in (10, 100, 1000, 10000)),
        *(Case(f"string of at least {n}", bounded(n, n + 50), '"' + early(n), late(n)) for n in (10, 100, 1000)),
        Case("pattern with counts", {"json_schema": {"type": "string", "pattern": pattern}}, '"', words),
        Case("enum", {"json_schema": {"enum": colours}}, "", '"colour 47 of fifty"'),
        Case("date-time", {"json_schema": {"type": "string", "format": "date-time"}}, '"', "2024-11-30T12:34:56Z"),
        Case("--regex", {"regex": r"[A-Z][a-z]{2,30}(, [a-z ]{2,60}){1,10}\."}, "", f"The{', old harbour'*4}."),
        Case("--lark", {"lark": lark}, "", "boats=11 sea=203 a=4"),
    ]


class Waits(NamedTuple):
    """Milliseconds at each point of the timed part."""

    mask: NDArray[np.float64]
    ahead: NDArray[np.float64]
    at_once: NDArray[np.float64]
    decode: NDArray[np.float64]


class Bench:
    def __init__(self, model: Path, rows: int, temp: float, threads: int) -> None:
        self.vocabulary = Vocabulary(model)
        self.context = SliceContext(model, n_ctx=1024, n_ubatch=64, n_threads=threads)
        self.pieces = Pieces(self.context.vocab, self.context.n_vocab)
        tokenizer(self.pieces)  # a second or two, once
        self.settings: dict[str, Any] = {"temp": temp, "seed": 1}
        self.rows = rows

    def waits(self, case: Case, repeat: int) -> Waits:
        before, timed = (self.vocabulary.tokenize(text, special=False) for text in (case.before, case.timed))
        # What comes first is read by the form; the model needs a bit of it only.
        shown = (self.vocabulary.tokenize(PROSE, special=False) + before)[-200:]
        path = [shown[-1], *timed[:-1]]  # whose draws are looked at
        masks, ahead, at_once, decode, free, free_at_once = [], [], [], [], [], []
        form = Sampling(**self.settings, **case.form)
        for _ in range(repeat):
            masks.append(self._masks(case, before, timed))
            logits: list[NDArray[np.float32]] = []
            waits, seconds = self._drawn(form, before, shown, path, logits)
            ahead.append(waits)
            decode.append(seconds)
            free.append(self._drawn(Sampling(**self.settings), (), shown, path, [])[0])
            for _ in range(3):
                at_once.append(self._drawn(form, before, shown, path, logits)[0])
                free_at_once.append(self._drawn(Sampling(**self.settings), (), shown, path, logits)[0])
        mask, ahead_best, at_once_best, decode_best, free_best, free_at_once_best = (
            np.min(kind, axis=0) for kind in (masks, ahead, at_once, decode, free, free_at_once)
        )
        # Behind a decode nothing is in the processor's caches, with a form or without.
        return Waits(mask, ahead_best - free_best, at_once_best - free_at_once_best, decode_best)

    def _masks(self, case: Case, before: list[int], timed: list[int]) -> list[float]:
        text = guided_text(Sampling(**case.form))
        assert text is not None
        guide, found = Guide(self.pieces, text), []
        for token in before:
            assert guide.accept(token), f"{case.name}: {case.before!r}"
        for token in timed:
            began = time.thread_time()
            guide.prepare()
            found.append(1e3 * (time.thread_time() - began))
            assert guide.accept(token), f"{case.name}: {case.timed!r} at {self.pieces.texts[token]!r}"
        return found

    def _drawn(
        self,
        sampling: Sampling,
        before: Iterable[int],
        shown: list[int],
        path: list[int],
        logits: list[NDArray[np.float32]],
    ) -> tuple[list[float], list[float]]:
        """What each draw took, and its run to decode. `logits` are appended where they are missing; where they are
        there nothing is decoded, and nothing made ahead."""
        context, early = self.context, not logits
        paths = PathSamplers(context.vocab, context.n_vocab, self.pieces)
        paths.begin(sampling, shown, before)
        paths.looked_ahead()
        if early:
            context.seq_rm(0, 0, -1)
            for start in range(0, len(shown) - 1, 64):
                self._decode(shown[start : min(start + 64, len(shown) - 1)], start)
        first = len(shown) - 1
        found, decodes = [], []
        for start in range(0, len(path), self.rows):
            run = list(enumerate(path[start : start + self.rows], start))
            late = 0.0
            if early:
                paths.look_ahead([(node, node - 1, token) for node, token in run])
                began = time.perf_counter()
                logits += list(self._decode([token for _, token in run], first + start))
                ended = time.perf_counter()
                paths.looked_ahead()
                late = time.perf_counter() - ended
                decodes += [1e3 * (ended - began)] * len(run)
            for node, token in run:
                began = time.thread_time()
                paths.draw(node, node - 1, token, first + node, logits[node])
                found.append(1e3 * (late + time.thread_time() - began))
            paths.final(run[-1][0])
        paths.close()
        return found, decodes

    def _decode(self, tokens: list[int], pos: int) -> NDArray[np.float32]:
        n = len(tokens)
        every = np.arange(pos, pos + n, dtype=np.int32), np.zeros(n, np.int32), np.ones(n, np.int8)
        return self.context.decode(np.array(tokens, np.int32), *every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO, help="a GGUF")
    parser.add_argument("--rows", type=int, default=1, help="rows of a run: the newest token and right guesses")
    parser.add_argument("--temp", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="that decode")
    parser.add_argument("--repeat", type=int, default=3, help="times that each text is gone through (the best count)")
    parser.add_argument("--case", default="", help="only those whose name has this in it")
    arguments = parser.parse_args()
    bench = Bench(arguments.model, arguments.rows, arguments.temp, arguments.threads)
    print(f"{bench.vocabulary.size} tokens, runs of {arguments.rows}; milliseconds: median, 99th percentile, worst")
    titles = "mask itself", "wait: made ahead", "wait: nothing ahead"
    print(f"{'':24} {'draws':>6} {'decode':>7}" + "".join(f"{title:>24}" for title in titles), flush=True)
    for case in cases():
        if arguments.case not in case.name:
            continue
        mask, ahead, at_once, decode = bench.waits(case, arguments.repeat)
        ends = "".join(f"{t:8.3f}" for kind in (mask, ahead, at_once) for t in np.percentile(kind, (50, 99, 100)))
        print(f"{case.name:24} {len(mask):6} {np.median(decode):7.1f}{ends}", flush=True)


if __name__ == "__main__":
    main()
