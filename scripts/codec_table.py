"""What each codec changes, as docs/codecs.md has it.

    python scripts/codec_table.py -o docs/codecs.md

On the demo target (1 link and 3), and on small models of other architectures with random weights, which
no real ones can stand in for here: their distributions are flat, so that greedy tokens change easily.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from agreement import TARGET
from tiny_models import MODELS, build

from pipeinfer_cpp.gguf import Source
from pipeinfer_cpp.lab.fidelity import NUDGE, Chain, Fidelity, compare
from pipeinfer_cpp.lab.suites import SUITES
from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.net.messages import WIRES

ABOUT = {
    "f32": "as they are: changes nothing",
    "f16": "half the bytes; a value above 65504 is refused, never sent",
    "bf16": "half the bytes, every size of value",
    "q8": "blocks of 32 channels, each with a scale of its own",
    "q4": "the largest channels of each row apart, the rest in blocks of 32 with four bits each",
    NUDGE: "no codec: every value changed by a millionth, for comparison",
}


def measured(path: Path, n_stages: int, n_prompts: int, n: int) -> tuple[int, list[Fidelity]]:
    """The width, and each codec's effect."""
    source, vocabulary = Source.open(path), Vocabulary(path)
    prompts = [vocabulary.tokenize(text, begin=True) for text in SUITES["story"].prompts[:n_prompts]]
    chain = Chain(source, n_stages, 512, 1, lambda *_: None)
    try:
        return source.n_embd, compare(chain, n_stages - 1, prompts, n, WIRES, vocabulary.eog)
    finally:
        chain.close()
        vocabulary.close()


def table(width: int, results: list[Fidelity]) -> list[str]:
    lines = ["| codec | bytes a row | greedy tokens changed per 1,000 | KL, mean | KL, 99% |", "|" + " --- |" * 5]
    for r in results:
        shown = f"{r.changed_per_1000:.1f} | {r.kl_mean:.1e} | {r.kl_p99:.1e}" if not r.refused else "refused | - | -"
        lines.append(f"| {r.wire} | {r.bytes_per_row if r.wire != NUDGE else '-'} | {shown} |")
    first = results[0]
    lines += ["", f"{first.positions} positions, width {width}, largest hidden state {first.max_hidden:.0f}.", ""]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/codecs.md"))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()
    text = [
        "# Hidden states in fewer bytes",
        "",
        "`--wire CODEC` chooses how hidden states travel between stages, for all links or one each (`--wire f32,q8`).",
        "`pipeinfer verify --wire q8` measures what follows for your own model. A row's bytes do not depend on the run",
        "it travels in, so speculation still changes no text. Written by `python scripts/codec_table.py`.",
        "",
        *(f"* `{name}`: {about}." for name, about in ABOUT.items()),
        "",
        "A quantised model rounds its activations, so that even a change in the last bits makes other tokens now and",
        "then. A codec that changes no more than that is as good as can be; KL is in nats.",
        "",
    ]
    for n_stages in (2, 4):
        text += [f"## The demo target, {n_stages - 1} link{'s' if n_stages > 2 else ''}", ""]
        text += table(*measured(TARGET, n_stages, args.prompts, args.max_tokens))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PIPEINFER_CACHE"] = folder
        for arch in ("qwen3", "qwen3moe"):
            path = build(Path(folder) / f"{arch}.gguf", MODELS[arch])
            text += [f"## A small {arch} with random weights (F16), 1 link", ""]
            text += table(*measured(path, 2, 4, args.max_tokens))
    text += [
        "## What to take from it",
        "",
        "With the quantised target `f16`, `bf16` and `q8` change about as much as the last bits do: use `q8` where the",
        "link is slow (four times fewer bytes than `f32`). A model in F16, which rounds nothing by itself, shows the",
        "difference between them. `q4` changes ten times more: for experiments. `f16` is as good as `bf16` until a",
        "model has a value above 65504; then it is refused with one sentence.",
        "",
    ]
    args.output.write_text("\n".join(text))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
