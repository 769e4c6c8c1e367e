"""`pipeinfer bench` with real pipelines."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipeline_helpers import local, worker_pids

from pipeinfer_cpp.lab.cells import tokens_of
from pipeinfer_cpp.lab.suites import Suite

SMALL = ["--prompts", "1", "-n", "16", "--rounds", "1"]


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "pipeinfer_cpp", "bench", *args]


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=170)


def test_modes_side_by_side_with_a_receipt_a_recording_and_a_profile(tmp_path: Path) -> None:
    out, record, profile = tmp_path / "b.json", tmp_path / "r.json", tmp_path / "p.toml"
    done = bench(
        "--prompts",
        "2",
        "-n",
        "24",
        "--rounds",
        "2",
        "-o",
        str(out),
        "--record",
        str(record),
        "--profile",
        str(profile),
    )
    assert done.returncode == 0, done.stderr
    assert "MEASURED" in done.stdout and "over the first" in done.stdout
    (cell,) = json.loads(out.read_text())
    comparison = cell["comparison"]
    assert comparison["same_text"] and set(comparison["arms"]) == {"off", "sync:4", "async"}
    receipt = comparison["receipt"]
    assert len(receipt["target"]) == len(receipt["draft"]) == 16 and len(set(receipt["output"].values())) == 1
    fast = comparison["arms"]["async"]
    assert fast["tokens"] <= 96 and fast["runs_sent"] > 0 and len(fast["link_bytes"]) == 3
    assert fast["link_bytes"][1] > 2048 and 0 < max(fast["utilisation"]) <= 1 and fast["memory_mb"]["stage-0"] > 10
    replayed = subprocess.run(
        [sys.executable, "-m", "pipeinfer_cpp", "simulate", str(profile), "--replay", str(record), "--width", "512"],
        capture_output=True,
        text=True,
    )
    assert replayed.returncode == 0 and "SIMULATED" in replayed.stdout, replayed.stderr
    # The same once more: every cell is there already, and against itself nothing is slower.
    old = tmp_path / "old.json"
    old.write_bytes(out.read_bytes())
    again = bench("--prompts", "2", "-n", "24", "--rounds", "2", "-o", str(out), "--baseline", str(old))
    assert again.returncode == 0 and f"(from {out})" in again.stdout and "No arm is slower" in again.stdout


def test_an_interrupted_sweep_loses_no_finished_cell(tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    args = ["--sweep", "stages=1,2,3", "--modes", "off,async", "-o", str(out), *SMALL]
    process = subprocess.Popen(command(*args), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    began = time.monotonic()
    while not (out.exists() and out.read_text().count('"cell"') >= 1):
        assert time.monotonic() - began < 60 and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    finished = json.loads(out.read_text())
    assert 1 <= len(finished) < 3 and not worker_pids(process.pid)
    done = bench(*args)
    assert done.returncode == 0, done.stderr
    cells = json.loads(out.read_text())
    assert [c["cell"] for c in cells] == ["stages=1", "stages=2", "stages=3"]
    assert cells[: len(finished)] == finished
    assert "ALL CELLS" in done.stdout and done.stdout.rstrip().splitlines()[-2].split()[1] == "stages=3"


def test_a_slower_arm_is_a_regression(tmp_path: Path) -> None:
    out, old = tmp_path / "now.json", tmp_path / "old.json"
    assert bench("--modes", "off,async", "-o", str(out), *SMALL).returncode == 0
    cells = json.loads(out.read_text())
    ratio = cells[0]["comparison"]["ratios"]["async"]
    assert ratio["low"] is None is ratio["high"]  # a single prompt
    ratio["value"] *= 3
    old.write_text(json.dumps(cells))
    done = bench("--modes", "off,async", "-o", str(out), "--baseline", str(old), *SMALL)
    assert done.returncode == 1 and "async was" in done.stdout


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--modes", "fast"], "--modes fast"),
        (["--sweep", "stages=1,x"], "--sweep stages=x"),
        (["--sweep", "cluster=nowhere"], "no preset 'nowhere'"),
        (["--suite", "poems"], "--suite poems"),
        (["--baseline", "nowhere.json"], "nowhere.json cannot be read"),
        (["--plot", "x.gif"], "--plot"),
        (["--baseline", "x.json", "-o", "./x.json"], "--baseline and --output are both x.json"),
        (["--rounds", "0"], "--rounds must be"),
        (["--sweep", "branches=2", "--exact"], "--exact needs --branches 1"),
    ],
)
def test_bad_input(args: list[str], sentence: str) -> None:
    done = bench(*args)
    assert done.returncode == 2 and not done.stdout
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_nothing_in_a_question_is_a_control_token() -> None:
    with local(stages=1, draft=None) as p:
        end = p.vocabulary.name(p.vocabulary.eos)
        plain, odd = tokens_of(p, Suite("own", ("Why?", f"Why {end}?"), True), 2)
        control = [t for t in plain if not p.vocabulary.piece(t)]
        assert control and [t for t in odd if not p.vocabulary.piece(t)] == control
