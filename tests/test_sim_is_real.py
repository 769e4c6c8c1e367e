"""The simulation says of an emulated cluster what real processes do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pipeline_helpers import DRAFT, GREEDY, TARGET, local

from pipeinfer_cpp.emulation import load_cluster
from pipeinfer_cpp.lab.measurement import pooled
from pipeinfer_cpp.lab.recording import record
from pipeinfer_cpp.lab.simulation import Task, Virtual
from pipeinfer_cpp.pipeline import Pipeline

PROMPTS = ("Once upon a time there was a little fox who", "The old king had three sons. The youngest")
N = 32


def speed(p: Pipeline, prompt: list[int], text: list[int]) -> float:
    p.forget()
    result = p.generate(prompt, max_tokens=len(text), sampling=GREEDY).wait()
    assert result.token_ids == text and result.tokens_per_s is not None
    return result.tokens_per_s


@pytest.mark.parametrize("n", [4, 8])
def test_an_emulated_cluster_is_as_fast_as_its_simulation(n: int) -> None:
    """Within 10% on tokens/s, for `off` and for `async` replaying the same acceptances."""
    cluster = load_cluster("gigabit", n)
    with local(stages=n, emulate=cluster) as p:
        tokens = [p.vocabulary.tokenize(text, begin=True) for text in PROMPTS]
        recordings = record(TARGET, DRAFT, tokens, N, p.vocabulary.eog, kv_type=p.kv_type)
        tasks = [Task(r.world(), len(r.prompt), len(r.text)) for r in recordings]
        layers = [end - first for first, end in p.plan.ranges]
        virtual = Virtual(cluster.curves(layers), cluster.links, 4 * 512, cluster.draft_ms / 1000)
        for mode, n_texts in (("off", 1), ("async", 2)):  # nothing about a text matters to `off`
            p.configure(mode=mode)
            chosen = recordings[:n_texts]
            simulated = pooled([virtual.run(t, replace(p.settings, mode=mode)) for t in tasks[:n_texts]]).tokens_per_s
            ratios = []
            for _ in range(3):  # the machine may be busy: the best of three
                seconds = sum((len(r.text) - 1) / speed(p, r.prompt, r.text) for r in chosen)
                ratios.append(sum(len(r.text) - 1 for r in chosen) / seconds / simulated)
                if abs(ratios[-1] - 1) < 0.1:
                    break
            print(f"{n} nodes, {mode}: emulated {ratios} of the simulated {simulated:.2f} tokens/s")
            assert min(abs(r - 1) for r in ratios) < 0.1
