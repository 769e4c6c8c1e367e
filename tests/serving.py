"""`pipeinfer serve` in a process of its own, for tests."""

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
from pipeline_helpers import ROOT


@contextlib.contextmanager
def served(*options: str, log: Path) -> Iterator[str]:
    """Its address, such as http://127.0.0.1:4711. It must end well, with nothing left."""
    for package in ("uvicorn", "prometheus_client", "openai", "httpx"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "pipeinfer_cpp", "serve", "--port", "0", *options]
    with log.open("w") as errors:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT))
        )
    assert server.stdout is not None
    try:
        first = server.stdout.readline()
        found = re.search(r"http://\S+:\d+", first)
        assert found is not None, log.read_text()
        yield found[0]
        assert server.poll() is None, log.read_text()
    finally:
        server.send_signal(signal.SIGINT)
        try:
            code = server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            raise
    assert code in (0, 130) and "Traceback" not in log.read_text(), log.read_text()
