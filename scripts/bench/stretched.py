"""Real pipelines whose stages and draft are made as slow as given: `async` against `off` and `sync`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agreement import TARGET, load_prompts
from bench.timing import Timed, pooled, timed
from bench.virtual import study_speeds, virtual
from rich.console import Console

from pipeinfer_cpp.engine import CostCurve
from pipeinfer_cpp.lab.recording import Recording, acceptance, record
from pipeinfer_cpp.net.messages import Stretch
from pipeinfer_cpp.pipeline import Pipeline

KV_TYPE = "q8_0"  # the draft's too: an oracle must round as the target does


@dataclass(frozen=True)
class Speeds:
    """Seconds: each stage's for a run of one row, what a further row costs, the draft's for a token."""

    firsts: tuple[float, ...]
    further: float
    draft: float

    @property
    def curves(self) -> list[CostCurve]:
        return [CostCurve.linear(first, self.further) for first in self.firsts]

    def cycle(self, k: int) -> float:
        """Classic speculation by hand: draft k tokens, then k + 1 rows through all stages."""
        return k * self.draft + sum(first + k * self.further for first in self.firsts)


@contextmanager
def stretched(speeds: Speeds, draft: Path) -> Iterator[Pipeline]:
    """A pipeline with stages as slow as given."""
    with Pipeline.local(
        target=TARGET,
        draft=draft,
        stages=len(speeds.firsts),
        stretch=[Stretch(first, speeds.further) for first in speeds.firsts],
        draft_stretch=Stretch(speeds.draft),
        kv_type=KV_TYPE,
    ) as pipeline:
        yield pipeline


def recorded(pipeline: Pipeline, draft: Path, kind: str, n_prompts: int, n: int) -> list[Recording]:
    """Reference texts with the draft's teacher-forced guesses (see agreement.py): the first prompts whose
    answer is at least half as long as it may be, as a short one has no speed."""
    eog, tokenize = pipeline.vocabulary.eog, pipeline.vocabulary.tokenize
    found: list[Recording] = []
    for row in load_prompts(kind, None):
        (one,) = record(TARGET, draft, [tokenize(row["text"], begin=True)], n, eog, kv_type=KV_TYPE)
        found += [one] if len(one.text) >= n // 2 else []
        if len(found) == n_prompts:
            break
    return found


def compare(
    console: Console, speeds: Speeds, draft: Path, kind: str, n_prompts: int, n: int, lengths: list[int]
) -> dict[str, Any]:
    """`off`, `async` and `sync` with each draft length, prompt by prompt in turn."""
    with stretched(speeds, draft) as pipeline:
        records = recorded(pipeline, draft, kind, n_prompts, n)
        parts = measure(console, pipeline, records, lengths)
        settings = pipeline.settings
    tokens_per_s = {name: pooled(p) for name, p in parts.items()}
    best = max((name for name in parts if name.startswith("sync")), key=tokens_per_s.__getitem__)
    k = int(best.removeprefix("sync-"))
    closed_form = sum(len(p.ids) for p in parts[best]) / (sum(p.runs for p in parts[best]) * speeds.cycle(k))

    def simulated(**changes: Any) -> float:
        return virtual(records, speeds.curves, speeds.draft, replace(settings, **changes))

    fast = simulated(mode="async")
    first_tokens = zip(parts["async"], parts["off"], strict=True)
    return {
        "acceptance": acceptance(records),
        "off": tokens_per_s["off"],
        "best_sync": best,
        "sync": tokens_per_s[best],
        "async": tokens_per_s["async"],
        "sync_over_closed_form": tokens_per_s[best] / closed_form,
        "async_over_off": tokens_per_s["async"] / tokens_per_s["off"],
        "async_over_sync": tokens_per_s["async"] / tokens_per_s[best],
        "virtual_async_over_off": fast / simulated(mode="off"),
        "virtual_async_over_sync": fast / max(simulated(mode="sync", draft_max=k) for k in lengths),
        "async_over_virtual": tokens_per_s["async"] / fast,
        **study_speeds(acceptance(records), speeds.curves, speeds.draft, settings, lengths),
        "ttft_async_over_off": statistics.median(a.ttft / b.ttft for a, b in first_tokens),
        "tokens_per_s": tokens_per_s,
    }


def measure(
    console: Console, pipeline: Pipeline, records: list[Recording], lengths: list[int]
) -> dict[str, list[Timed]]:
    """All arms, interleaved. Each must write the reference text."""
    arms: dict[str, dict[str, Any]] = {"off": {"mode": "off"}, "async": {"mode": "async"}}
    arms |= {f"sync-{k}": {"mode": "sync", "draft_max": k} for k in lengths}
    parts: dict[str, list[Timed]] = {name: [] for name in arms}
    for i, r in enumerate(records):
        for name, changes in arms.items():
            result = timed(pipeline, r.prompt, len(r.text), **changes)
            if result.ids != r.text:
                raise SystemExit(f"{name} wrote another text than the bare loop: no speed of it counts.")
            parts[name].append(result)
        shown = "  ".join(f"{name} {p[-1].speed:.1f}" for name, p in parts.items())
        console.print(f"  prompt {i + 1}/{len(records)}: {shown}")
    return parts


def oracle(console: Console, speeds: Speeds, n_prompts: int, n: int) -> dict[str, Any]:
    """The target drafts for itself: a draft that is always right."""
    parts, accepted = [], []
    with stretched(speeds, TARGET) as pipeline:
        for row in load_prompts("completion", n_prompts):
            prompt = pipeline.vocabulary.tokenize(row["text"], begin=True)
            parts.append(timed(pipeline, prompt, n, mode="async"))
            assert pipeline.last is not None
            accepted.append(pipeline.last.draft.acceptance)
            console.print(f"  {parts[-1].speed:.1f} tokens/s")
    return {"tokens_per_s_of_async": pooled(parts), "acceptance": statistics.mean(accepted)}
