"""An answer as it appears."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pipeinfer_cpp.ui.consoles import notice
from pipeinfer_cpp.ui.origins import Painter


class AnswerView:
    """Shows an answer while it comes, once, however often it is begun again: where a pipeline died, what was shown
    already is awaited in silence."""

    def __init__(self, write: Callable[..., None], paint: Painter) -> None:
        self._write, self._paint = write, paint
        self._shown = ""
        self._said = ""

    def begin(self) -> None:
        """The answer comes from its first word."""
        self._said = ""

    def show(self, text: str, origin: str | None = None) -> None:
        """The next piece; `origin` colours it."""
        known = self._shown[len(self._said) : len(self._said) + len(text)]
        self._said += text
        if not text.startswith(known):
            notice("\nThe answer is another one this time:")
            known, text, self._shown = "", self._said, ""
        new = text[len(known) :]
        self._shown += new
        if new and origin is not None and self._paint.colours:
            self._write(new, partial(self._paint, origin=origin))
        else:
            self._write(new)

    def end(self, text: str) -> None:
        """All of it: what was there when it was cancelled is shown too."""
        self.show(text[len(self._said) :])
        self._write("\n")

    def broken(self) -> None:
        """It goes on behind a message."""
        if self._shown and not self._shown.endswith("\n"):
            self._write("\n")
