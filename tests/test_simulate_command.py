"""`pipeinfer simulate`: a cluster in virtual time, from the command line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeinfer_cpp.engine import CostCurve, Settings
from pipeinfer_cpp.lab import recording
from pipeinfer_cpp.lab.limits import Limits, limits
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
    def found(*args: Any, n: int = 1 << 40, ahead: int = 0) -> Limits:
        return limits(*args, n_tokens=n, ahead=ahead)

    four = [CostCurve.linear(0.02, 0.006)] * 4, [LinkSpeed(latency_ms=1)] * 5, 100, 0.004, 0.5, 8
    long = found(*four)
    assert long.plain == pytest.approx(1 / 0.085)
    assert long.pipeline == pytest.approx(8 / 0.062) and long.draft == pytest.approx(250 + 1 / 0.085)
    assert long.acceptance == pytest.approx(2 / 0.085) == long.bound
    slow = found([CostCurve.linear(0.001)] * 2, [LinkSpeed(mbit=1)] * 3, 1160, 0.004, None, 4)
    assert slow.pipeline == pytest.approx(100) and slow.acceptance is None
    # Of 101 tokens 50 may be drafted during the prompt: only the last stage has computed none of them.
    short = found(*four, n=101, ahead=50)
    assert short.pipeline == pytest.approx(8 / 0.062) and short.draft == pytest.approx(long.draft * 100 / 49)
    uneven = [CostCurve.linear(0.04), CostCurve.linear(0.001)]
    steps = found(uneven, [LinkSpeed()] * 3, 0, 0.004, None, 1, n=101, ahead=50)
    assert steps.pipeline == pytest.approx(50)
    assert found(*four, n=20, ahead=50).draft is None


@pytest.mark.parametrize("branches", [1, 4])
@pytest.mark.parametrize("further", [0.0, 0.006])
@pytest.mark.parametrize("draft_s", [0.002, 0.5])
def test_a_limit_is_one(branches: int, further: float, draft_s: float) -> None:
    """Also where side branches are often right, and where the draft is slower than the pipeline."""
    curves, links = [CostCurve.linear(0.02, further)] * 4, [LinkSpeed(1000, 0.1)] * 5
    for a in (0.2, 0.5, 0.8):
        task = Task(independent(330, a, 1, second_hit=0.9), 64, 240)
        reached = Virtual(curves, links, 4096, draft_s).run(task, Settings(n_ctx=400, max_rows=16, branches=branches))
        right = guessed([task], branches > 1)
        bound = limits(curves, links, 4096, draft_s, right, 16, n_tokens=240, ahead=64).bound
        assert (0.3 if branches == 1 else 0.0) * bound < reached.tokens_per_s <= bound


@pytest.mark.parametrize("seed", range(60))
def test_no_engine_beats_the_limits_of_any_cluster(seed: int) -> None:
    """Long prompts during which all of a short text is drafted, drafts that are always right, slow wires, a first
    stage ten times as slow as the last."""
    rng = random.Random(seed)
    n_stages = rng.randrange(1, 7)
    curves = [CostCurve.linear(rng.choice((0.001, 0.01, 0.1)), rng.choice((0.0, 0.001, 0.02))) for _ in range(n_stages)]
    links = [LinkSpeed(rng.choice((0, 1, 10, 1000)), rng.choice((0, 0.1, 30))) for _ in range(n_stages + 1)]
    row_bytes, max_rows = rng.choice((64, 8192)), rng.choice((1, 4, 16))
    draft_s = rng.choice((0.0005, 0.005, 0.05, 0.5))
    n_prompt, n_tokens, branches = rng.randrange(1, 300), rng.randrange(3, 160), rng.choice((1, 1, 4))
    a = rng.choice((0.0, 0.5, 0.9, 1.0))
    task = Task(independent(n_prompt + n_tokens + 20, a, seed, second_hit=0.9), n_prompt, n_tokens)
    for mode in ("async", "sync", "off"):
        settings = Settings(mode=mode, n_ctx=600, max_rows=max_rows, branches=branches, draft_max=rng.randrange(1, 16))
        reached = Virtual(curves, links, row_bytes, draft_s).run(task, settings)
        found = limits(
            curves, links, row_bytes, draft_s, guessed([task], branches > 1), max_rows,
            n_tokens=n_tokens, ahead=settings.max_ahead,
        )  # fmt: skip
        bound = found.plain if mode == "off" else found.bound
        assert reached.tokens_per_s <= bound * (1 + 1e-9), (mode, found)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["gigabti"], "no preset 'gigabti'"),
        (["nowhere.toml"], "nowhere.toml cannot be read"),
        (["--stages", "129"], "--stages must be between 1 and 128"),
        (["--acceptance", "1.5"], "--acceptance must be between 0 and 1"),
        (["--replay", "nowhere.json"], "nowhere.json cannot be read"),
        (["--replay", __file__], "is not a recording"),
        (["--wire", "q5"], "--wire q5 is not one of"),
        (["--ablate", "everything"], "--ablate takes"),
        (["--layers", "3", "--stages", "8"], "layers"),
    ],
)
def test_bad_input(args: list[str], sentence: str) -> None:
    done = simulate(*args)
    assert done.returncode == 2 and not done.stdout
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1
