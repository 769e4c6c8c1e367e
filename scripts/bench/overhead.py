"""One stage without speculation against a bare llama.cpp loop: real compute, what the orchestration costs."""

from __future__ import annotations

import statistics
import time

import numpy as np
from agreement import TARGET, load_prompts
from bench.timing import Timed, timed
from rich.console import Console
from verify.bare import Bare

from pipeinfer_cpp.pipeline import Pipeline


def overhead(console: Console, repeats: int, n: int, threads: int) -> dict[str, float]:
    """A B A B, the same threads and settings. Milliseconds and ratios are medians over the rounds."""
    ratios, costs, bare_ms = [], [], []
    with Pipeline.local(target=TARGET, stages=1, mode="off", threads=threads, trace=True) as pipeline:
        bare = Bare(TARGET, kv_type=pipeline.kv_type, threads=threads)
        prompt = pipeline.vocabulary.tokenize(load_prompts("completion", 1)[0]["text"], begin=True)
        assert pipeline.driver.trace is not None
        for i in range(repeats + 1):
            a = bare_loop(bare, prompt, n)
            pipeline.driver.trace.clear()
            b = timed(pipeline, prompt, n)
            assert a.ids[: len(b.ids)] == b.ids, "the texts differ"  # the bare loop runs on behind the end
            spans = [e["dur"] / 1e6 for e in pipeline.driver.trace.events() if e["name"].startswith("run ")]
            cost = statistics.median(np.diff(b.times)) - statistics.median(spans)
            if i:  # the first round warms up
                ratios.append(b.speed / a.speed)
                costs.append(1000 * cost)
                bare_ms.append(1000 / a.speed)
            console.print(f"  bare {a.speed:6.1f}  one stage {b.speed:6.1f} tokens/s  ratio {b.speed / a.speed:.3f}")
        bare.close()
    return {
        "bare_ms_a_token": statistics.median(bare_ms),
        "ratio": statistics.median(ratios),
        "orchestration_ms": statistics.median(costs),
    }


def bare_loop(bare: Bare, prompt: list[int], n: int) -> Timed:
    """Decode, argmax, repeat."""
    bare.clear()
    out = Timed([], [])
    logits = bare.prompt(prompt)
    for _ in range(n):
        out.ids.append(int(logits.argmax()))
        out.times.append(time.monotonic())
        logits = bare.extend(out.ids[-1:], 1)
    return out
