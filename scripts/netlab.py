"""A cluster of network namespaces with shaped links, and the same cluster emulated, side by side.

    sudo python scripts/netlab.py gigabit --stages 4       # tokens per second of `off` and `async`
    sudo python scripts/netlab.py cluster.toml
    sudo python scripts/netlab.py --bytes                  # bytes per second at 10, 100 and 1000 Mbit/s

Each stage is a real `pipeinfer stage` in a namespace of its own, and so is the coordinator; what they say to
each other is TCP over virtual Ethernet, slowed by the kernel: netem, or tbf with a relay in user space for
latency and jitter. A node sends at the speed of its link to the next one, to whomever it sends. Nodes are as
slow as the cluster's in both arms; only the links differ. Ends with 2 where this machine does not allow it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from netlab_parts.rounds import KINDS, MODES, Speeds, measure
from netlab_parts.shaping import find_shaper
from netlab_parts.throughput import SIZES, compare
from rich.console import Console
from rich.table import Table

from pipeinfer_cpp.cli.signals import ending_on_signals
from pipeinfer_cpp.emulation import load_cluster
from pipeinfer_cpp.errors import PipeInferError, UserError, naming_options
from pipeinfer_cpp.net.transit import LinkSpeed

DEMO = Path(__file__).resolve().parents[1] / "pipeinfer_cpp" / "models" / "demo"
MBITS = (10.0, 100.0, 1000.0)
console = Console(width=110, highlight=False)


def show_bytes(args: argparse.Namespace) -> None:
    speeds = [LinkSpeed(mbit, args.latency, args.jitter) for mbit in args.mbit]
    if any(not 0.1 <= mbit <= 10_000 for mbit in args.mbit) or min(args.latency, args.jitter) < 0:
        raise UserError("--mbit takes 0.1 to 10000 Mbit/s, --latency and --jitter milliseconds from 0.")
    shaper = find_shaper()
    console.print(f"Shaped by {shaper}. A message alone: until all of it is there on an idle link.")
    table = Table("Mbit/s", "message", *["MB/s"] * 2, "shaped / emulated", *["alone, ms"] * 2)
    table.add_row("", "", "shaped", "emulated", "", "shaped", "emulated", style="dim")
    for speed in speeds:
        for c in compare(speed, args.sizes, args.seconds):
            rates = [f"{c.shaped / 1e6:.3f}", f"{c.emulated / 1e6:.3f}", f"{c.ratio:.3f}"]
            alone = [f"{1000 * c.shaped_alone:.2f}", f"{1000 * c.emulated_alone:.2f}"]
            table.add_row(f"{speed.mbit:g}", f"{c.size / 1024:g} KB", *rates, *alone)
    console.print(table)


def show_cluster(args: argparse.Namespace) -> None:
    cluster = load_cluster(args.cluster, args.stages)
    for path in (args.target, args.draft):
        if not path.is_file():
            raise UserError(f"{path} is not a file.")
    if not 1 <= cluster.n_stages <= 32 or args.rounds < 1 or args.tokens < 2:
        raise UserError("--stages takes 1 to 32, --rounds 1 or more, --tokens 2 or more.")
    speeds = measure(cluster, args.cluster, args.target, args.draft, args.tokens, args.rounds, console.print)
    table = Table("tokens/s", *KINDS, "shaped / emulated", title=f"{cluster.name}, {cluster.n_stages} stages")
    for mode in MODES:
        table.add_row(mode, *(f"{speeds.median(kind, mode):.2f}" for kind in KINDS), f"{speeds.ratio(mode):.3f}")
    table.add_row("async / off", *(f"{speeds.gain(kind):.2f}" for kind in KINDS), "")
    console.print(table)
    console.print(notes(speeds))


def notes(speeds: Speeds) -> str:
    how = f"Shaped by {speeds.shaper}" + (", delays by a relay in user space" if speeds.relayed else "")
    texts = "the texts are the same in all arms" if speeds.same_text else "THE TEXTS DIFFER between arms"
    return f"{how}; medians of rounds in turns; {texts}."


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cluster", nargs="?", help="a preset, or the path of a cluster.toml")
    parser.add_argument("--stages", type=int, help="so many nodes of a preset (default: all of them)")
    parser.add_argument("--target", type=Path, default=DEMO / "demo-target-q8_0.gguf", metavar="FILE")
    parser.add_argument("--draft", type=Path, default=DEMO / "demo-draft-q8_0.gguf", metavar="FILE")
    parser.add_argument("--tokens", type=int, default=60, help="of each generation (default 60)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3, and one to warm up)")
    parser.add_argument("--bytes", action="store_true", help="measure the links alone")
    parser.add_argument("--mbit", type=float, nargs="+", default=MBITS, metavar="N", help="with --bytes: rates")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="with --bytes: message sizes")
    parser.add_argument("--seconds", type=float, default=0.6, help="with --bytes: of each stream (default 0.6)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="MS", help="with --bytes (default 0)")
    parser.add_argument("--jitter", type=float, default=0.0, metavar="MS", help="with --bytes (default 0)")
    args = parser.parse_args()
    if args.bytes == (args.cluster is not None):
        parser.error("give a cluster, or --bytes")
    if args.bytes and (min(args.sizes) < 1 or max(args.sizes) > 1 << 24 or not 0 < args.seconds <= 30):
        parser.error("--sizes takes 1 byte to 16 MB, --seconds up to 30")
    return args


def main() -> int:
    args = parsed()
    try:
        with ending_on_signals(), naming_options():
            if args.bytes:
                show_bytes(args)
            else:
                show_cluster(args)
    except PipeInferError as error:
        with naming_options():
            print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
