"""A pipeline in a process of its own: for each mode that comes in as a line, a generation and a JSON line.

python arm.py '{"cluster": "gigabit", "stages": ["tcp://10.77.0.2:7711"], ...}'     # see Job
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from pipeinfer_cpp import pipeline as pipelines
from pipeinfer_cpp.cluster.plan import Plan, make_plan
from pipeinfer_cpp.emulation import load_cluster
from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.gguf import Source, even_split
from pipeinfer_cpp.net.messages import Stretch
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.system.machine import Share

PROMPTS = (
    "Once upon a time there was a little fox who",
    "One day a girl found a red ball and",
    "The old man lived by the",
)


class Job(msgspec.Struct, frozen=True):
    """`stages`: addresses (nodes are emulated, links are real), or a number (both are emulated)."""

    cluster: str
    n_stages: int
    target: str
    draft: str
    stages: list[str] | int
    tokens: int


def options(job: Job) -> dict[str, Any]:
    cluster = load_cluster(job.cluster, job.n_stages)
    common = {"target": job.target, "draft": job.draft, "stages": job.stages, "threads": 1}
    if isinstance(job.stages, int):
        return {**common, "emulate": cluster}
    layers = [end - first for first, end in even_split(Source.open(job.target).n_layers, job.n_stages)]
    return {**common, "stretch": cluster.stretches(layers), "draft_stretch": Stretch(cluster.draft_ms / 1000)}


def sleeping(*args: Any) -> Plan:
    """The plan, but nobody waits actively: all nodes of both arms share this machine's cores."""
    plan = make_plan(*args)
    plan.share = Share(1, plan.share.processes, 1)
    return plan


def serve(job: Job) -> None:
    pipelines.make_plan = sleeping
    with pipelines.Pipeline.local(**options(job)) as pipeline:
        print(json.dumps({"ready": True}), flush=True)
        for n, line in enumerate(sys.stdin):
            mode = line.strip()
            pipeline.configure(mode=mode)
            pipeline.forget()
            prompt = PROMPTS[n // 2 % len(PROMPTS)]
            result = pipeline.generate(prompt, max_tokens=job.tokens, sampling=Sampling(temp=0)).wait()
            print(json.dumps({"mode": mode, "tokens_per_s": result.tokens_per_s, "text": result.text}), flush=True)


if __name__ == "__main__":
    try:
        serve(msgspec.json.decode(sys.argv[1], type=Job))
    except PipeInferError as error:
        print(json.dumps({"error": str(error), "code": error.exit_code}), flush=True)
