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

from pipeinfer_cpp.lab.recording import acceptance, record, save
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--draft", type=Path, default=DRAFT)
    parser.add_argument("--kind", choices=["completion", "chat"])
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--kv-type", default="q8_0")
    parser.add_argument("-o", "--out", type=Path, help="for `pipeinfer simulate --replay`")
    args = parser.parse_args()
    vocabulary = Vocabulary(args.target)
    rows = load_prompts(args.kind, args.prompts)
    prompts = [vocabulary.tokenize(row["text"], begin=True) for row in rows]
    found = record(args.target, args.draft, prompts, args.max_tokens, vocabulary.eog, kv_type=args.kv_type)
    for row, one in zip(rows, found, strict=True):
        print(f"prompt {row['id']:2d}: {one.hits}/{len(one.text)} = {one.hits / max(len(one.text), 1):.3f}")
    hits, n = sum(one.hits for one in found), sum(len(one.text) for one in found)
    print(f"a = {hits}/{n} = {acceptance(found):.3f}")
    if args.out:
        save(args.out, found)


if __name__ == "__main__":
    main()
