"""Exact mode: every text of every pipeline is the reference's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from verify.cases import Case
from verify.report import Report

from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling

Say = Callable[[str], None]


def answer(pipeline: Pipeline, prompt: list[int], n: int, sampling: Sampling) -> Any:
    """The result of the next turn of the conversation that the stages hold."""
    return pipeline.generate(prompt, max_tokens=n, sampling=sampling, goes_on=True).wait()


def check(pipeline: Pipeline, row: tuple[str, ...], mode: str, cases: Iterable[Case], report: Report) -> None:
    """Let the pipeline write all cases; count the turns whose ids and text are as expected."""
    pipeline.configure(mode=mode)
    for case in cases:
        pipeline.forget()
        prompt, tails = case.prompt, [*case.further, []]
        key = (*row, "greedy" if case.sampling.greedy else f"temp {case.sampling.temp:g}")
        for turn, (expected, tail) in enumerate(zip(case.expected, tails, strict=True), 1):
            result = answer(pipeline, prompt, case.n, case.sampling)
            report.worked(mode, result)
            text = pipeline.vocabulary.text(expected)
            same = result.token_ids == expected and result.text == text and result.exact
            report.count(key, mode, same)
            if not same:
                report.differs(key, mode, f"{case.name}, turn {turn}", len(prompt), expected, result)
                break  # the next turn's prompt would be another one
            prompt = prompt + expected + tail
