"""What a thread that computes in Python costs a generation beside it, and what the generation costs that thread.

    python scripts/busy_thread.py [--stages 1,2]

Arms are interleaved; medians. `5 ms` is the switch interval of Python, `as it is` what a pipeline sets as it generates
(`cluster/switching.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable

from pipeinfer_cpp.cluster import switching
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.system.machine import cores


def sums() -> None:
    sum(range(1000))


def texts() -> None:
    json.loads(json.dumps({"a": list(range(50)), "b": "x" * 200}))
    time.sleep(0.001)


ARMS: dict[str, tuple[Callable[[], None] | None, float]] = {
    "quiet": (None, switching.QUICK),
    "sums, 5 ms": (sums, 0.005),
    "sums, as it is": (sums, switching.QUICK),
    "JSON, 5 ms": (texts, 0.005),
    "JSON, as it is": (texts, switching.QUICK),
}


def one(pipeline: Pipeline, work: Callable[[], None] | None, interval: float) -> tuple[float, float]:
    """Milliseconds a token; loops of the busy thread per second."""
    switching.QUICK = interval
    stop, loops = threading.Event(), 0

    def busy() -> None:
        nonlocal loops
        while work is not None and not stop.is_set():
            work()
            loops += 1

    thread = threading.Thread(target=busy)
    thread.start()
    pipeline.forget()
    began = time.monotonic()
    result = pipeline.generate("Once upon a time", max_tokens=120, sampling=Sampling(temp=0)).wait()
    took = time.monotonic() - began
    stop.set()
    thread.join()
    return 1000 / (result.tokens_per_s or 1.0), loops / took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", default="1,2")
    for n in map(int, parser.parse_args().stages.split(",")):
        # With a thread on every core the stages would wait for the busy thread's core, whatever the interpreter does.
        threads = max(1, cores() // (2 * n + 2))
        with Pipeline.local(pair="demo", stages=n, mode="off", ctx=512, threads=threads) as pipeline:
            one(pipeline, None, switching.QUICK)
            seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
            for _ in range(5):
                for name, arm in ARMS.items():
                    seen[name].append(one(pipeline, *arm))
        for name, rounds in seen.items():
            per_token, loops = (statistics.median(values) for values in zip(*rounds, strict=True))
            print(f"{n} stages, {name:15} {per_token:7.2f} ms a token, {loops:8.0f} loops a second", flush=True)


if __name__ == "__main__":
    sys.exit(main())
