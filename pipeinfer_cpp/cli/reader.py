"""The user's lines: typed at a terminal, or piped in."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from pipeinfer_cpp.ui.consoles import complain, notice

try:
    import readline
except ImportError:  # a Python without it: lines can be typed, but not edited
    readline = None  # type: ignore[assignment]

_PROMPT, _MORE = "> ", "… "


class Reader:
    """Gives one message after the other; a line that ends in a backslash goes on with the next one."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._typed = ""

    def read(self) -> str | None:
        """The next message, or None at the end: end of input, or Ctrl-C twice at an empty prompt.

        Once may have been meant for an answer that just ended. Ctrl-C with something typed throws that
        away and asks again. Raises KeyboardInterrupt where lines are piped in.
        """
        lines: list[str] = []
        pressed = False
        while True:
            try:
                line = self._line(_MORE if lines else _PROMPT)
                (line or "").encode()
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                print()
                empty = not lines and not self._typed.strip()
                if empty and pressed:
                    return None
                if empty:
                    notice("Ctrl-D or /quit leaves; so does Ctrl-C again.")
                pressed, lines = empty, []
                continue
            except UnicodeError:
                complain("That line is not UTF-8 text.")
                continue
            if line is None:
                if self.interactive:
                    print()
                return "\n".join(lines) if lines else None
            if line.endswith("\\"):
                lines.append(line[:-1])
                continue
            return "\n".join([*lines, line])

    def _line(self, prompt: str) -> str | None:
        if not self.interactive:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        self._typed = ""
        old: Any = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, self._interrupted)
        try:
            sys.stdout.flush()
            return input(prompt)
        except EOFError:
            return None
        finally:
            signal.signal(signal.SIGINT, old)

    def _interrupted(self, _number: int, _frame: FrameType | None) -> NoReturn:
        # Readline's buffer is gone once the exception is out.
        self._typed = readline.get_line_buffer() if readline is not None else ""
        raise KeyboardInterrupt
