"""Commands whose streams are closed, full, or of a poor encoding; and errors that nobody expected."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from cli_helpers import COMMAND, ENV
from pipeline_helpers import PROMPT, TARGET

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
    monkeypatch.setattr("pipeinfer_cpp.cli.doctor.run", lambda name, check: broken())
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


COMMANDS = (
    "", "generate", "chat", "stage", "slice", "bench", "tune", "simulate", "verify", "trace", "doctor", "top", "serve",
    "models", "models list", "models inspect", "models pull", "models rm", "models prune", "models inflate",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_small_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*command.split(), "--help"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80 and not any("…" in line for line in lines), lines
    if command in ("", "models"):
        return
    monkeypatch.setenv("COLUMNS", "200")
    assert run([*command.split(), "--help-all"]) == 0
    assert "All options: --help-all" in lines and len(capfd.readouterr().out.splitlines()) > 8


def test_the_same_name_has_each_commands_own_meaning(capfd: pytest.CaptureFixture[str]) -> None:
    for command, word in (("slice", "even slices"), ("verify", "links"), ("chat", "addresses")):
        run([command, "--help"])
        [line] = [line for line in capfd.readouterr().out.splitlines() if "--stages" in line]
        assert word in line


def test_all_options_are_in_the_long_help() -> None:
    everything = shell(" ".join([*COMMAND, "generate", "--help-all"]), COLUMNS="100")
    assert everything.returncode == 0 and all(name in everything.stdout for name in ("--ablate", "--trace", "--raw"))


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pipeinfer gen", ["generate"]),
        ("pipeinfer chat --pair demo-pl", ["demo-plain"]),
        ("pipeinfer models inspect demo-w", ["demo-weak"]),
        ("pipeinfer generate --mode as", ["async"]),
        ("pipeinfer bench --emulate gig", ["gigabit"]),
        ("pipeinfer simulate wif", ["wifi"]),
        ("pipeinfer generate --kv-type q", ["q8_0", "q4_0"]),
        ("pipeinfer generate --wire f16,q", ["f16,q8", "f16,q4"]),
        ("pipeinfer chat --ablate can", ["cancel"]),
        ("pipeinfer generate --chat-template chatm", ["chatml"]),
        ("pipeinfer bench --modes off,sy", ["off,sync"]),
        ("pipeinfer bench --suite tr", ["translate"]),
        ("pipeinfer tune --suite co", ["code"]),
        ("pipeinfer verify --pair demo-p", ["demo-plain"]),
        ("pipeinfer verify --wire f16,q", ["f16,q8", "f16,q4"]),
    ],
)
def test_the_shell_completes(words: str, offered: list[str]) -> None:
    n = str(len(words.split()) - 1)
    done = shell(" ".join(COMMAND), _PIPEINFER_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=n)
    assert done.stdout.split() == offered, done.stderr


@pytest.mark.parametrize("kind", ["zsh", "fish"])
def test_other_shells_complete_too(kind: str) -> None:
    words = {"_TYPER_COMPLETE_ARGS": "pipeinfer chat --pair dem", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = shell(" ".join(COMMAND), _PIPEINFER_COMPLETE=f"complete_{kind}", **words)
    assert "demo" in done.stdout, done.stderr


JSON = [
    "models list --json", "models inspect demo --json", "models prune --dry-run --json", "doctor --quick --json",
    "simulate gigabit --stages 2 -n 20 --json",
]  # fmt: skip


@pytest.mark.parametrize("line", JSON)
def test_json_is_utf_8_and_a_full_disk_is_one_line(tmp_path: Path, line: str) -> None:
    """Whatever the locale: programs read it."""
    models = tmp_path / "models.toml"
    entry = '[pair.words]\ndescription = "Ein Wörterbuch"\ntarget = { path = "ü.gguf" }\n'
    models.write_text(entry, encoding="utf-8")
    more = f" --models {models}" if line.startswith("models list") else ""
    command = " ".join([*COMMAND, line + more])
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, timeout=60, env={**ENV, "PYTHONIOENCODING": "ascii"}
    )
    assert json.loads(done.stdout.decode("utf-8")), done.stderr
    assert not more or "Wörterbuch" in done.stdout.decode("utf-8")
    full = shell(f"{command} >/dev/full")
    assert full.returncode == 1 and full.stderr.splitlines()[-1].startswith("Error: The output cannot be written")
    assert shell(f"{command} | true; exit ${{PIPESTATUS[0]}}").stderr == ""


def test_no_path_is_cut_where_nobody_looks_at_a_terminal(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40) / ("path" * 40)
    folder.mkdir(parents=True)
    model = folder / "model.gguf"
    model.symlink_to(TARGET)
    done = shell(" ".join([*COMMAND, "models", "inspect", str(model)]), COLUMNS="40")
    assert str(model) in done.stdout, done.stdout
