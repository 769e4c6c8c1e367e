"""An answer as it appears."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from pipeinfer_cpp.chat.thinking import Thinking
from pipeinfer_cpp.ui.consoles import notice
from pipeinfer_cpp.ui.origins import Painter


class AnswerView:
    """Shows an answer while it comes, once, however often it is begun again: where a pipeline died, what was shown
    already is awaited in silence. On a terminal thoughts are dimmed, or folded into one word."""

    def __init__(
        self, write: Callable[..., None], paint: Painter, thinking: Thinking, prompt: str, *, fold: bool = False
    ) -> None:
        """`prompt`: the end of the text that the answer follows."""
        self._write, self._paint, self._thinking, self._fold = write, paint, thinking, fold
        self._apart = sys.stdout.isatty()
        self._prompt = prompt
        self._shown = self._said = ""
        self._names_shown = self._names = 0
        self._folded = False
        self.answer = ""
        """Without the thoughts."""
        thinking.begin(prompt)

    @property
    def has_names(self) -> bool:
        """Control tokens divided it, so its bare text is thought and answer in one."""
        return self._names_shown > 0

    def begin(self) -> None:
        """The answer comes from its first word."""
        self._said, self._names = "", 0

    def show(self, text: str, origin: str | None = None, name: str = "") -> None:
        """The next piece; `origin` colours it. `name`: of a control token, which has no text."""
        if name and self._thinking.names(name):
            self._names += 1
            if self._names > self._names_shown:
                self._names_shown = self._names
                self._put(name, origin)
        known = self._shown[len(self._said) : len(self._said) + len(text)]
        self._said += text
        if not text.startswith(known):
            notice("\nThe answer is another one this time:")
            known, text, self._shown, self.answer = "", self._said, "", ""
            self._thinking.begin(self._prompt)
        new = text[len(known) :]
        self._shown += new
        self._put(new, origin)

    def end(self, text: str) -> None:
        """All of it: what was there when it was cancelled is shown too."""
        self.show(text[len(self._said) :])
        for part, thought in self._thinking.finish():
            self._part(part, thought, None)
        self._write("\n")

    def broken(self) -> None:
        """It goes on behind a message."""
        if self._shown and not self._shown.endswith("\n"):
            self._write("\n")

    def _put(self, text: str, origin: str | None) -> None:
        if not self._apart and not self.has_names:
            self._write(text)
        for part, thought in self._thinking.feed(text):
            self._part(part, thought, origin)

    def _part(self, text: str, thought: bool, origin: str | None) -> None:
        if not thought:
            self.answer += text
        if not self._apart and not self.has_names:
            return
        if thought and self._fold:
            if not self._folded:
                self._folded = True
                self._write("(thinking) ", partial(self._paint, origin="thought"))
        elif thought and self._apart:
            self._write(text, partial(self._paint, origin="thought"))
        elif origin is not None and self._paint.colours:
            self._write(text, partial(self._paint, origin=origin))
        else:
            self._write(text)
