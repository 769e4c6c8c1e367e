"""Few file descriptors, files that may not grow: one line that says what to do, and nothing left behind."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import left_by
from pipeline_helpers import ROOT


@pytest.mark.parametrize(
    ("what", "limit", "advice"),
    [
        (resource.RLIMIT_NOFILE, 16, "ulimit -n"),
        (resource.RLIMIT_NOFILE, 32, "ulimit -n"),
        (resource.RLIMIT_FSIZE, 20_000, "ulimit -f"),
        (resource.RLIMIT_FSIZE, 300_000, "ulimit -f"),
    ],
)
def test_one_line_and_nothing_left(tmp_path: Path, what: int, limit: int, advice: str) -> None:
    command = [sys.executable, "-m", "pipeinfer_cpp", "generate", "--raw", "-n", "4", "Once"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(what, (limit, limit)),
        env=dict(os.environ, PYTHONPATH=str(ROOT), PIPEINFER_CACHE=str(tmp_path), PYTHONDONTWRITEBYTECODE="1"),
    )
    out, err = process.communicate(timeout=60)
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert process.returncode in (1, 2) and not out and len(errors) == 1 and advice in errors[0], err
    assert "Traceback" not in err and "bug" not in err
    assert not list(tmp_path.rglob("*.part")) and not left_by(process.pid)
