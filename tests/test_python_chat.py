"""`Pipeline.chat`, and what `Pipeline.local` takes in place of objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import GREEDY, hand_stages, local

from pipeinfer_cpp import Options, Pipeline, Sampling, UserError

SAID = {"role": "user", "content": "Tell me a story about a fox."}
MORE = {"role": "user", "content": "And then?"}


@pytest.fixture(scope="module")
def p() -> Iterator[Pipeline]:
    with local(stages=2, draft=None) as pipeline:
        yield pipeline


def test_a_text_a_list_and_parts_are_the_same(p: Pipeline) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": SAID["content"]}]}]
    forms: list[Any] = [SAID["content"], [SAID], (SAID,), parts]
    texts = {p.chat(form, max_tokens=12, sampling=GREEDY).wait().text for form in forms}
    assert len(texts) == 1 and texts != {""}
    raw = p.generate(str(SAID["content"]), max_tokens=12, sampling=GREEDY).wait()
    assert raw.n_prompt < p.chat([SAID], max_tokens=1, sampling=GREEDY).wait().n_prompt  # the template adds to it


def test_a_further_turn_computes_only_what_is_new(p: Pipeline) -> None:
    first = p.chat([SAID], max_tokens=12, sampling=GREEDY).wait()
    answer = {"role": "assistant", "content": first.text}
    generation = p.chat([SAID, answer, MORE], max_tokens=12, sampling=GREEDY)
    second = generation.wait()
    assert generation.job.goes_on
    held = generation.job.prompt[: first.n_prompt + first.n_generated - 1]
    assert list(held[first.n_prompt :]) == first.token_ids[: len(held) - first.n_prompt]
    assert second.n_prompt > len(held)
    other = p.chat([SAID, {**answer, "content": "No."}, MORE], max_tokens=12, sampling=GREEDY)
    other.wait()
    assert not other.job.goes_on
    p.chat([SAID], max_tokens=12, sampling=GREEDY).wait()
    p.generate("A dog", max_tokens=2).wait()
    between = p.chat([SAID, answer, MORE], max_tokens=2, sampling=GREEDY)
    between.wait()
    assert not between.job.goes_on


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        (None, TypeError),
        (3, TypeError),
        (b"Hi", TypeError),
        (SAID, TypeError),
        ([3], TypeError),
        (["Hi"], TypeError),
        ([{"role": "user"}], TypeError),
        ([{"role": "user", "content": None}], TypeError),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], TypeError),
        ([], UserError),
        ([{"role": "robot", "content": "Hi"}], UserError),
        ([{"role": [], "content": "Hi"}], UserError),
        ([{"role": "user", "content": "a\ud800"}], UserError),
        ([{"role": "assistant", "content": "Hi"}], UserError),
    ],
)
def test_messages_that_are_none(p: Pipeline, messages: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="messages"):
        p.chat(messages)
    assert p.chat("Hi", max_tokens=1).wait().n_generated <= 1


def test_the_seed_that_was_used_gives_the_text_again(p: Pipeline) -> None:
    results = [p.generate("A dog", max_tokens=12, sampling={"temp": 1.5}).wait() for _ in range(4)]
    assert len({r.seed for r in results}) == 4 and len({r.text for r in results}) > 1
    again = p.generate("A dog", max_tokens=12, sampling=Sampling(temp=1.5, seed=results[0].seed)).wait()
    assert (again.text, again.seed) == (results[0].text, results[0].seed)


def test_stages_by_their_addresses_in_one_text(tmp_path: Path) -> None:
    with hand_stages(tmp_path, 2) as stages:
        addresses = ", ".join(stage.address for stage in stages)
        with local(stages=addresses, draft=None) as pipeline:
            assert pipeline.generate("A dog", max_tokens=2, sampling=GREEDY).wait().n_generated == 2


def test_stages_and_clusters_as_text() -> None:
    assert Options(stages="tcp://[::1]:7000").stages == ("tcp://[::1]:7000",)
    assert Options(stages="tcp://a:1,tcp://b:2").n_stages == 2
    emulated: Any = {"emulate": "gigabit", "stages": 3}
    cluster = Options(**emulated).emulate
    assert cluster is not None and (cluster.name, cluster.n_stages) == ("gigabit", 3)
    for wrong in ("", "a:1", "tcp://a:1,tcp://a:1", []):
        with pytest.raises(UserError, match="stages"):
            Options(stages=wrong)
