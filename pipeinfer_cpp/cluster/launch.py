"""Starting worker processes on this machine, and knowing when and why one died."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import ClassVar

from pipeinfer_cpp.system.machine import suspended
from pipeinfer_cpp.system.own_folder import OwnFolder
from pipeinfer_cpp.system.threads import NO_MORE

_DECISIVE = re.compile(
    r"GGML_ASSERT|GGML_ABORT|terminate called|what\(\):|assert|duplicate|out of memory|bad_alloc|"
    r"\b(error|fatal|failed|invalid|abort(ed)?)\b|^\w*(Error|Exception)\b",
    re.IGNORECASE,
)
"""Lines of a worker's log that say why it ended; behind them there may be a debugger's or an interpreter's tail."""


class SocketDir(OwnFolder):
    """A short folder for ipc:// sockets and the workers' output, removed with its owner."""

    def __init__(self) -> None:
        base = tempfile.gettempdir()
        if len(base) > 40:  # ipc:// paths are limited to about 104 bytes
            base = "/tmp"
        super().__init__("pipeinfer-", Path(base))

    def address(self, name: str) -> str:
        return f"ipc://{self.path}/{name}"


class Process:
    """A worker process of this machine. It ends when its standard input is closed, so it cannot be orphaned.

    A forked child of this process lets go of it: it neither keeps it alive nor ends it.
    """

    _ours: ClassVar[weakref.WeakSet[Process]] = weakref.WeakSet()

    def __init__(self, role: str, address: str, log: Path, threads: int, crowded: bool) -> None:
        self._log = log
        env = dict(os.environ)
        root = str(Path(__file__).resolve().parents[2])
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
        env["OMP_NUM_THREADS"] = str(threads)
        env.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing multiplies with numpy: its threads would idle
        if crowded:
            env["GOMP_SPINCOUNT"] = "0"  # spinning barriers of two processes on one core stop both
        else:
            # Where another program takes one of the cores for a while: by default each barrier spins for milliseconds.
            env.setdefault("GOMP_SPINCOUNT", "100000")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeinfer_cpp.workers", role, address],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,
            )

        self._ours.add(self)

    @classmethod
    def let_go(cls) -> None:
        """In a forked child."""
        for process in list(cls._ours):
            if process._process.stdin is not None:
                process._process.stdin.close()
        cls._ours.clear()

    @property
    def pid(self) -> int:
        return self._process.pid

    def death(self) -> str | None:
        """None while it lives; else how it ended and the last it said."""
        code = self._process.poll()
        if code is None:
            return None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if code == -signal.SIGBUS:  # a page of a mapped file could not be had
            return f"{how}: a file that it reads became shorter, or the file system of the cache is full or fails"
        said = self.last_output().rstrip(".")
        if os.strerror(errno.EAGAIN) in said:  # ZeroMQ's or OpenMP's, of a thread
            said = NO_MORE.rstrip(".")
        return f"{how}; its last output: {said}" if said else f"{how} and said nothing"

    def stopped(self) -> bool:
        """Whether it is suspended (by SIGSTOP, say). False where the system does not tell."""
        return suspended(self.pid)

    def last_output(self, n_lines: int = 3) -> str:
        """What decided its end, where the log has such lines; else the last ones."""
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            decisive = [line for line in lines if _DECISIVE.search(line)]
            return " | ".join((decisive or lines)[-n_lines:])
        return ""

    def kill(self) -> None:
        """End it now: it has nothing to put in order yet."""
        self.stop(0.0)

    def stop(self, deadline: float) -> None:
        """Close its lifeline; kill it when it has not ended by `deadline` (monotonic seconds), or is suspended."""
        if self not in self._ours:
            return
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(0.0 if self.stopped() else max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Process.let_go)
