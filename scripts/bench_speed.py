"""The speed claims of this project, measured in one run, interleaved, by this script's own clock.

    python scripts/bench_speed.py                    # everything, about 20 minutes
    python scripts/bench_speed.py --part overhead    # one part

Parts: overhead (one stage against a bare llama.cpp loop, real compute), stretched (4 stages made 20 ms
for one row and 6 ms for each further one, draft 2 ms a token), weak (the same with the weak draft), free
(rows that cost nothing), uneven (20/100/100/100 ms with a draft that is always right). The stages are
real llama.cpp processes; in the stretched parts time is added to each decode. Figures marked "virtual"
come from the virtual-time driver and are no measurement.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from agreement import DEMO, greedy_text, guesses, load_prompts, prefill
from rich.console import Console
from rich.table import Table

from pipeinfer_cpp.engine import CostCurve, Settings
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.net.messages import Stretch
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.sim.cluster import Cluster
from pipeinfer_cpp.sim.worlds import Guess, Replay, independent

TARGET, DRAFT, WEAK = (DEMO / f"demo-{n}-q8_0.gguf" for n in ("target", "draft", "weak-draft"))
GREEDY = Sampling(temp=0.0)
console = Console(width=110)


@dataclass
class Timed:
    """Tokens and times of one generation, by this script's clock."""

    ids: list[int]
    times: list[float]
    runs: int = 0
    ttft: float = 0.0

    @property
    def speed(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def timed(pipeline: Pipeline, prompt: list[int], n: int, **changes: Any) -> Timed:
    """One generation of the pipeline. The conversation before it is forgotten, so that all prefill alike."""
    pipeline.configure(**changes)
    pipeline.forget()
    began = time.monotonic()
    out = Timed([], [])
    generation = pipeline.generate(prompt, max_tokens=n, sampling=GREEDY)
    for token in generation:
        if token.id >= 0:
            out.ids.append(token.id)
            out.times.append(time.monotonic())
    assert generation.result is not None
    out.runs, out.ttft = generation.result.runs.sent, out.times[0] - began
    return out


def pooled(parts: list[Timed]) -> float:
    """Tokens a second over several generations."""
    return sum(len(p.times) - 1 for p in parts) / sum(p.times[-1] - p.times[0] for p in parts)


@contextmanager
def stretched(
    n: int, first: float | list[float], further: float, draft_s: float, draft: Any = DRAFT
) -> Iterator[Pipeline]:
    """A pipeline with stages as slow as given (seconds)."""
    firsts = first if isinstance(first, list) else [first] * n
    with Pipeline.local(
        target=TARGET,
        draft=draft,
        stages=n,
        stretch=[Stretch(f, further) for f in firsts],
        draft_stretch=Stretch(draft_s),
        kv_type="q8_0",  # the draft's too: the oracle must round as the target does
    ) as pipeline:
        yield pipeline


# ---------------------------------------------------------------------------------------- overhead


def overhead(repeats: int, n: int, threads: int) -> dict[str, float]:
    """A 1-stage `off` pipeline against a bare loop, A B A B, same threads, same settings."""
    ratios, costs = [], []
    with Pipeline.local(target=TARGET, stages=1, mode="off", threads=threads, trace=True) as pipeline:
        bare = SliceContext(TARGET, n_ctx=1024, kv_type=pipeline.kv_type, n_threads=threads)
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
            console.print(f"  bare {a.speed:6.1f}  one stage {b.speed:6.1f} tokens/s  ratio {b.speed / a.speed:.3f}")
        bare.close()
    return {"ratio": statistics.median(ratios), "orchestration_ms": statistics.median(costs)}


def bare_loop(ctx: SliceContext, prompt: list[int], n: int) -> Timed:
    """Decode, argmax, repeat."""
    ctx.clear()
    out = Timed([], [])
    logits = prefill(ctx, prompt)
    seq = np.zeros(1, np.int32)
    for i in range(n):
        token = int(logits.argmax())
        out.ids.append(token)
        out.times.append(time.monotonic())
        logits = ctx.decode(np.array([token], np.int32), np.array([len(prompt) + i], np.int32), seq)[0]
    return out


# --------------------------------------------------------------------------------------- stretched


def record(draft: Any, n_prompts: int, n: int, eog: frozenset[int], vocabulary: Any) -> list[dict[str, Any]]:
    """Reference texts with the draft's teacher-forced guesses (see agreement.py)."""
    target, model = SliceContext(TARGET, n_ctx=1024, kv_type="q8_0"), SliceContext(draft, n_ctx=1024)
    out = []
    for row in load_prompts("completion", n_prompts):
        prompt = vocabulary.tokenize(row["text"], begin=True)
        text = greedy_text(target, prompt, n, eog)
        out.append({"prompt": prompt, "text": text, "guesses": guesses(model, prompt + text, len(prompt))})
    target.close()
    model.close()
    return out


def acceptance(records: list[dict[str, Any]]) -> float:
    hits = sum(g[0] == t for r in records for g, t in zip(r["guesses"], r["text"], strict=True))
    return hits / sum(len(r["text"]) for r in records)


def virtual(records: list[dict[str, Any]], curves: list[CostCurve], draft_s: float, settings: Settings) -> float:
    """Tokens a second of the virtual-time driver replaying the recorded texts."""
    parts = []
    for r in records:
        n = len(r["prompt"])
        text = r["prompt"] + r["text"] + [-1]
        said = {n + i: Guess(int(g[0]), g[1], int(g[2]), g[3]) for i, g in enumerate(r["guesses"])}
        cluster = Cluster(Replay(text, said), curves, settings, draft_s=draft_s)
        outcome = cluster.generate(r["prompt"], len(r["text"]))
        assert outcome.tokens == r["text"]
        parts.append(Timed(outcome.tokens, outcome.times))
    return pooled(parts)


def compare(
    pipeline: Pipeline,
    records: list[dict[str, Any]],
    lengths: list[int],
    cycle: Callable[[int], float],
    curves: list[CostCurve],
    draft_s: float,
) -> dict[str, Any]:
    """off, async and sync with each draft length, prompt by prompt in turn."""
    arms: dict[str, dict[str, Any]] = {"off": {"mode": "off"}, "async": {"mode": "async"}}
    arms |= {f"sync-{k}": {"mode": "sync", "draft_max": k} for k in lengths}
    parts: dict[str, list[Timed]] = {name: [] for name in arms}
    for i, r in enumerate(records):
        for name, changes in arms.items():
            result = timed(pipeline, r["prompt"], len(r["text"]), **changes)
            assert result.ids == r["text"], f"{name} wrote another text"
            parts[name].append(result)
        shown = "  ".join(f"{a} {p[-1].speed:.1f}" for a, p in parts.items())
        console.print(f"  prompt {i + 1}/{len(records)}: {shown}")
    speeds = {name: pooled(p) for name, p in parts.items()}
    best = max((n for n in arms if n.startswith("sync")), key=speeds.__getitem__)
    k = arms[best]["draft_max"]
    cycles = sum(p.runs for p in parts[best])
    closed = sum(len(p.ids) for p in parts[best]) / (cycles * cycle(k))
    settings = pipeline.settings
    virtual_async = virtual(records, curves, draft_s, replace(settings, mode="async"))
    virtual_off = virtual(records, curves, draft_s, replace(settings, mode="off"))
    virtual_sync = max(virtual(records, curves, draft_s, replace(settings, mode="sync", draft_max=k)) for k in lengths)
    a = acceptance(records)
    study = study_speeds(a, curves, draft_s, settings, lengths)
    return {
        "a": a,
        "off": speeds["off"],
        "async": speeds["async"],
        "best_sync": best,
        "sync": speeds[best],
        "async_over_off": speeds["async"] / speeds["off"],
        "async_over_sync": speeds["async"] / speeds[best],
        "sync_over_closed_form": speeds[best] / closed,
        "ttft_async_over_off": statistics.median(
            x.ttft / y.ttft for x, y in zip(parts["async"], parts["off"], strict=True)
        ),
        "virtual_async": virtual_async,
        "async_over_virtual": speeds["async"] / virtual_async,
        "virtual_async_over_off": virtual_async / virtual_off,
        "virtual_async_over_sync": virtual_async / virtual_sync,
        **study,
        "speeds": speeds,
    }


def study_speeds(
    a: float, curves: list[CostCurve], draft_s: float, settings: Settings, lengths: list[int]
) -> dict[str, float]:
    """Independent acceptances of the same rate, in virtual time: what bursts cost is the difference."""
    n = 1500
    world = independent(n + 20, a)

    def speed(**changes: Any) -> float:
        wide = replace(settings, n_ctx=n + 50, eog=frozenset(), **changes)
        return Cluster(world, curves, wide, draft_s=draft_s).generate(world.text[:8], n).tokens_per_s

    fast, off = speed(mode="async"), speed(mode="off")
    return {
        "independent_async_over_off": fast / off,
        "independent_async_over_sync": fast / max(speed(mode="sync", draft_max=k) for k in lengths),
    }


def curves_of(n: int, first: float | list[float], further: float) -> list[CostCurve]:
    firsts = first if isinstance(first, list) else [first] * n
    return [CostCurve.linear(f, further) for f in firsts]


def part_stretched(args: argparse.Namespace, draft: Any, further: float) -> dict[str, Any]:
    n_stages, first, draft_s = 4, 0.020, 0.002
    with stretched(n_stages, first, further, draft_s, draft) as pipeline:
        records = record(draft, args.prompts, args.tokens, pipeline.vocabulary.eog, pipeline.vocabulary)
        return compare(
            pipeline,
            records,
            args.lengths,
            lambda k: k * draft_s + n_stages * (first + k * further),
            curves_of(n_stages, first, further),
            draft_s,
        )


def part_uneven(args: argparse.Namespace) -> dict[str, Any]:
    """The target drafts for itself: an oracle."""
    with stretched(4, [0.020, 0.100, 0.100, 0.100], 0.0, 0.010, TARGET) as pipeline:
        parts = []
        for row in load_prompts("completion", args.prompts):
            prompt = pipeline.vocabulary.tokenize(row["text"], begin=True)
            parts.append(timed(pipeline, prompt, 2 * args.tokens, mode="async"))
            console.print(f"  {parts[-1].speed:.1f} tokens/s")
    accepted = pipeline.last.draft.acceptance if pipeline.last else None
    return {"tokens_per_s": pooled(parts), "oracle_acceptance": accepted}


# ------------------------------------------------------------------------------------------ report


BARS = {
    ("overhead", "ratio"): (">=", 0.90),
    ("overhead", "orchestration_ms"): ("<=", 0.35),
    ("stretched", "sync_over_closed_form"): (">=", 0.95),
    ("stretched", "async_over_virtual"): (">=", 0.90),
    ("weak", "async_over_off"): (">=", 0.97),
    ("free", "async_over_sync"): (">=", 0.97),
    ("uneven", "tokens_per_s"): (">=", 55.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=["overhead", "stretched", "weak", "free", "uneven"])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", type=lambda s: [int(x) for x in s.split(",")], default=list(range(1, 9)))
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    console.print(f"{platform.machine()}, Python {platform.python_version()}; real processes, stretched parts add time")
    parts = {
        "overhead": lambda: overhead(args.repeats, 2 * args.tokens, args.threads),
        "stretched": lambda: part_stretched(args, DRAFT, 0.006),
        "weak": lambda: part_stretched(args, WEAK, 0.006),
        "free": lambda: part_stretched(args, DRAFT, 0.0),
        "uneven": lambda: part_uneven(args),
    }
    figures: dict[str, Any] = {}
    for name in args.part or parts:
        console.rule(name)
        figures[name] = parts[name]()
    table = Table("part", "figure", "value", "bar")
    missed = 0
    for name, values in figures.items():
        for key, value in values.items():
            if isinstance(value, dict):
                continue
            sign, bar = BARS.get((name, key), ("", None))
            shown = f"{value:.3f}" if isinstance(value, float) else str(value)
            if bar is not None:
                holds = value >= bar if sign == ">=" else value <= bar
                missed += not holds
                table.add_row(name, key, shown, f"{sign} {bar} {'holds' if holds else 'MISSED'}")
            else:
                table.add_row(name, key, shown, "")
    console.print(table)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=1)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
