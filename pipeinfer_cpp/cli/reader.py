"""The user's messages: typed at a terminal, or piped in line by line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeinfer_cpp.ui.consoles import complain, notice, tell

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

_PROMPT, _MORE = "> ", "… "
_BLOCK = '"""'
FILES = [""]
"""In the place of words that may follow a command: names of files do."""


class Reader:
    """Gives one message after the other; a line that ends in a backslash goes on with the next one."""

    def __init__(self, words: Callable[[], dict[str, list[str]]] = dict, history: Path | None = None) -> None:
        """`words`: what the Tab key completes: commands, each with what may follow it (or FILES).
        `history`: the file of what was typed in earlier chats; without one it is forgotten at the end."""
        self.interactive = sys.stdin.isatty()
        self._words, self._history = words, history
        self._session: PromptSession[str] | None = None

    def read(self) -> str | None:
        """The next message, or None at the end: end of input, or Ctrl-C twice at an empty prompt.

        Once may have been meant for an answer that just ended. Ctrl-C with something typed throws that
        away and asks again. Raises KeyboardInterrupt where lines are piped in.
        """
        return self._typed() if self.interactive else self._piped()

    def tell(self, text: str) -> None:
        """Show what the user should see at once, from any thread: above a prompt, where what was typed stays."""
        app = self._session.app if self._session is not None else None
        if app is None or not app.is_running or app.loop is None:
            tell(text)
            return
        from prompt_toolkit.application import run_in_terminal

        show = partial(run_in_terminal, partial(tell, text))
        with contextlib.suppress(RuntimeError):  # its loop has ended meanwhile
            app.loop.call_soon_threadsafe(show, context=app.context)

    def _piped(self) -> str | None:
        lines: list[str] = []
        while True:
            try:
                line = sys.stdin.readline()
                line.encode()
            except UnicodeError:
                complain("That line is not UTF-8 text.")
                continue
            text = line.rstrip("\r\n")
            if line and text.endswith("\\"):
                lines.append(text[:-1])
            elif line or lines:
                return "\n".join([*lines, text] if line else lines)
            else:
                return None

    def _typed(self) -> str | None:
        if self._session is None:
            self._session = self._new_session()
        pressed = False
        while True:
            sys.stdout.flush()
            try:
                return message(self._session.prompt(_PROMPT))
            except EOFError:
                return None
            except KeyboardInterrupt:
                empty = not self._session.default_buffer.text.strip()
                if empty and pressed:
                    return None
                if empty:
                    notice("Ctrl-D or /quit leaves; so does Ctrl-C again.")
                pressed = empty

    def _new_session(self) -> PromptSession[str]:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.output import create_output
        from prompt_toolkit.shortcuts import CompleteStyle

        from pipeinfer_cpp.cli.chat_completion import completer

        history: FileHistory | InMemoryHistory = InMemoryHistory()
        if self._history is not None:
            with contextlib.suppress(OSError):  # where it cannot be kept
                self._history.touch(0o600)
                with self._history.open("r+b"):
                    history = FileHistory(self._history)
        return PromptSession(
            multiline=True,
            prompt_continuation=lambda _width, _line, wrapped: "" if wrapped else _MORE,
            history=history,
            completer=completer(self._words, FILES),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_history_search=False,
            enable_suspend=True,
            key_bindings=_keys(),
            output=create_output(stdout=sys.stdout if sys.stdout.isatty() else sys.stderr),
        )


def is_whole(text: str) -> bool:
    """The Enter key ends the message: no block is open, and no backslash asks for another line."""
    if text.lstrip().startswith(_BLOCK):
        return text.count(_BLOCK) % 2 == 0
    return not text.endswith("\\")


def message(text: str) -> str:
    """What was meant, of what was typed."""
    if (bare := text.strip()).startswith(_BLOCK):
        return bare.removeprefix(_BLOCK).removesuffix(_BLOCK).strip("\n")
    return text.replace("\\\n", "\n")


def _keys() -> KeyBindings:
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching)
    def _enter(event: Any) -> None:
        buffer = event.current_buffer
        if is_whole(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter", filter=~is_searching)
    def _alt_enter(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys


@contextlib.contextmanager
def quiet_typing() -> Iterator[None]:
    """What is typed meanwhile is not shown, and waits for the next prompt; Ctrl-C and Ctrl-Z work as ever."""
    if not sys.stdin.isatty():
        yield
        return
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    quiet = termios.tcgetattr(stdin)
    quiet[0] &= ~termios.ICRNL
    quiet[3] = quiet[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH

    def stop(_number: int, _frame: object) -> None:
        """Ctrl-Z: the shell gets the terminal as it was. The workers stay as they are, with nothing to do."""
        with contextlib.suppress(termios.error):
            termios.tcsetattr(stdin, termios.TCSANOW, before)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)

    def again(_number: int, _frame: object) -> None:
        """Continued, in the foreground or not: only there the terminal is its own."""
        signal.signal(signal.SIGTSTP, stop)
        with contextlib.suppress(termios.error, OSError):
            if os.tcgetpgrp(stdin) == os.getpgrp():
                termios.tcsetattr(stdin, termios.TCSANOW, quiet)

    termios.tcsetattr(stdin, termios.TCSANOW, quiet)
    old = {signal.SIGCONT: signal.signal(signal.SIGCONT, again), signal.SIGTSTP: signal.signal(signal.SIGTSTP, stop)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(stdin, termios.TCSANOW, before)
