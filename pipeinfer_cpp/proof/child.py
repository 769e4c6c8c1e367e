"""Processes in which llama.cpp may end without harm: how they are started, and what their end says."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeinfer_cpp.system.machine import suspended

_BEFORE = re.compile(r"^(.*error loading model( vocabulary)?: |.*what\(\):\s*)|\S*/(?=[\w.-]+:\d+: )")
_DECISIVE = re.compile(r"GGML_ASSERT|GGML_ABORT|error loading model|what\(\):|llama\.cpp:\d+")

OWN = (signal.SIGABRT, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL)
"""How llama.cpp ends a process itself. Another signal says something of this machine, not of the model."""

_LOOK = 2.0
"""Seconds between looks at whether somebody suspended it."""


def run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[bytes]:
    """Its end, and all that it said. Raises TimeoutExpired behind so many seconds, when it is ended. A suspended one is
    told of in a warning."""
    deadline, told = time.monotonic() + seconds, False
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=min(_LOOK, deadline - time.monotonic()))
                    return subprocess.CompletedProcess(command, process.returncode, out, err)
                except subprocess.TimeoutExpired:
                    if time.monotonic() >= deadline:
                        raise
                    if not told and suspended(process.pid):
                        told = True
                        what = f"Process {process.pid}, in which llama.cpp tries the model first, is suspended"
                        logging.getLogger(__name__).warning("%s: wake it with kill -CONT %d.", what, process.pid)
        except BaseException:
            process.kill()
            raise


def ended_from_outside(done: subprocess.CompletedProcess[bytes]) -> str | None:
    """The signal's name, where it was ended by somebody else."""
    code = done.returncode
    if code and done.stderr.rstrip().endswith(b"KeyboardInterrupt"):  # Python's way, while it starts
        return signal.SIGINT.name
    return None if code >= 0 or -code in OWN else signal.Signals(-code).name


def environment() -> dict[str, str]:
    """Of such a process: one thread, this package, and no debugger's stack trace, which takes seconds."""
    own = {"GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    own["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    return os.environ | own


def last_words(stderr: bytes) -> str:
    """The line that says why it ended, without folders and full stop."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    decisive = [line for line in lines if _DECISIVE.search(line)]
    if not lines:
        return "it ended and said nothing"
    return _BEFORE.sub("", (decisive or lines)[-1]).rstrip(".")
