"""How long it takes to find out which tokens a schema or an expression allows next, by where in the text it is.

    python scripts/mask_time.py                       # the demo's vocabulary
    python scripts/mask_time.py --model gemma.gguf    # that of a GGUF, such as Gemma's with 262144 tokens

Only the vocabulary is read. Each point of each text is looked at anew, as in a turn that goes through it for the
first time: the mask over the whole vocabulary, the check of the one token that was drawn, the step behind it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pipeinfer_cpp
from pipeinfer_cpp.llama.guide import Guide
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
        *(Case(f"string of at most {n}", bounded(0, n), '"', quoted(n)) for n in (10, 100, 1000, 10000)),
        *(Case(f"string of at least {n}", bounded(n, n + 50), '"', quoted(n + 20)) for n in (10, 100, 1000)),
        Case("pattern with counts", {"json_schema": {"type": "string", "pattern": pattern}}, '"', words),
        Case("enum", {"json_schema": {"enum": colours}}, "", '"colour 47 of fifty"'),
        Case("date-time", {"json_schema": {"type": "string", "format": "date-time"}}, '"', "2024-11-30T12:34:56Z"),
        Case("--regex", {"regex": r"[A-Z][a-z]{2,30}(, [a-z ]{2,60}){1,10}\."}, "", f"The{', old harbour'*4}."),
        Case("--lark", {"lark": lark}, "", "boats=11 sea=203 a=4"),
    ]


def times(vocabulary: Vocabulary, case: Case) -> tuple[list[float], list[float], int]:
    """Milliseconds for each token of the timed part: of masks, of checks with their steps; and how many checks."""
    text = guided_text(Sampling(**case.form))
    assert text is not None
    guide = Guide(vocabulary.pieces, text)
    masks: list[float] = []
    checks: list[float] = []
    for kind in (masks, checks):
        here = Guide(vocabulary.pieces, text)
        for token in vocabulary.tokenize(case.before, special=False):
            assert here.accept(token), f"{case.name}: {case.before!r}"
        for token in vocabulary.tokenize(case.timed, special=False):
            began = time.perf_counter()
            if kind is masks:
                here.prepare()
                kind.append(time.perf_counter() - began)
            assert here.accept(token), f"{case.name}: {case.timed!r} at {vocabulary.pieces.texts[token]!r}"
            if kind is checks:
                kind.append(time.perf_counter() - began)
    guide.close()
    return [1e3 * t for t in masks], [1e3 * t for t in checks], len(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO, help="a GGUF; only its vocabulary is read")
    parser.add_argument("--repeat", type=int, default=3, help="times that each text is gone through (the best count)")
    arguments = parser.parse_args()
    vocabulary = Vocabulary(arguments.model)
    print(f"{vocabulary.size} tokens; milliseconds a token: median, 90th percentile, worst")
    print(f"{'':22} {'tokens':>6}   {'mask':>20}   {'check of one token':>20}")
    for case in cases():
        masks, checks, n = [], [], 0
        for _ in range(arguments.repeat):
            some, others, n = times(vocabulary, case)
            masks.append(some)
            checks.append(others)
        best = [np.percentile(np.min(kind, axis=0), (50, 90, 100)) for kind in (masks, checks)]
        print(f"{case.name:22} {n:6}   " + "   ".join("".join(f"{t:7.3f}" for t in kind) for kind in best))


if __name__ == "__main__":
    main()
