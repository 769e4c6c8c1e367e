"""`pipeinfer serve` as a process, with the demo pair."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from pipeline_helpers import DRAFT, ROOT, TARGET, alive, free_port, until, worker_pids

CTX = 512


class Server:
    """One server, and what it says on stderr."""

    def __init__(self, log: Path, *more: str, key: str = "") -> None:
        self.port, self.log, self.key = free_port(), log, key
        self.url = f"http://127.0.0.1:{self.port}"
        models = ["--target", str(TARGET), "--draft", str(DRAFT)]
        pipeline = ["--stages", "2", "--ctx-size", str(CTX), "--threads", "1"]
        command = [sys.executable, "-m", "pipeinfer_cpp", "serve", "--port", str(self.port), *models, *pipeline, *more]
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

    def ready(self) -> Server:
        """Wait until it answers."""
        until(lambda: self.healthy() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.said
        return self

    def healthy(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        return False

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
def serving(folder: Path, *more: str, key: str = "") -> Iterator[Server]:
    server = Server(folder / "server.log", *more, key=key)
    try:
        yield server.ready()
    finally:
        try:
            server.end()
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()
            raise
