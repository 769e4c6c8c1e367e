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


@pytest.mark.parametrize("seconds", [0.9, 1.6])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_the_lab_is_stopped(name: str, seconds: float) -> None:
    process = started(*COMMANDS[name])
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    result = ended(process)
    assert time.monotonic() - began < 3
    assert result.code == 130 and not result.left
    said = [line for line in result.err.splitlines() if not line.startswith(("Memory needed", "Note:", "  "))]
    assert said == ["Stopped."], result.err
