"""A pipeline without a draft model, whose text guesses for itself: real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.pipeline import Pipeline

PROMPT = "The cat sat on the mat. The dog sat on the log. The cat sat on the mat. The dog sat on"


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline.local(pair="demo", draft="ngram", stages=2, ctx=512) as pipeline:
        yield pipeline


def test_it_writes_the_same_text_with_guesses_of_its_own(pipeline: Pipeline) -> None:
    assert pipeline.plan.draft is None and pipeline.settings.mode == "async"
    fast = list(pipeline.generate(PROMPT, max_tokens=60, sampling={"temp": 0.0}))
    pipeline.configure(mode="off")
    slow = list(pipeline.generate(PROMPT, max_tokens=60, sampling={"temp": 0.0}))
    pipeline.configure(mode="async")
    assert [token.id for token in fast] == [token.id for token in slow]
    assert any(token.origin == "ngram" for token in fast) and {token.origin for token in slow} == {"target"}


def test_a_mode_that_nobody_guesses_for_names_both_ways() -> None:
    with pytest.raises(UserError, match="draft FILE or draft ngram, or use mode off"):
        from pipeinfer_cpp.cluster.choices import chosen_models, chosen_settings
        from pipeinfer_cpp.gguf import Source
        from pipeinfer_cpp.models import load_registry

        target = load_registry(None).pair("demo").path("target")
        options = Options(target=target, mode="async")
        chosen_settings(options, chosen_models(options)[0], Source.open(target), None)
