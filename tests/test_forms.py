"""The form of an answer in a real pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from pipeline_helpers import PROMPT, local, text_of

from pipeinfer_cpp.errors import FormLost
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling

TOO_COMPLEX = Sampling(temp=0, regex="(.*a.{0,60}b.{0,60}){8,60}c")
"""llguidance gives up behind some thirty tokens: too many expressions."""
MODES = ("off", "sync", "async")


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with local(stages=2, mode="async") as pipeline:
        yield pipeline


def test_a_form_that_becomes_too_complex_ends_the_turn_and_not_the_pipeline(pipeline: Pipeline) -> None:
    pipeline.configure(mode="off")
    before = text_of(pipeline)
    told = r"cannot be kept to its form any further.* simpler form"
    with pytest.raises(FormLost, match=told) as caught:
        pipeline.generate(PROMPT, max_tokens=150, sampling=TOO_COMPLEX).wait()
    assert "Stage" not in str(caught.value) and caught.value.exit_code == 1
    assert text_of(pipeline) == before
    again = Sampling(temp=0, regex="[a-z]{3,9}!")
    assert pipeline.generate(PROMPT, max_tokens=20, sampling=again).wait().text.endswith("!")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_so_it_does_with_speculation(pipeline: Pipeline, mode: str) -> None:
    """How far llguidance comes depends on what was asked before: it may do, as checks of a few tokens are spread."""
    pipeline.configure(mode=mode)
    before = text_of(pipeline)
    with contextlib.suppress(FormLost):
        pipeline.generate(PROMPT, max_tokens=150, sampling=TOO_COMPLEX).wait()
    with contextlib.suppress(FormLost):
        sampled = Sampling(temp=0.8, seed=1, regex=TOO_COMPLEX.regex)
        pipeline.generate(PROMPT, max_tokens=60, sampling=sampled).wait()
    assert text_of(pipeline) == before


@pytest.mark.parametrize("temp", [0.0, 1.5])
def test_every_mode_writes_the_same_text_of_a_form(pipeline: Pipeline, temp: float) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "minimum": 5}},
        "required": ["name", "n"],
        "additionalProperties": False,
    }
    forms = [
        Sampling(temp=temp, seed=4, json_schema=schema),
        Sampling(temp=temp, seed=4, regex=r"([A-Z][a-z]{2,8} ){3,6}\."),
        Sampling(temp=temp, seed=4, lark='start: word (" " word)* "."\nword: /[a-z]{1,7}/'),
    ]
    for form in forms:
        texts = []
        for mode in MODES:
            pipeline.configure(mode=mode)
            texts.append(text_of(pipeline, n=40, sampling=form))
        assert texts == [texts[0]] * 3 and texts[0]
