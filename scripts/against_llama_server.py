"""The server beside llama.cpp's own, on this machine: the same model, prompts, slots and number of threads.

    python scripts/against_llama_server.py FOLDER MODEL.gguf [--clients 1,2,4,8,16] [--tokens 64] [--rounds 2]

FOLDER holds `llama-server`. Ours runs in one stage with all threads, and in two that share them. All stand side by
side and are asked in turn, greedily, each time with new prompts; only one works at a time. Prints, and in the end as a
table: tokens per second of all clients together, the time to the first token (mean), the longest between two tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

import httpx
from clients import PROMPTS, at_once, end, running

CTX = 512


class Figures(NamedTuple):
    speed: float
    """Tokens per second of all together, from the first question to the last token."""
    first: float
    """Seconds to the first token, the clients' mean."""
    longest: float
    """The longest time between two tokens of one client, in seconds."""


@contextlib.contextmanager
def llama_server(folder: Path, model: Path, slots: int, threads: int) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(folder / "llama-server"), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-np", str(slots), "-c", str(slots * CTX), "-t", str(threads), "-tb", str(threads)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            if server.poll() is not None:
                sys.exit(f"llama-server ends with {server.returncode}")
            time.sleep(0.2)
        yield address
    finally:
        end(server)


def measure(address: str, n: int, n_tokens: int, first: int, until: float) -> Figures | None:
    """`n` clients at once, or None where one did not come to its end."""
    bodies = [
        {"prompt": f"Chapter {first + i}. A long story about {PROMPTS[i % len(PROMPTS)]}. Once upon a time",
         "max_tokens": n_tokens, "temperature": 0}
        for i in range(n)
    ]  # fmt: skip
    clients = at_once(address, "/v1/completions", bodies, until)
    if not all(client.whole and len(client.times) > 1 for client in clients):
        return None
    seconds = max(c.times[-1] for c in clients) - min(c.began for c in clients)
    return Figures(
        sum(len(c.times) for c in clients) / seconds,
        statistics.mean(c.times[0] - c.began for c in clients),
        max(b - a for c in clients for a, b in pairwise(c.times)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=float, default=460.0, help="seconds for all")
    args = parser.parse_args()
    until = time.monotonic() + args.limit
    cores = len(os.sched_getaffinity(0))
    clients = [int(n) for n in args.clients.split(",")]
    slots = max(clients)
    common = ["--target", str(args.model), "--mode", "off", "--slots", str(slots), "--ctx-size", str(CTX)]
    found: dict[tuple[int, str], list[Figures]] = {}
    numbers = count(1, 100)
    with contextlib.ExitStack() as stack:
        servers = {"llama-server": stack.enter_context(llama_server(args.folder, args.model, slots, cores))}
        for stages in (1, 2):
            threads = str(max(cores // stages, 1))
            ours = running([*common, "--stages", str(stages), "--threads", threads])
            servers[f"{stages} stage{'s' if stages > 1 else ''}"] = stack.enter_context(ours)
        for address in servers.values():
            measure(address, 1, 8, next(numbers), until)
        with contextlib.suppress(KeyboardInterrupt):
            for _ in range(args.rounds):
                for n in clients:
                    first = next(numbers)
                    for name, address in servers.items():
                        figures = measure(address, n, args.tokens, first, until)
                        if figures is None:
                            print(f"{n:2} clients, {name}: not all came to their end", flush=True)
                            continue
                        found.setdefault((n, name), []).append(figures)
                        print(f"{n:2} clients, {name:12}: {figures.speed:7.1f} tokens/s, first token after "
                              f"{figures.first:6.3f} s, longest gap {figures.longest:6.3f} s", flush=True)  # fmt: skip
    print(f"\n{cores} cores, {args.model.name}, {args.tokens} tokens each, the median of {args.rounds} rounds.\n")
    print("| Clients | Server | Tokens/s | First token, s | Longest gap, s |\n|---:|---|---:|---:|---:|")
    for (n, name), several in sorted(found.items(), key=lambda item: (item[0][0], list(servers).index(item[0][1]))):
        speed, waits, gap = (statistics.median(values) for values in zip(*several, strict=True))
        print(f"| {n} | {name} | {speed:.1f} | {waits:.3f} | {gap:.3f} |")


if __name__ == "__main__":
    main()
