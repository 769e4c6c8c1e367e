"""Processes that only try something, killed by somebody else; folders of processes that were killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_helpers import ROOT, TARGET, until

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf import Source, even_split
from pipeinfer_cpp.proof.prove import prove
from pipeinfer_cpp.proof.vocabulary import check_vocabulary
from pipeinfer_cpp.system.own_folder import OwnFolder


@contextlib.contextmanager
def killing(module: str, how: signal.Signals) -> Iterator[None]:
    """A child of ours that runs `module` gets the signal as soon as it is there."""

    def work() -> None:
        while not over.is_set():
            for pid in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
                for child in pid.read_text().split():
                    if module in Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0"):
                        time.sleep(0.1)  # it is Python by now
                        os.kill(int(child), how)
                        return
            time.sleep(0.005)

    over = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_vocabulary_is_not_blamed_for_who_killed_its_trial(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path))
    source = Source.open(TARGET)
    with killing("pipeinfer_cpp.proof.vocabulary", how), pytest.raises(PipeInferError) as caught:
        check_vocabulary(source)
    assert not isinstance(caught.value, UserError)
    assert f"was ended by {how.name} before it was done" in str(caught.value)
    check_vocabulary(source)


def test_a_suspended_trial_is_told_of_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path))

    def wake() -> None:
        until(lambda: caplog.records, 10)
        os.kill(int(caplog.messages[0].rstrip(".").split()[-1]), signal.SIGCONT)

    waking = threading.Thread(target=wake)
    waking.start()
    with killing("pipeinfer_cpp.proof.vocabulary", signal.SIGSTOP):
        check_vocabulary(Source.open(TARGET))
    waking.join()
    assert "llama.cpp tries the model first, is suspended: wake it with kill -CONT" in caplog.messages[0]


def test_nor_is_a_split_for_who_killed_its_proof(tmp_path: Path) -> None:
    source = Source.open(TARGET)
    with killing("pipeinfer_cpp.proof", signal.SIGKILL):
        proof = prove(source, even_split(source.n_layers, 2), cache_dir=tmp_path)
    assert proof.outcome == "untested" and "(its process was ended by SIGKILL)" in proof.note
    assert prove(source, even_split(source.n_layers, 2), cache_dir=tmp_path).outcome == "equal"


CHILD = """
import os, sys, time
from pathlib import Path
from pipeinfer_cpp.system.own_folder import OwnFolder
print(OwnFolder("pipeinfer-try-", Path(sys.argv[1])).path.name, flush=True)
if os.fork() == 0:  # holds what its parent held, under a pid that nobody here knows: as an owner in a container does
    time.sleep(60)
os.kill(os.getpid(), 9)
"""


def test_a_folder_goes_with_the_last_who_holds_it_whatever_its_pid(tmp_path: Path) -> None:
    done = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        start_new_session=True,
    )
    assert done.stdout is not None
    folder = tmp_path / done.stdout.readline().strip()
    assert done.wait(10) == -signal.SIGKILL
    OwnFolder("pipeinfer-try-", tmp_path).remove()
    assert folder.is_dir(), "the folder of somebody who lives was removed"
    os.killpg(done.pid, signal.SIGKILL)
    done.stdout.read()  # until nobody has it open any more
    until(lambda: OwnFolder("pipeinfer-try-", tmp_path).remove() or not folder.exists(), 5)
