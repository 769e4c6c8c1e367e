"""A process that compares models with their slices: one fork each, so that llama.cpp may end any of them.

`python slicing_worker.py JOB...` prints a JSON list [job, outcome] for each. A job is the name of a model in
specimens, or `sabotage NAME`. Outcomes: "equal", "different: ...", "no cut: ...", or "broken: ..." (the test is).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sabotages import SABOTAGES, Sabotage
from specimens import specimen

from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.gguf import Cuts, LayerRange, Source, even_split, write_slice
from pipeinfer_cpp.gguf.architectures import rules_for
from pipeinfer_cpp.gguf.layers import Part
from pipeinfer_cpp.gguf.plan import SlicePlan
from pipeinfer_cpp.gguf.plan_keys import plan_keys
from pipeinfer_cpp.gguf.plan_tensors import plan_tensors
from pipeinfer_cpp.proof.chain import chained_logits, write_slices
from pipeinfer_cpp.proof.random_model import write_random
from pipeinfer_cpp.proof.shrink import n_experts, shrunk

EVERY_CUT = set(
    """llama qwen2 qwen3 qwen3moe qwen3next qwen35 qwen35moe gemma2 gemma3-default gemma4 gemma4-e gemma4-31b gpt-oss
    deepseek2 glm4moe glm-dsa-long mistral3 granite granitehybrid lfm2 nemotron_h_moe phi3 smollm3
    llama4""".split()  # noqa: SIM905
)
"""Models of which every allowed cut is tried, not only the middle and the finest split."""


def main(jobs: list[str]) -> None:
    for job in jobs:
        print(json.dumps([job, _forked(job)]), flush=True)


def _forked(job: str) -> str:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT), 2)
        try:
            outcome = _sabotaged(job.removeprefix("sabotage "), folder) if " " in job else _sliced(job, folder)
        except BaseException:
            outcome = f"broken: {traceback.format_exc()[-1500:]}"
        os.write(tell, outcome.encode())
        os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as file:
        outcome = file.read().decode()
    _, status = os.waitpid(child, 0)
    said = (folder / "stderr").read_text(errors="replace")[-300:]
    shutil.rmtree(folder)
    return outcome or f"different: ended with signal {os.WTERMSIG(status)}: {said}"


def _sliced(name: str, folder: Path) -> str:
    path = specimen(name).build(folder / "model.gguf")
    outcome = _all_equal(path, folder, every=name in EVERY_CUT)
    if outcome != "equal":
        return outcome
    source, small = Source.open(path), folder / "small"
    small.mkdir()
    keys = shrunk(source)
    write_random(small / "model.gguf", keys, wanted=source.tensors.__contains__, n_experts=n_experts(source))
    outcome = _all_equal(small / "model.gguf", small, every=False)
    return outcome if outcome == "equal" else f"shrunk: {outcome}"


def _all_equal(path: Path, folder: Path, every: bool) -> str:
    source = Source.open(path)
    whole = chained_logits([path], source.n_vocab)
    if not np.isfinite(whole).all() or whole.std() < 0.1:
        return f"broken: the model's logits have a spread of {whole.std()}"
    for split in _splits(source, every):
        off = np.abs(chained_logits(write_slices(source, split, folder), source.n_vocab) - whole).max()
        if off:
            return f"different: cut at {split}, off by {off}"
    return "equal"


def _splits(source: Source, every: bool) -> Iterator[list[LayerRange]]:
    cuts, n = Cuts(source), source.n_layers
    finest = cuts.finest()
    assert len(finest) > 1, f"no cut is allowed: {cuts.refusal_at(n // 2)}"
    yield finest
    if every:
        yield from ([(0, i), (i, n)] for i in range(1, n) if not cuts.refusal_of(0, i) and not cuts.refusal_of(i, n))
    elif len(finest) > 2:
        yield cuts.nearest(even_split(n, 2))


def _sabotaged(name: str, folder: Path) -> str:
    sabotage: Sabotage = SABOTAGES[name]
    path = specimen(sabotage.model).build(folder / "model.gguf")
    source = Source.open(path)
    whole = chained_logits([path], source.n_vocab)
    assert np.isfinite(whole).all()
    paths, changed = [], sabotage.cuts is not None and any(
        Cuts(source).refusal_of(first, end) for first, end in sabotage.split(source)
    )
    for first, end in sabotage.split(source):
        plan = _plan_of_any(source, first, end)
        sabotaged = sabotage.change(plan)
        changed = changed or sabotaged != plan
        paths.append(folder / f"slice-{first}.gguf")
        write_slice(sabotaged, paths[-1])
    if not changed:
        return "broken: the sabotage changes nothing and the cuts are allowed"
    try:
        off = np.abs(chained_logits(paths, source.n_vocab) - whole).max()
    except PipeInferError as error:
        return f"different: {error}"
    return f"different: off by {off}" if off else "equal"


def _plan_of_any(source: Source, first: int, end: int) -> SlicePlan:
    """A plan also where `slice_plan` would refuse the cuts."""
    part = Part(source, rules_for(source), first, end)
    tensors = plan_tensors(part)
    renamed = {step.name: step.target for step in tensors if step.origin and step.target}
    return SlicePlan(source, first, end, tuple(plan_keys(part, renamed)), tuple(tensors))


if __name__ == "__main__":
    main(sys.argv[1:])
