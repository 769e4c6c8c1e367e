"""Generations timed by this benchmark's own clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling

GREEDY = Sampling(temp=0.0)


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
