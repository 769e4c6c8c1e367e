"""scripts/netlab.py: shaped links against emulated ones. Skipped where namespaces or shaping are not allowed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import ROOT, until

SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

from netlab_parts import shaping  # noqa: E402
from netlab_parts.lab import namespaces  # noqa: E402
from netlab_parts.throughput import compare  # noqa: E402

from pipeinfer_cpp.errors import UserError  # noqa: E402
from pipeinfer_cpp.net.transit import LinkSpeed  # noqa: E402


def _why_not() -> str:
    try:
        shaping.find_shaper()
    except UserError as error:
        return str(error)
    return ""


WHY_NOT = _why_not()
allowed = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "allowed")


def begin(*args: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPTS / "netlab.py"), *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes, **options)


def ended(*args: object, **options: Any) -> tuple[int, str, str]:
    """Exit code, output, what it complained of; nothing of it is left."""
    process = begin(*args, **options)
    output, errors = process.communicate(timeout=60)
    assert not left_of(process)
    return process.returncode, output, errors


def left_of(process: subprocess.Popen[str]) -> list[str]:
    return [] if WHY_NOT else namespaces(f"pinlab-{process.pid}-")


@allowed
@pytest.mark.parametrize("mbit", [10, 100])
def test_shaped_and_emulated_links_agree(mbit: float) -> None:
    """Within 15% in bytes per second. Again when it fails: whoever shares these cores only makes links slower."""
    for _ in range(3):
        found = compare(LinkSpeed(mbit), (2048, 65536), seconds=0.8)
        ratios = {c.size: round(c.ratio, 3) for c in found}
        print(f"{mbit} Mbit/s, shaped over emulated: {ratios}")
        if all(0.85 <= ratio <= 1.15 for ratio in ratios.values()):
            return
    pytest.fail(f"shaped over emulated at {mbit} Mbit/s: {ratios}")


@allowed
def test_latency_is_there() -> None:
    """Also where a relay makes it."""
    speed = LinkSpeed(mbit=10, latency_ms=20)
    (found,) = compare(speed, (16384,), seconds=0.2)
    assert found.emulated_alone == pytest.approx(0.034, abs=0.002)
    assert 0.025 < found.shaped_alone < 0.060


@allowed
def test_a_cluster_of_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "pair.toml"
    path.write_text("[emulate]\nnodes = [{ ms = 5, count = 2 }]\nlink = { mbit = 100, latency_ms = 1 }")
    code, output, errors = ended(path, "--tokens", 8, "--rounds", 1)
    assert (code, errors) == (0, "")
    lines = [line.replace("│", " ").split() for line in output.splitlines()]
    for mode in ("off", "async"):
        shaped, emulated, ratio = next(map(float, line[1:]) for line in lines if line[:1] == [mode] and len(line) == 4)
        assert shaped > 5 and emulated > 5 and 0.5 < ratio < 2
    assert "the texts are the same in all arms" in " ".join(output.split())


@allowed
def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    code, _, errors = ended("gigabit", "--stages", 2, "--target", bad)
    assert code == 2 and errors.startswith("Stage 0 does not start: ") and errors.count("\n") == 1


@allowed
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(number: int, code: int) -> None:
    process = begin("--bytes", "--mbit", 1, "--seconds", 30)
    until(lambda: len(left_of(process)) == 3, 20)
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code and not left_of(process)


@allowed
def test_what_a_killed_run_leaves_the_next_one_removes() -> None:
    process = begin("--bytes", "--mbit", 1, "--seconds", 30)
    until(lambda: len(left_of(process)) == 3, 20)
    process.kill()
    process.communicate(timeout=20)
    assert left_of(process)
    assert ended("--bytes", "--mbit", 100, "--sizes", 2048, "--seconds", 0.1)[0] == 0
    assert not left_of(process)


@pytest.mark.parametrize(
    ("line", "sentence"),
    {
        "": "give a cluster, or --bytes",
        "gigabit --bytes": "give a cluster, or --bytes",
        "gigabti": "There is no preset 'gigabti'",
        "nowhere.toml": "nowhere.toml cannot be read",
        "gigabit --target nowhere.gguf": "nowhere.gguf is not a file",
        "gigabit --stages 0": "--stages takes 1 to 32",
        "gigabit --stages 33": "--stages takes 1 to 32",
        "gigabit --rounds 0": "--rounds 1 or more",
        "--bytes --mbit 0": "--mbit takes",
        "--bytes --mbit nan": "--mbit takes",
        "--bytes --latency -1": "--latency",
        "--bytes --sizes 0": "--sizes takes",
    }.items(),
)
def test_bad_input(line: str, sentence: str) -> None:
    code, output, errors = ended(*line.split())
    assert (code, output) == (2, "") and sentence in errors and "Traceback" not in errors


@pytest.mark.parametrize("what", [["--bytes"], ["gigabit", "--stages", "2"]])
@pytest.mark.parametrize(
    ("hide", "sentence"),
    [
        ("os.geteuid = lambda: 1000", "need root"),
        ("shutil.which = lambda name: None", "`ip` is not installed"),
    ],
)
def test_a_machine_that_does_not_allow_it(what: list[str], hide: str, sentence: str) -> None:
    code = (
        f"import os, runpy, shutil, sys; os.geteuid = lambda: 0; {hide}; sys.path.insert(0, {str(SCRIPTS)!r}); "
        f"sys.argv = ['netlab.py', *{what}]; runpy.run_path({str(SCRIPTS / 'netlab.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("works", "expected"),
    [(lambda qdisc: True, "netem"), (lambda qdisc: qdisc == "tbf", "tbf"), (lambda qdisc: False, "neither")],
)
def test_which_shaper(works: Callable[[str], bool], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On kernels with and without each; every probe is removed."""
    calls: list[tuple[str, ...]] = []

    def run(*command: str, namespace: str | None = None) -> str:
        calls.append(command)
        if command[0] == "tc" and not works(command[6]):
            raise UserError("Specified qdisc kind is unknown.")
        return ""

    monkeypatch.setattr(shaping, "run", run)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shaping.shutil, "which", lambda name: name)
    if expected == "neither":
        with pytest.raises(UserError, match="neither sch_netem nor sch_tbf"):
            shaping.find_shaper()
    else:
        assert shaping.find_shaper() == expected
    assert calls[-1][:3] == ("ip", "netns", "del")


def test_what_netem_is_told() -> None:
    told = " ".join(shaping.netem(LinkSpeed(mbit=100, latency_ms=0.3, jitter_ms=0.2)))
    assert told == "netem limit 100000 delay 0.4000ms 0.1000ms rate 98440kbit"
