"""Text on a terminal as it comes, broken between words rather than within them."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable

Write = Callable[[str], None]
Paint = Callable[[str], str]

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")
_ONE_CELL = re.compile(
    r"[ -~\u00a0-\u02ff\u0370-\u0482\u048a-\u052f\u1e00-\u1fff\u2010-\u2027\u2030-\u205e\u20a0-\u20bf]+"
)
"""Characters that surely take one cell, on every terminal."""


def filled(text: str, width: int) -> str:
    """A text that is there as a whole, with line breaks for a terminal of `width` columns, never within a word: one
    that is longer than a line is left to the terminal."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


class Wrapper:
    """A word that does not fit is taken back and written on the next line.

    Where a word is longer than a line, or its width is not certain, the rest of the line is left to
    the terminal.
    """

    def __init__(self, write: Write, width: Callable[[], int] = lambda: shutil.get_terminal_size().columns) -> None:
        self._write, self._width = write, width
        self._column = 0
        self._word = ""
        """The word that is being written, painted, and the column it began in."""
        self._began = 0
        self._free = False

    def __call__(self, text: str, paint: Paint = str) -> None:
        for part in _PARTS.findall(text):
            if part == "\n":
                self._write("\n")
                self._column, self._began, self._word, self._free = 0, 0, "", False
            elif self._free or not _ONE_CELL.fullmatch(part):
                self._free = True
                self._write(paint(part))
            else:
                self._put(part, paint)

    def _put(self, part: str, paint: Paint) -> None:
        width = self._width() - 1  # the last cell stays free: behind it terminals differ
        end = self._column + len(part)
        if part.isspace():
            self._write(paint(part) if end <= width else "\n")
            self._column = self._began = end if end <= width else 0
            self._word = ""
            return
        if end <= width:
            self._write(paint(part))
        elif self._began and end - self._began <= width:
            self._write(f"\r\x1b[{self._began}C\x1b[K\n{self._word}{paint(part)}")
            end, self._began = end - self._began, 0
        else:
            self._free = True
            self._write(paint(part))
        self._column, self._word = end, self._word + paint(part)
