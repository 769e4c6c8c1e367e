"""Traces as pictures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pipeline_helpers import GREEDY, PROMPT, local

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.lab.gantt import draw, page
from pipeinfer_cpp.lab.timeline import FATES, Timeline, read_timeline
from pipeinfer_cpp.net.messages import Stretch
from pipeinfer_cpp.results import Result


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    with local(stages=3, stretch=Stretch(0.02, 0.006), draft_stretch=Stretch(0.002), trace=True) as p:
        result = p.generate(PROMPT, max_tokens=40, sampling=GREEDY).wait()
        p.write_trace(path)
    return path, result


def test_every_run_has_the_fate_that_was_counted(traced: tuple[Path, Result]) -> None:
    path, result = traced
    timeline = read_timeline(path)
    assert list(timeline.tracks) == ["draft", "stage-0", "stage-1", "stage-2"]
    assert len(timeline.tokens) == result.n_generated
    origins = Counter(origin for _, _, origin in timeline.tokens)
    assert origins["draft"] + origins["sibling"] == result.draft.accepted
    fates: dict[str, set[str]] = {}
    for name, spans in timeline.tracks.items():
        for span in spans if name != "draft" else ():
            fates.setdefault(span.about.partition(":")[0], set()).add(span.fate)
    seen = Counter(fate for of_run in fates.values() for fate in of_run)
    assert set(seen) <= set(FATES)
    assert seen["aborted"] == result.runs.aborted
    dead = [of_run for of_run in fates.values() if of_run & {"aborted", "cancelled in queue", "dead, computed"}]
    assert len(dead) == result.runs.cancelled and seen["accepted"] > 5 and seen["prompt"] == 1


def test_a_colour_is_what_happened_there(traced: tuple[Path, Result]) -> None:
    """A run that was computed on one stage, aborted on the next and skipped on the last has three colours."""
    told = {"done": "dead, computed", "aborted": "aborted", "skipped": "cancelled in queue"}
    mixed = set()
    for name, spans in read_timeline(traced[0]).tracks.items():
        for span in spans if name != "draft" else ():
            if span.fate in told.values():
                assert span.fate == told[span.about.rpartition(", ")[2]]
                mixed.add(span.fate)
    assert len(mixed) >= 2


def test_all_draft_spans_are_there(traced: tuple[Path, Result]) -> None:
    path, result = traced
    timeline = read_timeline(path)
    assert len(timeline.tracks["draft"]) >= result.draft.proposed > 0


def test_a_cut(traced: tuple[Path, Result]) -> None:
    whole = read_timeline(traced[0])
    part = whole.cut(0.2, 0.4)
    assert 0 < len(part.tracks["stage-0"]) < len(whole.tracks["stage-0"])
    assert all(0.2 <= at <= 0.4 for at, _, _ in part.tokens)


def test_the_trace_is_what_perfetto_opens(traced: tuple[Path, Result]) -> None:
    events = json.loads(traced[0].read_text())["traceEvents"]
    assert {e["ph"] for e in events} == {"M", "X", "i", "C"}
    for event in events:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int) and isinstance(event["name"], str)
        if event["ph"] != "M":
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] > 0


def test_the_page_needs_nothing_else(traced: tuple[Path, Result]) -> None:
    timeline = read_timeline(traced[0])
    text = page(timeline, "a <b> & c")
    assert not re.search(r"https?://|src=|href=", text) and "<title>a &lt;b&gt; &amp; c</title>" in text
    data = json.loads(re.search(r"const data = (\{.*?\}), row = ", text, re.S)[1])  # type: ignore[index]
    assert {name: len(spans) for name, spans in data["tracks"].items()} == {
        name: len(spans) for name, spans in timeline.tracks.items()
    }


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_pictures(traced: tuple[Path, Result], tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / f"timeline.{kind}"
    draw(read_timeline(traced[0]), out)
    assert out.stat().st_size > 5000


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipeinfer_cpp", "trace", *args], capture_output=True, text=True)


def test_the_command(traced: tuple[Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "timeline.html"
    done = command(str(traced[0]), "-o", str(out), "--from", "0.1", "--to", "0.5")
    assert done.returncode == 0 and done.stdout.strip() == str(out) and "canvas" in out.read_text()


BAD = ["", "{", "[]", "{}", '{"traceEvents": 3}', '{"traceEvents": [{"ph": "X"}]}', '{"traceEvents": []}']


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_trace(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"is not a trace"):
        read_timeline(path)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["nowhere.json"], "nowhere.json cannot be read"),
        ([__file__], "is not a trace"),
        (["TRACE", "-o", "x.gif"], "must end in"),
        (["TRACE", "-o", "/nowhere/x.html"], "folder does not exist"),
        (["TRACE", "--from", "2", "--to", "1"], "--from and --to"),
        (["TRACE", "--from", "1000"], "--from 1000 is beyond the end of the trace"),
    ],
)
def test_bad_input(traced: tuple[Path, Result], args: list[str], sentence: str) -> None:
    done = command(*(str(traced[0]) if a == "TRACE" else a for a in args))
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_timeline_without_a_draft() -> None:
    assert Timeline({"stage-0": []}, []).length == 0.0
