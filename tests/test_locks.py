"""Locks that another process holds: a word after 2 s, and an end when the user wants one."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import COMMAND, ENV, left_by
from pipeline_helpers import until
from tiny_models import MODELS, build

from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.gguf import Source, cached_slice
from pipeinfer_cpp.gguf.digest import hash_record
from pipeinfer_cpp.system.files import appearing, cache_folder, locked
from pipeinfer_cpp.system.machine import suspended

HOLDER = """
import os, signal, sys
from pathlib import Path
from pipeinfer_cpp.system.files import locked

with locked(Path(sys.argv[1])) as held:
    assert held
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build(tmp_path / "model.gguf", MODELS["llama-untied"])


@pytest.fixture
def holder(model: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A suspended process that holds the lock of the model's slices."""
    lock = cache_folder("slices") / f"{hash_record([model]).stem}.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], env=ENV)
    try:
        until(lambda: suspended(process.pid), 10)
        yield process
    finally:
        process.kill()
        process.wait()


def test_who_holds_it_is_said_and_ctrl_c_ends_the_wait(
    model: Path, holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    what = [*COMMAND, "generate", "--target", str(model), "--stages", "2", "Hi"]
    log = tmp_path / "said"
    with log.open("wb") as output:
        process = subprocess.Popen(what, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=ENV)
    try:
        until(lambda: "Waiting for process" in log.read_text(), 20)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(10) == 130
        assert time.monotonic() - began < 3
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    (line,) = re.findall("^Waiting.*$", said, re.MULTILINE)
    assert f"process {holder.pid}," in line and f"kill -CONT {holder.pid}" in line and "Ctrl-C" in line
    assert "Traceback" not in said and not left_by(process.pid)


def test_it_goes_on_when_the_holder_does(
    model: Path, holder: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    source, began = Source.open(model), time.monotonic()
    waker = threading.Timer(0.5, os.kill, (holder.pid, signal.SIGCONT))
    waker.start()
    with caplog.at_level(logging.WARNING):
        assert cached_slice(source, 0, 2).exists()
    waker.join()
    assert time.monotonic() - began > 0.5 and not caplog.records  # half a second is nothing to speak of


def test_whoever_gives_up_is_heard(model: Path, holder: subprocess.Popen[bytes]) -> None:
    def progress(_done: int, _total: int) -> None:
        raise PipeInferError("enough")

    with pytest.raises(PipeInferError, match="enough"):
        cached_slice(Source.open(model), 0, 2, progress=progress)


def test_a_link_goes_on_naming_its_file_and_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    real.write_text("old")
    link.symlink_to(real)
    with appearing(link) as file:
        file.write(b"new")
    assert link.is_symlink() and real.read_text() == "new"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    with appearing(pipe) as file:
        file.write(b"through")
    assert reader.communicate(timeout=10)[0] == b"through" and pipe.is_fifo()
    with appearing(tmp_path / "own", private=True) as file:
        file.write(b"x")
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "own", "pipe", "real"]


def test_whoever_does_not_wait_is_told_whether_somebody_has_it(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as mine:
        assert mine
        with locked(tmp_path / "lock", wait=False) as held:
            assert held is None
    with locked(tmp_path / "nowhere" / "lock", wait=False) as held:
        assert held is False
