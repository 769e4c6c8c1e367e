"""Text on a terminal as it comes, broken between words rather than within them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable

from wcwidth import wcswidth

Write = Callable[[str], None]
Paint = Callable[[str], str]

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")
_WORDS = re.compile(
    r"[\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\ufe30-\uff60\U00020000-\U0003ffff]|"
    r"[^\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\ufe30-\uff60\U00020000-\U0003ffff]+"
)
"""East Asian characters may be parted from each other; everything else stays together."""


def filled(text: str, width: int) -> str:
    """A text that is there as a whole, with line breaks for a terminal of `width` columns, never within a word: one
    that is longer than a line is left to the terminal."""
    lines = text.split("\n")
    return "\n".join(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines)


class Wrapper:
    """A word that does not fit is taken back and written on the next line; one that is longer than a line is left
    to the terminal. Widths are the terminal's own habit (`wcwidth`), its columns those of the moment."""

    def __init__(self, write: Write, width: Callable[[], int] | None = None) -> None:
        self._write, self._width = write, width or columns
        self.column = 0
        """Where the next character goes."""
        self._word: list[tuple[str, Paint]] = []
        """The word that is being written, in pieces, and the column it began in."""
        self._began = 0

    def __call__(self, text: str, paint: Paint = str) -> None:
        for part in _PARTS.findall(text):
            if part == "\n":
                self._write("\n")
                self._begin(0)
            elif part.isspace():
                self._space(part, paint)
            else:
                for word in _WORDS.findall(part):
                    self._put(word, paint)

    def _begin(self, column: int) -> None:
        """A new word begins there."""
        self.column = self._began = column
        self._word = []

    def _space(self, part: str, paint: Paint) -> None:
        part = part.expandtabs(4)
        end = self.column + cells(part)
        if end <= self._room:
            self._write(paint(part))
            self._begin(end)
        else:
            self._write("\n")
            self._begin(0)

    @property
    def _room(self) -> int:
        return max(1, self._width() - 1)  # the last cell stays free: behind it terminals differ

    def _put(self, part: str, paint: Paint) -> None:
        if len(part) == 1 and cells(part) == 2:  # an East Asian character is a word of its own
            self._begin(self.column)
        said = "".join(piece for piece, _ in self._word)
        end = self._began + cells(said + part)  # measured together: characters combine
        if end <= self._room:
            self._write(paint(part))
            self._word.append((part, paint))
            self.column = end
        elif self._began and cells(said + part) <= self._room:
            back = f"\x1b[{cells(said)}D\x1b[K" if said else ""  # relative: terminals differ on emoji before it
            self._write(f"{back}\n" + "".join(colour(piece) for piece, colour in self._word) + paint(part))
            self._word.append((part, paint))
            self.column, self._began = cells(said + part), 0
        else:
            self._run_over(part, paint)

    def _run_over(self, part: str, paint: Paint) -> None:
        """A word longer than a line is the terminal's to break, so that it can be copied in one piece."""
        self._write(paint(part))
        width, column = self._width(), self.column
        for character in part:
            n = cells(character)
            column = column + n if column + n <= width else n
        self._begin(column)


def columns() -> int:
    """Of the terminal behind stdout, now; $COLUMNS may be of another day."""
    with contextlib.suppress(OSError, ValueError):
        if (found := os.get_terminal_size(sys.__stdout__.fileno() if sys.__stdout__ else 1).columns) > 0:
            return found
    return shutil.get_terminal_size().columns


def cells(text: str) -> int:
    """Columns that a terminal gives it."""
    return len(text) if text.isascii() else max(0, wcswidth(text))
