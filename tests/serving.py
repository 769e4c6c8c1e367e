"""`pipeinfer serve` as a process, for tests."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_helpers import ROOT, alive, until, worker_pids

for _package in ("uvicorn", "prometheus_client", "openai", "httpx"):
    pytest.importorskip(_package)
import httpx  # noqa: E402

CTX = 512
SMALL = "--stages", "2", "--ctx-size", str(CTX), "--threads", "1"
"""Quick to start, and the same as `local(stages=2, ctx=CTX, threads=1)`."""


class Server:
    """One server, of the demo pair unless told otherwise, and what it says."""

    def __init__(self, log: Path, *options: str, key: str = "") -> None:
        self.log, self.key, self.url = log, key, ""
        command = [sys.executable, "-m", "pipeinfer_cpp", "serve", "--port", "0", *options]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(os.environ, PYTHONPATH=str(ROOT)),
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ready(self) -> Server:
        """Wait until it says where it serves; where many processes share the cores a cold start takes a minute."""
        until(lambda: " at http://" in self.said or self.process.poll() is not None, 150)
        assert self.process.poll() is None, self.said
        found = re.search(r" at (http://\S+:\d+)", self.said)
        assert found is not None, self.said
        self.url = found[1]
        return self

    def client(self, key: str | None = None) -> httpx.Client:
        key = self.key if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def workers(self) -> dict[int, str]:
        return worker_pids(self.process.pid)

    def end(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Its exit code; no worker outlives it."""
        workers = self.workers()
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(seconds)
        until(lambda: not any(alive(pid) for pid in workers), 5)
        return code


@contextlib.contextmanager
def serving(folder: Path, *options: str, key: str = "") -> Iterator[Server]:
    """One that answers, until the block ends. Unless the block ended it, it must end well then, without a complaint."""
    server = Server(folder / "server.log", *options, key=key)
    try:
        yield server.ready()
        ended = server.process.poll() is not None
        code = server.end(signal.SIGINT)
    except BaseException:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        raise
    assert ended or code in (0, 130), server.said
    assert "Traceback" not in server.said, server.said
