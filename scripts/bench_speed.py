"""The speed claims of this project, measured in one run, interleaved, by this script's own clock.

    python scripts/bench_speed.py                    # everything, about 25 minutes
    python scripts/bench_speed.py --part overhead    # one part
    python scripts/bench_speed.py --page docs/speed.md  # and write the page

Parts: overhead (one stage against a bare llama.cpp loop, real compute); text and chat (4 stages made 20 ms
for one row and 6 ms for each further one, draft 2 ms a token, on text openings and on chat questions), weak
(the same with the weak draft), free (rows that cost nothing), uneven (20/100/100/100 ms, draft 10 ms, with a
draft that is always right). The stages are real llama.cpp processes; in the stretched parts time is added to
each decode. Figures marked "virtual" or "independent" come from the virtual-time driver and are no measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agreement import DRAFT, WEAK
from bench.overhead import overhead
from bench.page import page
from bench.stretched import Speeds, compare, oracle
from rich.console import Console
from rich.table import Table

from pipeinfer_cpp.system.versions import cpu_name

PAPER = Speeds((0.020,) * 4, 0.006, 0.002)
FREE = Speeds((0.020,) * 4, 0.0, 0.002)
UNEVEN = Speeds((0.020, 0.100, 0.100, 0.100), 0.0, 0.010)
BARS = {
    ("overhead", "ratio"): (">=", 0.90),
    ("overhead", "orchestration_ms"): ("<=", 0.35),
    ("text", "sync_over_closed_form"): (">=", 0.95),
    ("text", "async_over_virtual"): (">=", 0.90),
    ("chat", "sync_over_closed_form"): (">=", 0.95),
    ("chat", "async_over_virtual"): (">=", 0.90),
    ("weak", "async_over_off"): (">=", 0.97),
    ("free", "async_over_sync"): (">=", 0.97),
    ("uneven", "tokens_per_s_of_async"): (">=", 55.0),
}


def parts_of(args: argparse.Namespace, console: Console) -> dict[str, Callable[[], dict[str, Any]]]:
    def race(speeds: Speeds, draft: Path, kind: str) -> dict[str, Any]:
        return compare(console, speeds, draft, kind, args.prompts, args.tokens, args.lengths)

    return {
        "overhead": lambda: overhead(console, args.repeats, 2 * args.tokens, args.threads),
        "text": lambda: race(PAPER, DRAFT, "completion"),
        "chat": lambda: race(PAPER, DRAFT, "chat"),
        "weak": lambda: race(PAPER, WEAK, "completion"),
        "free": lambda: race(FREE, DRAFT, "completion"),
        "uneven": lambda: oracle(console, UNEVEN, args.prompts, 2 * args.tokens),
    }


def report(console: Console, figures: dict[str, dict[str, Any]]) -> int:
    """Print all figures with their bars. Returns how many were missed."""
    table = Table("part", "figure", "value", "bar")
    missed = 0
    for part, values in figures.items():
        for key, value in values.items():
            if isinstance(value, dict):
                continue
            sign, bar = BARS.get((part, key), ("", 0.0))
            holds = value >= bar if sign == ">=" else value <= bar if sign else True
            missed += not holds
            shown = f"{value:.3f}" if isinstance(value, float) else str(value)
            table.add_row(part, key, shown, f"{sign} {bar} {'holds' if holds else 'MISSED'}" if sign else "")
    console.print(table)
    return missed


def host() -> str:
    return f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=["overhead", "text", "chat", "weak", "free", "uneven"])
    parser.add_argument("--prompts", type=int, default=4, help="of each part (default 4)")
    parser.add_argument("--tokens", type=int, default=100, help="of each generation (default 100)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of the overhead part (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="of the overhead part (default 1)")
    parser.add_argument("--lengths", default="1,2,3,4,5,6,7,8", help="draft lengths of sync (default 1 to 8)")
    parser.add_argument("--json", type=Path, help="keep the figures here; parts that it holds already stay")
    parser.add_argument("--page", type=Path, help="write the page of docs/ here, from the figures of all parts")
    args = parser.parse_args()
    args.lengths = [int(k) for k in args.lengths.split(",")]
    console = Console(width=110)
    console.print(f"{platform.machine()}, Python {platform.python_version()}; real processes, stretched parts add time")
    parts = parts_of(args, console)
    figures = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for name in args.part or [name for name in parts if name not in figures]:
        console.rule(name)
        figures[name] = {**parts[name](), "host": host()}
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")
    missed = report(console, figures)
    if args.page:
        args.page.write_text(page(figures))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
