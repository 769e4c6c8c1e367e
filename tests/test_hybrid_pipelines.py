"""Hybrid targets and drafts in real processes: one text in every mode and split, cancelled and continued."""

from __future__ import annotations

import os
import signal
from itertools import islice
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from hybrid_models import speaking
from tiny_models import Tiny, build

from pipeinfer_cpp import Pipeline, Sampling
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.messages import Stretch

PROMPT = "Once upon a time there was"
SLOW = {"stretch": Stretch(0.006, 0.001), "draft_stretch": Stretch(0.001)}


def conversation(pipeline: Pipeline, sampling: Sampling) -> tuple[list[str], int]:
    """A turn, one that is cancelled after five tokens, one that goes on from there, and the first again.
    Also: how many runs were cancelled."""
    first = pipeline.generate(PROMPT, max_tokens=40, sampling=sampling).wait()
    second = PROMPT + first.text + " And then"
    said = "".join(token.text for token in islice(pipeline.generate(second, max_tokens=40, sampling=sampling), 5))
    third = pipeline.generate(second + said + " but", max_tokens=24, sampling=sampling).wait()
    again = pipeline.generate(PROMPT, max_tokens=40, sampling=sampling).wait()
    assert again.text == first.text
    return [first.text, said, third.text], sum(r.runs.cancelled for r in (first, third, again))


@pytest.mark.parametrize("name", ["qwen35", "nemotron_h_moe", "lfm2", "deepseek4"])
def test_one_text_in_every_mode_and_split(name: str, tmp_path: Path) -> None:
    target = speaking(tmp_path / "target.gguf", name)
    if name == "deepseek4":  # a draft of that kind would be too slow here: another, which always misses
        draft = build(tmp_path / "draft.gguf", Tiny(tied=False))
    else:  # nearly the same model: hits and misses
        draft = speaking(tmp_path / "draft.gguf", name, GGMLQuantizationType.F32)
    texts, cancelled = [], 0
    for stages in (1, 2):
        with Pipeline.local(target=target, draft=draft, stages=stages, ctx=512, **SLOW) as pipeline:
            assert pipeline.exact and pipeline.settings.checkpoints
            for mode in ("off", "sync", "async"):
                pipeline.configure(mode=mode)
                pipeline.forget()
                greedy, dead = conversation(pipeline, Sampling(temp=0))
                drawn, dead_too = conversation(pipeline, Sampling(seed=3))
                texts.append([*greedy, *drawn])
                cancelled += dead + dead_too
                tip = len(pipeline.driver.engine.slots[0].cached) - 1
                assert pipeline.driver.held == {f"stage-{i}": (tip, -1) for i in range(stages)}
    assert all(text == texts[0] for text in texts), texts
    assert texts[0][0] != texts[0][3] and cancelled


@pytest.mark.parametrize("name", ["qwen35", "lfm2"])
def test_a_stage_that_is_killed_loses_no_state(name: str, tmp_path: Path) -> None:
    target = speaking(tmp_path / "target.gguf", name)
    draft = speaking(tmp_path / "draft.gguf", name, GGMLQuantizationType.F32)
    with Pipeline.local(target=target, draft=draft, stages=2, ctx=512, **SLOW) as pipeline:

        def turns(kill: bool) -> list[list[tuple[int, float]]]:
            pipeline.forget()
            tokens, said = pipeline.vocabulary.tokenize(PROMPT, begin=True), []
            for n in (12, 40, 12):
                answer = []
                for token in pipeline.generate(tokens, max_tokens=n, sampling=Sampling(seed=3), goes_on=True):
                    answer.append((token.id, token.logprob))
                    if kill and len(answer) == 10:
                        os.kill(pipeline.processes[n % 3].pid, signal.SIGKILL)
                said.append(answer)
                tokens += [token for token, _ in answer if token >= 0]
                tokens += pipeline.vocabulary.tokenize(" And", begin=False)
            return said

        assert turns(kill=True) == turns(kill=False)


def test_a_hybrid_draft_of_a_target_that_is_none(tmp_path: Path) -> None:
    """At each miss the draft goes back to a state that it kept; it is not lost."""
    target = build(tmp_path / "target.gguf", Tiny(tied=False))
    draft = speaking(tmp_path / "draft.gguf", "qwen35")
    with Pipeline.local(target=target, draft=draft, ctx=512, **SLOW) as pipeline:
        assert not pipeline.settings.checkpoints
        speculated = pipeline.generate(PROMPT, max_tokens=40, sampling=Sampling(temp=0)).wait()
        assert speculated.draft.rejected > 5 and not speculated.warnings
        pipeline.configure(mode="off")
        assert pipeline.generate(PROMPT, max_tokens=40, sampling=Sampling(temp=0)).wait().text == speculated.text


def test_side_branches_are_refused(tmp_path: Path) -> None:
    target = speaking(tmp_path / "target.gguf", "qwen35")
    with pytest.raises(UserError, match="branches=1"):
        Pipeline.local(target=target, draft=target, branches=3, ctx=512)
