"""How soon a conversation that gave up its slot says its next token: replayed, read as a prompt, or from kept cells.

    python scripts/come_back.py [--target FILE] [--lengths 200,1000,3000] [--rounds 3]

Two stages and one slot, which another conversation has meanwhile. Half of each conversation are prompts and half are
answers. Read as a prompt it does not have the bits that it had; it is measured for comparison. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from pipeinfer_cpp.engine.cached import Past, Span
from pipeinfer_cpp.line import Line
from pipeinfer_cpp.pipeline import Pipeline

WORDS = "Once upon a time there was a little fox who lived in the woods and had a red ball. "


def seconds(line: Line, more: int) -> float:
    """To its next token, behind one more of a prompt."""
    tokens = [*line.past().tokens, more]
    began = time.monotonic()
    line.generate(tokens, max_tokens=1, sampling={"temp": 0}, goes_on=True).wait()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=Path)
    parser.add_argument("--lengths", default="200,1000,3000")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    lengths = [int(n) for n in asked.lengths.split(",")]
    model = {"target": asked.target} if asked.target else {"pair": "demo"}
    rows: dict[int, dict[str, list[float]]] = {n: {} for n in lengths}
    with Pipeline.local(stages=2, slots=1, mode="off", ctx=max(lengths) + 20, **model) as p:
        text = p.vocabulary.tokenize(WORDS * (max(lengths) // 10), begin=True)
        chunk = p.settings.chunk
        line, other = p.conversation("one"), p.conversation("another")
        for _ in range(asked.rounds):
            for n in lengths:
                tokens, took = tuple(text[:n]), rows[n]
                ways = {
                    "replayed": (Span(0, n // 2, False), Span(n // 2, n, True)),
                    "read as a prompt": (Span(0, n, False),),
                }
                for name, spans in ways.items():
                    other.forget()
                    seconds(other, text[0])
                    line.recall(Past(tokens, spans, chunk))
                    took.setdefault(name, []).append(seconds(line, text[1]))
                took.setdefault("stayed", []).append(seconds(line, text[1]))
                other.forget()
                took.setdefault("leaves", []).append(seconds(other, text[0]))
                other.forget()
                took.setdefault("nobody leaves", []).append(seconds(other, text[0]))
                if line.stashed:
                    took.setdefault("kept cells", []).append(seconds(line, text[1]))
        print(f"{p.plan.target.name}: {p.settings.stash:,} positions may be kept")
    columns = ["replayed", "read as a prompt", "kept cells", "stayed", "leaves", "nobody leaves"]
    lines = [["tokens", *columns]]
    for n, took in rows.items():
        times = [f"{1000 * statistics.median(took[name]):.0f} ms" if took.get(name) else "-" for name in columns]
        lines.append([f"{n:,}", *times])
    for row in lines:
        print(" | ".join(row))


if __name__ == "__main__":
    main()
