"""Where things are written: text that was asked for on stdout, everything about it on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from pipeinfer_cpp.ui.wrapping import Wrapper, filled

_UNSAFE = {c: None for c in (*range(32), 127, *range(128, 160)) if chr(c) not in "\n\t"}
_ESCAPED = {c: f"\\x{c:02x}" for c in _UNSAFE}


_ENDLESS = 10_000
_open_line: list[Wrapper] = []
"""What writes the text on the terminal."""
_told: set[str] = set()
"""What was said while a text was written."""


def out() -> Console:
    """Where stdout is no terminal, lines are as long as they need to be: whoever reads them wants whole paths."""
    piped = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=piped, width=_ENDLESS if piped else None)


def err() -> Console:
    """Lines stay whole where they are not read on a terminal."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def notice(text: str, style: str = "dim") -> None:
    """One line on stderr, behind what stdout has so far."""
    console, text = err(), escaped(text)
    if console.is_terminal and _open_line and _open_line[-1].column:
        _open_line[-1]("\n")  # within a line of text
    sys.stdout.flush()
    with contextlib.suppress(OSError):  # a full disk behind stderr costs the line, not the text
        console.print(Text(filled(text, console.width) if console.is_terminal else text, style=style), soft_wrap=True)


def tell(text: str) -> None:
    """Something that the user should see at once, from any thread. It is no warning at the end any more."""
    _told.add(text)
    notice(text, "yellow")


def warn(text: str) -> None:
    if text not in _told:
        notice(f"Note: {text}", "yellow")


def complain(text: str) -> None:
    """A mistake that does not end the command."""
    notice(f"Error: {' '.join(text.split())}", "red")


def turns(n: int) -> str:
    return f"{n} turn{'s' if n != 1 else ''}"


def printable(text: str) -> str:
    """Without control characters: a model's text must not steer the terminal."""
    return text.translate(_UNSAFE)


def escaped(text: str) -> str:
    """With control characters written out: names, templates and errors may come from a model's file."""
    return text.translate(_ESCAPED)


def shown(value: object, style: str = "") -> Text:
    """What a model's file may have said, for a table."""
    return Text(escaped(str(value)), style)


def writer() -> Callable[..., None]:
    """Writes pieces of generated text to stdout at once. On a terminal they are made printable and
    wrapped; a second argument, a function, may colour them."""

    def write(text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()

    if not sys.stdout.isatty():
        return write
    wrapper = Wrapper(write)
    _open_line[:] = [wrapper]
    return lambda text, paint=str: wrapper(printable(text), paint)
