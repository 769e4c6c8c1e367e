"""Commands whose streams are closed, full, or of a poor encoding; and errors that nobody expected."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cli_helpers import COMMAND, ENV
from pipeline_helpers import PROMPT

from pipeinfer_cpp.cli import run

TEXT = " ".join([*COMMAND, "generate", "--raw", "--temp", "0", "-n", "8", "-p", f"'{PROMPT}'"])


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env={**ENV, **env})


@pytest.fixture(scope="module")
def text() -> str:
    done = shell(TEXT)
    assert done.returncode == 0 and done.stdout.strip()
    return done.stdout


@pytest.mark.parametrize("how", ["<&-", "2>&-", "<&- 2>&-", "2>/dev/full"])
def test_the_text_comes_whatever_the_other_streams_are(text: str, how: str) -> None:
    done = shell(f"{TEXT} {how}")
    assert (done.returncode, done.stdout) == (0, text), done.stderr


def test_a_closed_stdout_is_no_error() -> None:
    done = shell(f"{TEXT} >&-")
    assert done.returncode == 0 and "Error" not in done.stderr


def test_a_full_disk_is_one_line() -> None:
    done = shell(f"{TEXT} >/dev/full")
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and lines[-1] == "Error: The output cannot be written: No space left on device."


def test_an_encoding_that_lacks_a_character() -> None:
    done = shell(f"{TEXT} --stop x --json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    done = shell(" ".join([*COMMAND, "models", "list"]), PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.isascii(), done.stderr


def test_head_ends_it_silently() -> None:
    done = shell(f"{TEXT.replace('-n 8', '-n 900')} --stretch 5 | head -c 1; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 141 and "Error" not in done.stderr and "Traceback" not in done.stderr


def test_an_unexpected_error_leaves_a_report(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ValueError("the story of a run")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("pipeinfer_cpp.health.finding.run", lambda name, check: broken())
    assert run(["doctor", "--quick"]) == 1
    (report,) = (tmp_path / "pipeinfer" / "reports").iterdir()
    line = capfd.readouterr().err
    assert str(report) in line and line.count("\n") == 1 and "PIPEINFER_DEBUG" not in line
    found = report.read_text()
    assert "the story of a run" in found and "'--quick'" in found and "in broken" in found and "llama-cpp" in found
    assert report.stat().st_mode & 0o777 == 0o600
    if os.getuid():
        return
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert run(["doctor", "--quick"]) == 1
    assert "No report could be written" in capfd.readouterr().err


def test_help_fits_a_small_terminal() -> None:
    for command in ("", "generate", "chat"):
        done = shell(" ".join([*COMMAND, command, "--help"]), COLUMNS="80")
        assert done.returncode == 0 and len(done.stdout.splitlines()) <= 24, done.stdout
        assert "…" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    everything = shell(" ".join([*COMMAND, "generate", "--help-all"]), COLUMNS="100")
    assert everything.returncode == 0 and all(name in everything.stdout for name in ("--ablate", "--trace", "--raw"))


def test_the_shell_completes() -> None:
    words = {"_PIPEINFER_COMPLETE": "complete_bash", "COMP_WORDS": "pipeinfer gen", "COMP_CWORD": "1"}
    done = shell(" ".join(COMMAND), **words)
    assert done.stdout.split() == ["generate"]
