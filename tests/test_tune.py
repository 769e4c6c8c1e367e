"""`pipeinfer tune`: settings found by short runs, judged by others, saved for a pair and machines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeinfer_cpp.cluster.plan import make_plan
from pipeinfer_cpp.cluster.tuned import keep, machines_of, tuned_file, tuned_for
from pipeinfer_cpp.emulation import load_cluster
from pipeinfer_cpp.engine import Settings
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.lab.intervals import Ratio, speed_up
from pipeinfer_cpp.lab.tuning import search
from pipeinfer_cpp.models import Speculation
from pipeinfer_cpp.options import Options


def tune(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeinfer_cpp", "tune", *args]
    env = {**os.environ, "XDG_CONFIG_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env=env)


class Bench:
    """Speeds with the noise of a machine and of prompts; `better`: arms that are truly faster, and by how much."""

    def __init__(self, seed: int, better: dict[str, float]) -> None:
        self.rng, self.better = np.random.default_rng(seed), better

    def race(self, what: str, arms: Sequence[str], held_out: bool) -> dict[str, Ratio]:
        rounds = 2 if held_out else 1
        speeds = {}
        for arm in arms:
            base = 5.0 if arm == "off" else 9.0 if arm.startswith("sync") else 10.0
            base *= max((gain for part, gain in self.better.items() if part in (arm, *arm.split(":"))), default=1.0)
            own = self.rng.normal(0, 0.06, (4, 1))  # what the arm makes of each prompt
            speeds[arm] = (base * np.exp(own + self.rng.normal(0, 0.05, (4, rounds)))).tolist()
        return {arm: speed_up(rows, speeds[arms[0]]) for arm, rows in speeds.items()}


def test_where_nothing_is_better_nothing_is_written() -> None:
    """The best of many candidates looks good by chance: in most of these searches something does."""
    verdicts = [search(Bench(seed, {}).race, Settings()) for seed in range(400)]
    assert sum(v.gain is not None for v in verdicts) > 200
    assert sum(bool(v.settings) for v in verdicts) <= 0.05 * 400


def test_what_is_better_is_found() -> None:
    verdicts = [search(Bench(seed, {"cutoff=0.4": 1.4}).race, Settings()) for seed in range(100)]
    assert sum(v.settings.get("cutoff") == 0.4 for v in verdicts) >= 80
    verdicts = [search(Bench(seed, {"off": 4.0}).race, Settings()) for seed in range(50)]
    assert all(v.settings == {"mode": "off"} for v in verdicts)
    verdicts = [search(Bench(seed, {"sync:6": 2.0}).race, Settings()) for seed in range(50)]
    assert all(v.settings["mode"] == "sync" and v.settings["draft_max"] == 6 for v in verdicts)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def test_what_is_kept_is_of_one_pair_on_one_set_of_machines(home: Path) -> None:
    here = Options(pair="demo", stages=2)
    others = [
        replace(here, stages=3),
        replace(here, stages=("tcp://10.0.0.5:7711", "tcp://10.0.0.6:7711")),
        replace(here, emulate=load_cluster("gigabit", 2)),
        replace(here, emulate=load_cluster("fast", 2)),
        replace(here, wire="q8"),
        replace(here, draft="other.gguf"),
    ]
    assert len({machines_of(o) for o in [here, *others]}) == 7
    keep(here, {"mode": "off"})
    assert tuned_for(here) == Speculation(mode="off")
    assert [tuned_for(o) for o in others] == [None] * 6 and tuned_for(replace(here, pair="demo-weak")) is None
    keep(others[1], {"mode": "sync", "draft_max": 4})
    keep(here, {"mode": "async", "cutoff": 0.3})
    assert tuned_for(here) == Speculation(mode="async", cutoff=0.3)
    assert tuned_for(others[1]) == Speculation(mode="sync", draft_max=4)
    keep(here, {})
    assert tuned_for(here) is None and tuned_for(others[1]) is not None


def test_a_start_says_what_tune_chose(home: Path) -> None:
    options = Options(pair="demo", stages=2)
    keep(options, {"mode": "sync", "draft_max": 6})
    plan = make_plan(options)
    assert (plan.settings.mode, plan.settings.draft_max) == ("sync", 6)
    (note,) = [w for w in plan.warnings if "tuned" in w]
    assert note.endswith("mode sync, draft_max 6.") and str(tuned_file()) in note
    typed = make_plan(replace(options, mode="async", draft_max=2))
    assert typed.settings.mode == "async" and not [w for w in typed.warnings if "tuned" in w]
    other = make_plan(replace(options, stages=3))
    assert other.settings.mode == "async" and not [w for w in other.warnings if "tuned" in w]


def test_a_damaged_file_is_named(home: Path) -> None:
    tuned_file().parent.mkdir(parents=True)
    tuned_file().write_text("{")
    with pytest.raises(UserError, match=r"tuned\.json is damaged"):
        tuned_for(Options(pair="demo"))


def test_a_search_on_an_emulated_cluster(tmp_path: Path) -> None:
    """Stages that cost what real ones do, and a pair that speculates by one token only: tune must find that."""
    cluster = tmp_path / "cluster.toml"
    cluster.write_text("[emulate]\ndraft_ms = 1\n[[emulate.nodes]]\nms = 10\nfurther = 0.2\ncount = 4\n")
    own = tmp_path / "pipeinfer" / "models.toml"
    own.parent.mkdir()
    own.write_text("[pair.demo.speculation]\nmode = \"sync\"\ndraft_max = 1\n")
    done = tune(tmp_path, "--emulate", str(cluster), "-n", "20")
    assert done.returncode == 0, done.stderr
    assert "Best here: " in done.stdout and "Kept for this pair" in done.stdout, done.stdout
    command = [sys.executable, "-m", "pipeinfer_cpp", "generate", "-p", "Once", "-n", "4", "--emulate", str(cluster)]
    env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert said.returncode == 0 and "As tuned for this pair on these machines" in said.stderr, said.stderr


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--pair", "demo-plain"], "nothing to tune"),
        (["--target", "x.gguf"], "saved for a pair"),
        (["--prompts", "3"], "--prompts must be between 4"),
    ],
)
def test_bad_input(tmp_path: Path, args: list[str], sentence: str) -> None:
    done = tune(tmp_path, *args)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1
