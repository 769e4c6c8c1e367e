"""`pipeinfer simulate`: a cluster in virtual time, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeinfer_cpp.engine import CostCurve, Settings
from pipeinfer_cpp.lab import recording
from pipeinfer_cpp.lab.limits import limits
from pipeinfer_cpp.lab.simulation import Task, Virtual, guessed
from pipeinfer_cpp.net.transit import LinkSpeed
from pipeinfer_cpp.sim.worlds import independent


def simulate(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeinfer_cpp", "simulate", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def figures(*args: str) -> dict[str, dict[str, float]]:
    done = simulate(*args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_gigabit_cluster() -> None:
    found = figures("gigabit", "-n", "600")
    off, best, fast = found["arms"].values()
    assert fast["tokens_per_s"] > 1.8 * off["tokens_per_s"] and best["mode"] == "sync"
    assert fast["ttft_s"] == pytest.approx(off["ttft_s"], rel=0.03)
    assert fast["tokens_per_s"] < min(v for k, v in found["limits"].items() if k != "plain")
    assert off["tokens_per_s"] == pytest.approx(found["limits"]["plain"], rel=0.02)
    assert {m["kind"] for m in found["arms"].values()} == {"simulated"}
    assert figures("gigabit", "-n", "600") == found  # the same seed, the same figures


def test_a_hundred_nodes_in_seconds() -> None:
    began = time.perf_counter()
    done = simulate("gigabit", "--stages", "128", "-n", "60")
    assert done.returncode == 0 and "SIMULATED" in done.stdout and "128 nodes" in done.stdout
    assert time.perf_counter() - began < 60


def test_slow_links_cost_sync_more_than_async() -> None:
    near, far = (
        {m["mode"]: m["tokens_per_s"] for m in figures(name, "-n", "500", "--width", "2048")["arms"].values()}
        for name in ("gigabit", "10mbit")
    )
    assert far["sync"] / near["sync"] < far["async"] / near["async"] < 1


def test_a_recording(tmp_path: Path) -> None:
    text = list(range(1, 81))
    said = [(t if i % 3 else 999, 0.7, t, 0.2) for i, t in enumerate(text)]
    path = tmp_path / "recording.json"
    recording.save(path, [recording.Recording([5, 6, 7], text, said)])
    found = figures("gigabit", "--stages", "4", "--replay", str(path))
    assert found["acceptance"] == pytest.approx(53 / 80)
    assert {m["tokens"] for m in found["arms"].values()} == {80}
    assert next(m["sibling_hit"] for m in found["arms"].values() if m["mode"] == "async") == 1.0


def test_the_limits_by_hand() -> None:
    found = limits([CostCurve.linear(0.02, 0.006)] * 4, [LinkSpeed(latency_ms=1)] * 5, 100, 0.004, 0.5, 8)
    assert found.plain == pytest.approx(1 / 0.085)
    assert found.pipeline == pytest.approx(8 / 0.062) and found.draft == pytest.approx(250 + 1 / 0.085)
    assert found.acceptance == pytest.approx(2 / 0.085) == found.bound
    slow = limits([CostCurve.linear(0.001)] * 2, [LinkSpeed(mbit=1)] * 3, 1160, 0.004, None, 4)
    assert slow.pipeline == pytest.approx(100) and slow.acceptance is None


@pytest.mark.parametrize("branches", [1, 4])
@pytest.mark.parametrize("further", [0.0, 0.006])
@pytest.mark.parametrize("draft_s", [0.002, 0.5])
def test_a_limit_is_one(branches: int, further: float, draft_s: float) -> None:
    """Also where side branches are often right, and where the draft is slower than the pipeline."""
    curves, links = [CostCurve.linear(0.02, further)] * 4, [LinkSpeed(1000, 0.1)] * 5
    for a in (0.2, 0.5, 0.8):
        task = Task(independent(330, a, 1, second_hit=0.9), 64, 240)
        reached = Virtual(curves, links, 4096, draft_s).run(task, Settings(n_ctx=400, max_rows=16, branches=branches))
        bound = limits(curves, links, 4096, draft_s, guessed([task], branches > 1), 16).bound
        assert (0.3 if branches == 1 else 0.0) * bound < reached.tokens_per_s <= bound


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["gigabti"], "no preset 'gigabti'"),
        (["nowhere.toml"], "nowhere.toml cannot be read"),
        (["--stages", "129"], "--stages must be between 1 and 128"),
        (["--acceptance", "1.5"], "--acceptance must be between 0 and 1"),
        (["--replay", "nowhere.json"], "nowhere.json cannot be read"),
        (["--replay", __file__], "is no recording"),
        (["--wire", "q5"], "--wire q5 is not one of"),
        (["--ablate", "everything"], "--ablate takes"),
        (["--layers", "3", "--stages", "8"], "layers"),
    ],
)
def test_bad_input(args: list[str], sentence: str) -> None:
    done = simulate(*args)
    assert done.returncode == 2 and not done.stdout
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1
