"""How often the draft's first choice is the target's token, teacher-forced, without any pipeline.

For each prompt the target writes its greedy text (a bare llama.cpp loop), then the draft reads that text
and says at each place what it would have said. The share of equal tokens is the acceptance `a` that the
speed benchmark quotes; the record itself is what its virtual-time replay runs on.

    python scripts/agreement.py --kind completion --prompts 6 --max-tokens 100 -o agreement.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.vocabulary import Vocabulary

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "pipeinfer_cpp" / "models" / "demo"
TARGET, DRAFT, WEAK = (DEMO / f"demo-{name}-q8_0.gguf" for name in ("target", "draft", "weak-draft"))
PROMPTS = HERE / "demo_models" / "prompts.jsonl"


def load_prompts(kind: str | None, n: int | None) -> list[dict[str, Any]]:
    """The first n prompts of a kind (`completion`, `chat`, None: both), with their text."""
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    rows = [r for r in rows if kind is None or r["type"] == kind][:n]
    for row in rows:
        if row["type"] == "completion":
            row["text"] = row["prompt"]
        else:
            turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in row["messages"])
            row["text"] = turns + "<|im_start|>assistant\n"
    return rows


def prefill(ctx: SliceContext, tokens: list[int], chunk: int = 64) -> np.ndarray:
    """Decode the tokens in chunks as the engine does; the logits of the last one."""
    logits = np.empty(0)
    for a in range(0, len(tokens), chunk):
        part = tokens[a : a + chunk]
        wanted = np.zeros(len(part), np.int8)
        wanted[-1] = a + chunk >= len(tokens)
        out = ctx.decode(
            np.array(part, np.int32), np.arange(a, a + len(part), dtype=np.int32), np.zeros(len(part), np.int32), wanted
        )
        logits = out[0] if len(out) else logits
    return logits


def greedy_text(ctx: SliceContext, prompt: list[int], n: int, eog: frozenset[int]) -> list[int]:
    """A bare llama.cpp loop: the target's own greedy continuation."""
    ctx.clear()
    logits = prefill(ctx, prompt)
    out: list[int] = []
    zero = np.zeros(1, np.int32)
    while len(out) < n:
        token = int(logits.argmax())
        if token in eog:
            break
        out.append(token)
        if len(out) < n:
            pos = np.array([len(prompt) + len(out) - 1], np.int32)
            logits = ctx.decode(np.array([token], np.int32), pos, zero)[0]
    return out


def guesses(ctx: SliceContext, text: list[int], n_prompt: int) -> list[list[float]]:
    """[token, probability, second, its probability] for each position behind the prompt."""
    ctx.clear()
    out = []
    for pos in range(len(text) - 1):
        row = np.array([text[pos]], np.int32)
        logits = ctx.decode(row, np.array([pos], np.int32), np.zeros(1, np.int32))[0]
        if pos + 1 < n_prompt:
            continue
        p = np.exp(logits - logits.max())
        p /= p.sum()
        first, second = (int(i) for i in np.argsort(p)[-1:-3:-1])
        out.append([first, float(p[first]), second, float(p[second])])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=DEMO / "demo-target-q8_0.gguf")
    parser.add_argument("--draft", type=Path, default=DEMO / "demo-draft-q8_0.gguf")
    parser.add_argument("--kind", choices=["completion", "chat"])
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--kv-type", default="q8_0")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    vocabulary = Vocabulary(args.target)
    target = SliceContext(args.target, n_ctx=1024, kv_type=args.kv_type)
    draft = SliceContext(args.draft, n_ctx=1024)
    records = []
    for row in load_prompts(args.kind, args.prompts):
        prompt = vocabulary.tokenize(row["text"], begin=True)
        text = greedy_text(target, prompt, args.max_tokens, vocabulary.eog)
        said = guesses(draft, prompt + text, len(prompt))
        hits = sum(g[0] == t for g, t in zip(said, text, strict=True))
        records.append({"id": row["id"], "prompt": prompt, "text": text, "guesses": said, "hits": hits})
        print(f"prompt {row['id']:2d}: {hits}/{len(text)} = {hits / max(len(text), 1):.3f}", flush=True)
    hits, n = sum(r["hits"] for r in records), sum(len(r["text"]) for r in records)
    print(f"a = {hits}/{n} = {hits / n:.3f}")
    if args.out:
        args.out.write_text(json.dumps(records))


if __name__ == "__main__":
    main()
