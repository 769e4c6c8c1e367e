"""A `pipeinfer` command in a terminal of its own, typed into as a person would."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence

from cli_helpers import COMMAND, ENV, left_by

PROMPT = "\n> "
_PROMPT_TOOLKIT = re.compile(r"\x08\x1b\[2C")
"""How prompt_toolkit draws the space behind its prompt."""
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r| +(?=\r?\n)")


class Terminal:
    """`said` is everything since the last `type`, without control codes and spaces at a line's end."""

    def __init__(self, *args: object, columns: int = 300, command: Sequence[str] = COMMAND) -> None:
        self._fd, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            [*command, *map(str, args)],
            stdin=child,
            stdout=child,
            stderr=child,
            env={**ENV, "COLUMNS": str(columns)},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)
        self._bytes = b""

    @property
    def raw(self) -> str:
        return self._bytes.decode(errors="replace")

    @property
    def said(self) -> str:
        return _CODES.sub("", _PROMPT_TOOLKIT.sub(" ", self.raw))

    def type(self, text: str) -> None:
        self._bytes = b""
        os.write(self._fd, text.encode())

    def until(self, text: str, seconds: float = 30) -> str:
        """Wait until it has said so. Returns all it said since the last `type`."""
        deadline = time.monotonic() + seconds
        while text not in self.said:
            assert self._read(deadline - time.monotonic()), f"no {text!r} in {self.said!r}"
        return self.said

    def prompt(self, seconds: float = 30) -> str:
        """Wait until it asks for the next line. Returns what it said before, without the echo of what was typed."""
        deadline = time.monotonic() + seconds
        while not self.said.endswith(PROMPT):
            assert self._read(deadline - time.monotonic()), f"no prompt behind {self.said!r}"
        return self.said.removesuffix(PROMPT).partition("\n")[2]

    def ask(self, line: str) -> str:
        self.type(line + "\n")
        return self.prompt()

    def begin(self, line: str) -> None:
        """Ask, and wait until the answer begins."""
        self.type(line + "\n")
        deadline = time.monotonic() + 30
        while not self.said.partition("\n")[2].strip():
            assert self._read(deadline - time.monotonic()), f"no answer behind {self.said!r}"

    def interrupt(self) -> str:
        """Ctrl-C, after a moment: Python overlooks one that comes while readline prints its prompt.
        Returns what was said until then."""
        deadline = time.monotonic() + 0.3
        while self._read(deadline - time.monotonic()):
            pass
        before = self.said
        self.type("\x03")
        return before

    def end(self, seconds: float = 20) -> int:
        """Wait until it has ended, and left nothing behind. Returns its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        code = self.process.wait(max(0.1, deadline - time.monotonic()))
        assert not left_by(self.process.pid)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)

    def _read(self, seconds: float) -> bool:
        """Take in what comes next. False when nothing does, or at the end."""
        if seconds <= 0 or not select.select([self._fd], [], [], seconds)[0]:
            return False
        with contextlib.suppress(OSError):  # what Linux gives for the end of a pty
            data = os.read(self._fd, 65536)
            self._bytes += data
            return bool(data)
        return False
