"""`pipeinfer tune`: settings found by short runs, kept in the user's models.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeinfer_cpp.lab.tuning import write_settings
from pipeinfer_cpp.models import load_registry


def tune(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeinfer_cpp", "tune", *args]
    env = {**os.environ, "XDG_CONFIG_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env=env)


def test_settings_stand_beside_what_the_user_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "pipeinfer" / "models.toml"
    write_settings(path, "demo", {"mode": "async", "cutoff": 0.3})
    path.write_text("# mine\n" + path.read_text() + '\n[pair.own]\ntarget = { path = "x.gguf" }\n')
    write_settings(path, "demo", {"mode": "sync", "draft_max": 4})
    write_settings(path, "qwen2.5-coder-14b", {"decay": 0.05})
    text = path.read_text()
    assert text.startswith("# mine") and text.count("[pair.demo.speculation]") == 1 and "cutoff" not in text
    registry = load_registry()
    assert registry.pair("demo").speculation.draft_max == 4 and registry.pair("own").target.path is not None
    assert registry.pair("qwen2.5-coder-14b").speculation.decay == 0.05


def test_a_search_on_an_emulated_cluster(tmp_path: Path) -> None:
    """Stages that cost what real ones do: speculation pays, and tune must find that."""
    cluster = tmp_path / "cluster.toml"
    cluster.write_text("[emulate]\ndraft_ms = 1\n[[emulate.nodes]]\nms = 6\nfurther = 0.2\ncount = 3\n")
    done = tune(tmp_path, "--emulate", str(cluster), "--prompts", "1", "-n", "12")
    assert done.returncode == 0, done.stderr
    assert "Best here: mode async" in done.stdout and "Written to" in done.stdout
    assert "[pair.demo.speculation]" in (tmp_path / "pipeinfer" / "models.toml").read_text()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--pair", "demo-plain"], "nothing to tune"),
        (["--target", "x.gguf"], "kept by pair"),
        (["--prompts", "0"], "--prompts"),
    ],
)
def test_bad_input(tmp_path: Path, args: list[str], sentence: str) -> None:
    done = tune(tmp_path, *args)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1
