"""What a pipeline says of itself while it works."""

from __future__ import annotations

import pytest

from pipeinfer_cpp import Pipeline
from pipeinfer_cpp.cluster.live import KEPT, SHOWN, Figures
from pipeinfer_cpp.engine import Stats


def test_speed_and_acceptance_are_of_the_last_seconds() -> None:
    figures, stats = Figures(100.0), Stats()
    for i in range(100):
        stats.verdict(1, i < 75)
        figures.emitted(0, stats, 100.0 + i / 20)
    assert figures.speed(105.0) == pytest.approx(20.0, rel=0.1)
    assert figures.acceptance() == pytest.approx(35 / 60)  # of the last whole seconds with 50 verdicts
    assert figures.speed(130.0) == 0.0
    assert figures.acceptance() == pytest.approx(35 / 60)
    history = figures.history(105.0)
    assert len(history.tokens) == len(history.acceptance) == SHOWN
    assert sum(history.tokens) == figures.tokens == 100
    assert history.acceptance[-1] is None and history.acceptance[-2] == 0.0


def test_a_slots_next_turn_counts_from_nothing() -> None:
    figures = Figures(0.0)
    for turn in range(3):
        stats = Stats()
        stats.verdict(1, True)
        figures.emitted(0, stats, turn + 0.5)
        figures.emitted(0, stats, turn + 0.6)
        other = Stats()
        other.verdict(1, False)
        figures.emitted(1, other, turn + 0.7)
    assert figures.acceptance() == 0.5
    assert figures.tokens == 9


def test_load_is_the_share_of_time_in_which_a_stage_computed() -> None:
    figures = Figures(0.0)
    figures.computed(0, 2.0, 3000, 10.0)  # from 8 to 10
    assert figures.load(0, 10.0) == pytest.approx(1.0)
    assert figures.load(0, 11.0) == pytest.approx(0.5)
    assert figures.load(1, 10.0) == 0.0
    assert figures.sends(0, 10.5) == pytest.approx(3000 / 2.5)
    assert figures.load(0, 20.0) == figures.sends(0, 20.0) == 0.0
    figures.computed(0, 1e9, 0, 20.0)  # longer than is remembered: it does not take longer to count
    assert figures.load(0, 20.0) == 1.0


def test_figures_do_not_grow() -> None:
    figures = Figures(0.0)
    for second in range(10 * KEPT):
        figures.emitted(0, Stats(), second + 0.5)
        figures.event("something")
    assert len(figures._seconds) <= KEPT + 1
    assert len(figures.events) == 50


def test_a_pipeline_tells_what_it_does_while_it_generates() -> None:
    with Pipeline.local(pair="demo", stages=2, slots=2) as pipeline:
        before = pipeline.live()
        assert before.tokens == 0 and before.acceptance is None and before.runs_in_flight == 0
        assert before.model and before.draft and before.context == pipeline.settings.n_ctx
        assert [stage.layers for stage in before.stages] == pipeline.plan.ranges
        assert [slot.phase for slot in before.slots] == ["idle", "idle"]
        during = []
        generation = pipeline.generate("Once upon a time", max_tokens=200, sampling={"temp": 0.0})
        for i, _ in enumerate(generation):
            if i % 40 == 0:
                during.append(pipeline.live())
        result = generation.wait()
        after = pipeline.live()
        busy = [now for now in during if now.slots[0].phase == "decode"]
        assert busy and all(now.slots[1].phase == "idle" for now in during)
        assert all(now.slots[0].prompt_tokens == result.n_prompt for now in busy)
        assert [now.tokens for now in during] == sorted(now.tokens for now in during)
        assert after.tokens == result.n_generated
        assert after.tokens_per_s > 0 and 0 < after.acceptance <= 1
        assert all(0 < stage.load <= 1 and stage.bytes_out_per_s > 0 for stage in after.stages)
        assert any(now.runs_in_flight and any(s.run for s in now.stages) for now in during)
        assert after.runs_in_flight == 0 and after.slots[0].phase == "idle" and after.slots[0].cached > 0
        assert after.events[-1].text == f"Slot 0: {result.n_generated} tokens, ended by {result.finish_reason}."
