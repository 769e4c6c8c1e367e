"""`pipeinfer doctor`: a healthy machine, and some that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline_helpers import ROOT


def doctor(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeinfer_cpp", "doctor", *args]
    environment = {**os.environ, **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)


def marks(*args: str, **env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = doctor("--json", *args, **env)
    assert not done.stderr and len(done.stdout.splitlines()) == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    return done.returncode, {finding["name"]: finding for finding in report["findings"]}


def test_a_healthy_machine() -> None:
    code, found = marks()
    assert code == 0, found
    assert {"Python", "packages", "llama.cpp", "CPU", "CPU features", "threads", "ipc socket", "cache"} <= set(found)
    assert "0.3.36" in found["llama.cpp"]["text"]
    assert "one text" in found["self-check"]["text"] and found["processes"]["mark"] == "ok"
    assert "demo" in found["pairs here"]["text"]
    assert all(finding["advice"] for finding in found.values() if finding["mark"] != "ok")


def test_as_text() -> None:
    done = doctor("--quick")
    assert done.returncode == 0 and "CPU features" in done.stdout and "self-check" not in done.stdout


def test_a_cache_that_cannot_be_written() -> None:
    code, found = marks("--quick", PIPEINFER_CACHE="/proc/nowhere")
    assert code == 1 and found["cache"]["mark"] == "failed" and "PIPEINFER_CACHE" in found["cache"]["advice"]
    assert found["ipc socket"]["mark"] == "ok"  # the others go on


def test_the_cache_counts_what_is_on_the_disk(tmp_path: Path) -> None:
    """Slices have holes where a tensor is not theirs."""
    with (tmp_path / "slice.gguf").open("wb") as file:
        file.truncate(5_000_000_000)
    _, found = marks("--quick", PIPEINFER_CACHE=str(tmp_path))
    assert ": 0.0 GB used" in found["cache"]["text"]


def test_a_broken_models_toml(tmp_path: Path) -> None:
    (tmp_path / "pipeinfer").mkdir()
    (tmp_path / "pipeinfer" / "models.toml").write_text("[pair.x\n")
    code, found = marks("--quick", XDG_CONFIG_HOME=str(tmp_path))
    assert code == 1 and "not valid TOML" in found["models.toml"]["text"]


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    """Nor one that dies: built for another CPU."""
    for broken, sentence in (
        ("raise OSError('no libllama.so')", "no libllama.so"),
        ("import os; os.abort()", "dies here"),
    ):
        package = tmp_path / sentence[:2] / "llama_cpp"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(broken)
        code, found = marks("--quick", PYTHONPATH=f"{package.parent}{os.pathsep}{ROOT}")
        assert code == 1 and found["llama.cpp"]["mark"] == "failed" and sentence in found["llama.cpp"]["text"]
        assert found["cache"]["mark"] != "failed"
