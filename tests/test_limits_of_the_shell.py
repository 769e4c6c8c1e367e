"""Few descriptors, processes, threads, files that may not grow: one line that says what to do; nothing is left."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import left_by
from pipeline_helpers import ROOT, until


@pytest.mark.parametrize(
    ("what", "limit", "advice"),
    [
        (resource.RLIMIT_NOFILE, 16, "ulimit -n"),
        (resource.RLIMIT_NOFILE, 32, "ulimit -n"),
        (resource.RLIMIT_NOFILE, 33, "ulimit -n"),
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


@pytest.mark.parametrize("limit", [34, 35, 36, 37, 38])
def test_descriptors_that_nearly_suffice(tmp_path: Path, limit: int) -> None:
    """Whatever cannot be opened at the end of a text, whoever waits for that end is told."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeinfer_cpp", "generate", "--raw", "-n", "4", "--temp", "0", "Once upon a time"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        env=dict(os.environ, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1"),
    )
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    if process.returncode == 0:
        assert out.startswith(", there was a") and not errors
    else:
        assert len(errors) == 1 and "ulimit -n" in errors[0], err
    assert "Traceback" not in err and not left_by(process.pid)


AS_ANOTHER = ["--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--"]
"""It may read what root may: the interpreter may lie in root's home."""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="root is exempt, and becomes another")
@pytest.mark.parametrize("limit", [1, 2, 4, 8, 12])
def test_too_few_processes_and_threads(tmp_path: Path, limit: int) -> None:
    user = 40_000 + os.getpid() % 20_000
    command = [sys.executable, "-m", "pipeinfer_cpp", "generate", "--raw", "--pair", "demo", "-n", "4", "Once"]
    process = subprocess.Popen(
        ["setpriv", f"--reuid={user}", *AS_ANOTHER, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit)),
        env=dict(os.environ, PYTHONPATH=str(ROOT), PIPEINFER_CACHE=str(tmp_path), HOME=str(tmp_path)),
    )
    out, err = process.communicate(timeout=60)
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert process.returncode == 1 and not out and len(errors) == 1 and "`ulimit -u`" in errors[0], err
    assert "Traceback" not in err and "bug" not in err and ".." not in errors[0], err
    until(lambda: not left_by(process.pid), 5)
    assert not list(tmp_path.rglob("*.part"))


def test_a_signal_at_the_very_end_changes_no_exit_code(tmp_path: Path) -> None:
    code = (
        "import atexit, os, signal, sys; from pipeinfer_cpp.cli import main\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): atexit.register(os.kill, os.getpid(), number)\n"
        "sys.argv[1:] = ['generate', '--ctx-size', '3', 'x']; main()"
    )
    env = dict(os.environ, PYTHONPATH=str(ROOT), PIPEINFER_CACHE=str(tmp_path))
    restored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, **restored)  # type: ignore[call-overload]
    assert done.returncode == 2 and "--ctx-size" in done.stderr and "Traceback" not in done.stderr
