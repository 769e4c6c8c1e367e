"""Several conversations over one pipeline of real processes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from pipeline_helpers import DRAFT, PROMPT, local

from pipeinfer_cpp.cluster.fit import Fit
from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.generation import Generation
from pipeinfer_cpp.line import Line
from pipeinfer_cpp.net.messages import Stretch
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.results import Result
from pipeinfer_cpp.sampling import Sampling

PROMPTS = [
    PROMPT,
    "The sun was",
    "A girl named Lily went to the park and " * 12,
    "Tom had a big red ball. One day",
    "The old man",
]
SLOTS, N = 3, 32


def sampling(i: int) -> Sampling:
    return Sampling(temp=0.8 if i % 2 else 0, seed=i)


@pytest.fixture(scope="module")
def alone() -> list[Result]:
    """Each prompt on a pipeline that has nothing else to do."""
    with local(stages=2, ctx=512, draft=None) as p:
        results = []
        for i, prompt in enumerate(PROMPTS):
            p.forget()
            results.append(p.generate(prompt, max_tokens=N, sampling=sampling(i)).wait())
        return results


@pytest.fixture(scope="module", params=["async", "sync", "off"])
def pipeline(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """Stages slow enough that runs of several conversations meet."""
    draft = None if request.param == "off" else DRAFT
    with local(slots=SLOTS, stages=2, ctx=512, mode=request.param, draft=draft, stretch=Stretch(0.004, 0.001)) as p:
        yield p


def test_each_says_what_it_says_alone(pipeline: Pipeline, alone: list[Result]) -> None:
    """More conversations than slots, each in a thread of its own, three times over."""
    free = threading.Semaphore(SLOTS)
    said: dict[int, list[str]] = {i: [] for i in range(len(PROMPTS))}

    def converse(i: int) -> None:
        line = pipeline.conversation()
        for _ in range(3):
            with free:
                result = line.generate(PROMPTS[i], max_tokens=N, sampling=sampling(i)).wait()
            said[i].append(result.text)

    threads = [threading.Thread(target=converse, args=(i,)) for i in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {i: [alone[i].text] * 3 for i in said}


def test_turns_go_on_in_a_slot_that_others_had_meanwhile(pipeline: Pipeline) -> None:
    """Five conversations of three turns over three slots: evicted ones come back in the bits they had."""

    def turn(line: object, tokens: list[int], i: int) -> None:
        tokens += pipeline.vocabulary.tokenize(PROMPTS[i][:60], begin=not tokens)
        generation: Generation = line.generate(tokens, max_tokens=8, sampling=sampling(1), goes_on=True)  # type: ignore[attr-defined]
        tokens += [token.id for token in generation if token.id >= 0]

    expected = []
    for i in range(5):
        line, tokens = pipeline.conversation(), list[int]()
        for _ in range(3):
            turn(line, tokens, i)
        expected.append(tokens)
        line.close()
    lines = [(pipeline.conversation(), list[int]()) for _ in range(5)]
    for _ in range(3):
        for i, (line, tokens) in enumerate(lines):
            turn(line, tokens, i)
    assert [tokens for _, tokens in lines] == expected
    for line, _ in lines:
        line.close()


Said = list[tuple[int, float]]
"""Tokens and their log-probabilities."""


def next_turn(pipeline: Pipeline, line: Line, i: int, said: Said) -> int:
    """The next turn of conversation `i`. Returns the rows computed."""
    words = " ".join(PROMPTS[(i + len(said)) % 5 :]) + " " if not said else PROMPTS[i]
    prompt = [*line.past().tokens, *pipeline.vocabulary.tokenize(words, begin=not said)]
    generation = line.generate(prompt, max_tokens=8, sampling=sampling(i), goes_on=True)
    said += [(token.id, token.logprob) for token in generation]
    assert generation.result is not None
    return generation.result.runs.rows


@pytest.mark.parametrize(("budget", "found"), [(0, "none"), (400, "some"), (None, "all")])
def test_evicted_conversations_come_back_bit_for_bit(
    budget: int | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five of them over two slots, by computing their cells again and with cells that the stages kept:
    log-probabilities are those of conversations that stayed."""
    if budget is not None:
        monkeypatch.setattr(Fit, "stash", lambda _fit, _n_ctx: budget)
    with local(slots=2, stages=2, ctx=512, mode="off", draft=None) as p:
        expected: list[Said] = [[] for _ in range(5)]
        stayed = 0
        for i, said in enumerate(expected):
            line = p.conversation(f"alone {i}")
            stayed += sum(next_turn(p, line, i, said) for _ in range(3))
            line.close()
        lines = [(p.conversation(f"one of many {i}"), Said()) for i in range(5)]
        order = [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4]
        rows = sum(next_turn(p, lines[i][0], i, lines[i][1]) for i in order)
        assert [said for _, said in lines] == expected
        assert (rows == stayed) == (found == "all")
        assert len(p.driver.engine.kept) in {"none": (0,), "some": (1, 2), "all": (3,)}[found]
        for line, _ in lines:
            line.close()
        p.driver.run(lambda: None)
        assert not any(line.stashed for line, _ in lines) and not p.driver.engine.kept


def test_one_more_than_there_are_slots_is_refused(pipeline: Pipeline) -> None:
    lines = [pipeline.conversation() for _ in range(SLOTS + 1)]
    under_way = [line.generate(PROMPT, max_tokens=200, sampling=sampling(1)) for line in lines[:SLOTS]]
    with pytest.raises(PipeInferError, match=r"All 3 slots .* are busy"):
        lines[SLOTS].generate(PROMPT)
    with pytest.raises(PipeInferError, match="This conversation generates one text at a time"):
        lines[0].generate(PROMPT)
    under_way[0].close()
    assert lines[SLOTS].generate(PROMPT, max_tokens=2, sampling=sampling(0)).wait().n_generated == 2
    for generation in under_way[1:]:
        generation.close()


def test_asyncio(pipeline: Pipeline, alone: list[Result]) -> None:
    async def text(i: int) -> str:
        line = pipeline.conversation()
        return "".join([t.text async for t in line.generate(PROMPTS[i], max_tokens=N, sampling=sampling(i))])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(text(i) for i in range(SLOTS)))

    assert asyncio.run(all_of_them()) == [result.text for result in alone[:SLOTS]]


def test_one_that_is_stopped_or_dropped_disturbs_nobody(pipeline: Pipeline, alone: list[Result]) -> None:
    line = pipeline.conversation()
    for i in range(6):
        others = pipeline.conversation()
        generation = others.generate(PROMPTS[i % 5], max_tokens=200, sampling=sampling(1))
        main = line.generate(PROMPTS[0], max_tokens=N, sampling=sampling(0))
        next(generation)
        if i % 2:
            generation.close()
        del others, generation
        gc.collect()
        assert main.wait().text == alone[0].text


def test_what_begins_alike_is_read_once(pipeline: Pipeline, alone: list[Result]) -> None:
    """Of one owner; another one's cells are never used."""
    prompt = PROMPTS[2]
    rows = []
    for owner in ("a", "a", "b"):
        line = pipeline.conversation(owner)
        line.forget()
        result = line.generate(prompt, max_tokens=N, sampling=sampling(2)).wait()
        assert result.text == alone[2].text
        assert line.job is not None
        rows.append(result.n_prompt - line.job.cached)  # of the prompt: those of guesses are as many as time allows
        line.close()
    # a's first prompt may stand in any slot; nobody had it before, and b reads it anew
    assert rows[1] <= rows[0] - 64 and abs(rows[2] - rows[0]) < 64


def test_a_stage_that_is_killed_disturbs_nobody(pipeline: Pipeline) -> None:
    """All conversations go on, each bit for bit: under way, at rest, or in no slot."""

    def turn(line: Line, tokens: list[int], i: int, n: int) -> Generation:
        tokens += pipeline.vocabulary.tokenize(PROMPTS[i][:60], begin=not tokens)
        return line.generate(tokens, max_tokens=n, sampling=sampling(i), goes_on=True)

    def talk(kill: bool) -> list[list[tuple[int, float]]]:
        lines = [(pipeline.conversation(), list[int]()) for _ in range(4)]
        said: list[list[tuple[int, float]]] = [[] for _ in lines]
        for n in (8, 24, 8):
            for some in ((0, 1, 2), (3,)):  # the last one takes a slot from another
                under_way = [(i, turn(*lines[i], i, n)) for i in some]
                first = iter(under_way[0][1])
                token = next(first)
                said[some[0]].append((token.id, token.logprob))
                if kill and n == 24:
                    os.kill(pipeline.processes[0].pid, signal.SIGKILL)
                for i, generation in under_way:
                    for token in first if i == some[0] else generation:
                        if token.id >= 0:
                            said[i].append((token.id, token.logprob))
                    assert generation.result is not None
                    lines[i][1].extend(generation.result.token_ids)
        for line, _ in lines:
            line.close()
        return said

    assert talk(kill=True) == talk(kill=False)


def test_side_branches(alone: list[Result]) -> None:
    """Not exact: cells are shared, and texts may part where two tokens are nearly equal."""
    with local(slots=2, stages=2, ctx=256, branches=3, stretch=Stretch(0.004, 0.001)) as p:
        lines = [p.conversation() for _ in range(2)]
        for _ in range(3):
            under_way = [
                line.generate(PROMPTS[i], max_tokens=N, sampling=sampling(i)) for i, line in enumerate(lines)
            ]
            assert all(g.wait().n_generated == N for g in under_way)
        held = next(iter(p.driver.held.values()))
        assert all(last == -1 for last in held[2:])
