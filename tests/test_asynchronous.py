"""What a trace of stretched stages shows: nobody waits, and the dead are stopped."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from pipeline_helpers import GREEDY, PROMPT, local, text_of

from pipeinfer_cpp.net.messages import Stretch

N_STAGES = 3
MS = 1000.0


class Story:
    """A trace, sorted out. Times in microseconds."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
        self.spans: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.instants: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.in_flight = []
        for event in events:
            if event["ph"] == "X":
                self.spans[names[event["tid"]]].append(event)
            elif event["ph"] == "i":
                self.instants[event["name"].split()[0]].append(event)
            elif event["ph"] == "C":
                self.in_flight.append(event["args"]["in flight"])
        self.stages = [sorted(self.spans[f"stage-{i}"], key=lambda e: e["ts"]) for i in range(N_STAGES)]
        self.cancelled = {run: e["ts"] for e in self.instants["cancel"] for run in e["args"]["runs"]}


@pytest.fixture(scope="module")
def story() -> Story:
    return told(compared=True)


def told(compared: bool = False) -> Story:
    """A generation, told by its trace; its text compared with that of `off`."""
    with local(stages=N_STAGES, stretch=Stretch(0.02, 0.006), draft_stretch=Stretch(0.002), trace=True) as p:
        result = p.generate(PROMPT, max_tokens=48, sampling=GREEDY).wait()
        assert p.driver.trace is not None
        events = p.driver.trace.events()
        if compared:
            p.configure(mode="off")
            assert text_of(p, n=48) == result.text
    assert result.runs.aborted > 0 and result.runs.cancelled > 0
    return Story(events)


def overlap(a: dict[str, Any], b: dict[str, Any]) -> float:
    return max(0.0, min(a["ts"] + a["dur"], b["ts"] + b["dur"]) - max(a["ts"], b["ts"]))


def test_more_than_one_run_is_in_flight(story: Story) -> None:
    assert max(story.in_flight) >= N_STAGES
    together = sum(overlap(a, b) for a in story.stages[0] for b in story.stages[-1])
    busy = sum(e["dur"] for e in story.stages[-1])
    assert together > 0.2 * busy  # the first stage works on a later run while the last one computes


def test_the_draft_worker_is_busy_while_the_stages_are(story: Story) -> None:
    stages = [e for stage in story.stages for e in stage if e["dur"] > MS]
    drafts = [d for d in story.spans["draft"] if any(overlap(d, s) > 0.9 * d["dur"] for s in stages)]
    assert len(drafts) > 0.9 * len(story.spans["draft"]) > 40
    # It did not stop at a run's return either: some drafts began before a run came back and ended after it.
    backs = [e["ts"] for e in story.instants["back"]]
    assert any(d["ts"] < t < d["ts"] + d["dur"] for d in story.spans["draft"] for t in backs)


def test_a_final_token_is_dispatched_in_the_step_that_made_it_final(story: Story) -> None:
    """The run that carries it left before, or leaves before anything else happens, a draft least of all."""
    tokens = story.instants["token"]
    backs = sorted(e["ts"] for e in story.instants["back"])
    late = []
    for token in tokens[:-1]:  # the last one is dispatched by the next turn
        known = max(t for t in backs if t <= token["ts"])
        at = token["args"]["pos"]
        carried = [
            e["ts"]
            for e in story.instants["dispatch"]
            if e["args"]["pos"] <= at < e["args"]["pos"] + e["args"]["rows"]
            and story.cancelled.get(e["args"]["run"], token["ts"] + 1) > token["ts"]
        ]
        assert carried, f"the token at {at} never left"
        if min(carried) >= known:
            late.append(min(carried) - known)
            assert not [d for d in story.spans["draft"] if known < d["ts"] and d["ts"] + d["dur"] < min(carried)]
    assert len(late) > 5  # misses: their dispatch followed their verdict
    assert sorted(late)[len(late) // 2] < 1 * MS and max(late) < 5 * MS


def test_aborted_runs_end_within_5_ms_of_their_cancellation(story: Story) -> None:
    """Six processes on a few cores that others use too: the machine itself may add some milliseconds, so
    that one story of eight has to show it, for every run in it."""
    for attempt in range(8):
        waits = sorted(
            span["ts"] + span["dur"] - story.cancelled[span["args"]["run"]]
            for stage in story.stages
            for span in stage
            if span["args"]["outcome"] == "aborted"
        )
        assert len(waits) >= 10
        if waits[-1] < 5 * MS:
            return
        print(f"attempt {attempt}: the slowest took {waits[-1] / MS:.1f} ms")
        story = told()
    pytest.fail("in no story of eight did all aborted runs end within 5 ms")


def test_a_dead_run_costs_no_stage_anything_more(story: Story) -> None:
    """Once cancelled it begins nowhere; a run that was not cancelled is aborted nowhere."""
    for stage in story.stages:
        for span in stage:
            cancelled = story.cancelled.get(span["args"]["run"])
            if span["args"]["outcome"] == "done":
                assert cancelled is None or span["ts"] < cancelled + 5 * MS
            elif span["args"]["run"] not in story.cancelled:
                assert span["args"]["outcome"] == "skipped" and span["dur"] < 5 * MS  # an `end` header
