"""What each process of a pipeline was said to need of memory, against what it holds.

    python scripts/memory_table.py                       # the demo pair in 2 stages
    python scripts/memory_table.py --target FILE --stages 3 --ctx-size 8192

Opens the pipeline, reads a prompt of some chunks, generates, and reads VmRSS of each process. Pages of shared
libraries count in each of them. Linux only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeinfer_cpp import Pipeline, Sampling
from pipeinfer_cpp.gguf.needs import Needs
from pipeinfer_cpp.models.files import size_text

COLUMNS = ("weights", "KV cache", "compute", "checkpoints", "program", "said", "measured", "difference")


def resident(pid: int) -> int:
    """Bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/{pid}/status tells no VmRSS")


def row(need: Needs, measured: int) -> tuple[list[str], float]:
    difference = measured / need.total - 1
    parts = (need.weights, need.kv, need.compute, need.checkpoints, need.program, need.total, measured)
    return [*map(size_text, parts), f"{100 * difference:+.0f}%"], difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", help="a pair of models.toml (default: demo)")
    parser.add_argument("--target", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--ctx-size", type=int)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--within", type=float, default=0.15, help="share that a process may be off")
    parser.add_argument("--markdown", action="store_true", help="for the docs")
    args = parser.parse_args()
    pair = args.pair or (None if args.target else "demo")
    with Pipeline.local(
        pair=pair, target=args.target, draft=args.draft, stages=args.stages, ctx=args.ctx_size
    ) as pipeline:
        prompt = [token % pipeline.vocabulary.size for token in range(1000, 1000 + args.prompt_tokens)]
        pipeline.generate(prompt, max_tokens=32, sampling=Sampling(temp=0)).wait()
        fit, n_ctx = pipeline.plan.fit, pipeline.settings.n_ctx
        assert fit is not None
        drafting = fit.drafting(n_ctx)
        needs = [*fit.stages(n_ctx), *([drafting] if drafting is not None else [])]
        names = [f"stage {i}, layers {first}-{end - 1}" for i, (first, end) in enumerate(fit.ranges)] + ["draft"]
        rows = [row(need, resident(p.pid)) for need, p in zip(needs, pipeline.processes, strict=True)]
        title = f"{pipeline.plan.target.name}, context {n_ctx:,}, {pipeline.kv_type} cache"
    if args.markdown:
        print(f"{title}\n\n| | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}")
        for name, (cells, _) in zip(names, rows, strict=False):
            print(f"| {name} | {' | '.join(cells)} |")
    else:
        table = Table(title=title, title_justify="left")
        for column in ("", *COLUMNS):
            table.add_column(column, justify="right" if column else "left")
        for name, (cells, _) in zip(names, rows, strict=False):
            table.add_row(name, *cells)
        Console(width=130).print(table)
    worst = max(abs(difference) for _, difference in rows)
    if worst > args.within:
        raise SystemExit(f"A process is {100 * worst:.0f}% off: more than {100 * args.within:.0f}%.")


if __name__ == "__main__":
    main()
