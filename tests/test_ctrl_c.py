"""Ctrl-C in the lab's commands: one line, code 130, nothing left."""

from __future__ import annotations

import signal
import time

import pytest
from cli_helpers import ended, started

COMMANDS = {
    "verify": ["verify", "--wire", "q8", "-n", "300"],
    "bench": ["bench", "--pair", "demo", "--prompts", "2"],
    "tune": ["tune", "--pair", "demo"],
}


@pytest.mark.parametrize("seconds", [0.1, 0.8])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_the_lab_is_stopped(name: str, seconds: float) -> None:
    process = started(*COMMANDS[name])
    assert process.stderr is not None
    first = b""
    if name == "verify":
        time.sleep(1.0)
    else:
        first = process.stderr.read1(4096)  # what memory is needed: it has begun
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    result = ended(process)
    assert time.monotonic() - began < 3
    assert result.code == 130 and not result.left
    lines = (first.decode() + result.err).splitlines()
    said = [line for line in lines if not line.startswith(("Memory needed", "Note:", "  "))]
    assert said == ["Stopped."], result.err
