"""The `pipeinfer` command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline_helpers import ROOT

COMMAND = [sys.executable, "-m", "pipeinfer_cpp"]
ENV = dict(os.environ, PYTHONPATH=str(ROOT), TERM="xterm-256color", COLUMNS="100", PROMPT_TOOLKIT_NO_CPR="1")


class Ended:
    """How a command ended, what it said, and what it left behind."""

    def __init__(self, pid: int, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err, self.left = code, out, err, left_by(pid)


def started(*args: object, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENV,
        cwd=cwd,
    )


def ended(process: subprocess.Popen[bytes], given: bytes = b"", seconds: float = 60) -> Ended:
    out, err = process.communicate(given, seconds)
    return Ended(process.pid, process.returncode, out.decode(), err.decode())


def pipeinfer(*args: object, given: bytes = b"", cwd: Path | None = None) -> Ended:
    """Run the command to its end, with `given` on its stdin."""
    return ended(started(*args, cwd=cwd), given)


def left_by(pid: int) -> Sequence[str]:
    """Workers and folders of a coordinator that has ended: their names carry its pid."""
    mark = f"/pipeinfer-{pid}-"
    found = [str(path) for path in Path("/tmp").glob(mark[1:] + "*")]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if mark in command:
            found.append(command)
    return found
