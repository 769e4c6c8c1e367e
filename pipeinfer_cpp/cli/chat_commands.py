"""The slash commands of a chat."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.ui.consoles import notice, out, turns
from pipeinfer_cpp.ui.stats import stats_table

if TYPE_CHECKING:
    from pipeinfer_cpp.cli.chat_session import ChatSession

HELP = {
    "/help": "this list",
    "/reset": "begin a new conversation; the system prompt stays",
    "/stats": "the last answer's figures, the context, the processes",
    "/save FILE": "write the conversation to a file",
    "/load FILE": "go on with a saved conversation",
    "/regen": "answer the last question again, with a new seed",
    "/set NAME VALUE": "change a setting (temp, top_k, seed, max_tokens, system, ...); /set alone shows all",
    "/quit": "leave (as do Ctrl-D, and Ctrl-C twice at an empty prompt)",
}


class Commands:
    """Runs a line that begins with a slash. Raises UserError for what there is not."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/stats": self._stats,
            "/save": self._save,
            "/load": self._load,
            "/regen": self._regen,
            "/set": self._set,
            "/quit": self._quit,
            "/exit": self._quit,
        }

    @property
    def names(self) -> list[str]:
        return list(self._commands)

    def run(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        command = self._commands.get(name.lower())
        if command is None:
            near = difflib.get_close_matches(name.lower(), self._commands, n=1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them all."
            raise UserError(f"There is no command {name}: {hint}")
        command(rest.strip())

    def _help(self, _rest: str) -> None:
        table = Table.grid(padding=(0, 2))
        for usage, meaning in HELP.items():
            table.add_row(Text(usage, "bold"), Text(meaning))
        table.add_row("", Text("A line that ends in \\ goes on with the next one. Ctrl-C ends an answer."))
        out().print(table)

    def _reset(self, _rest: str) -> None:
        self._session.conversation.reset()
        notice("A new conversation.")

    def _stats(self, _rest: str) -> None:
        out().print(stats_table(self._session.pipeline, self._session.conversation, self._session.settings.sampling))

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save")
        self._session.conversation.save(path)
        notice(f"Saved {turns(self._session.conversation.n_turns)} to {path}.")

    def _load(self, rest: str) -> None:
        path = _path(rest, "/load")
        conversation = self._session.conversation
        conversation.load(path)
        notice(f"Loaded {turns(conversation.n_turns)} from {path}.")
        if conversation.n_turns:
            question, answer = conversation.messages[-2:]
            notice(f"> {question['content']}")
            notice(answer["content"])

    def _regen(self, rest: str) -> None:
        if rest:
            raise UserError("/regen takes nothing behind it: /set seed N chooses a seed.")
        self._session.regenerate()

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        settings = self._session.settings
        if not name:
            table = Table.grid(padding=(0, 2))
            for known, shown in settings.shown().items():
                table.add_row(Text(known, "bold"), Text(shown))
            out().print(table)
            return
        if not value.strip():
            raise UserError("Write /set NAME VALUE, such as /set temp 0.2; /set alone shows all.")
        settings.set(name, value)
        self._session.settings_changed()
        notice(f"{name} is now {value.strip()}.")

    def _quit(self, _rest: str) -> None:
        self._session.leaving = True


def _path(text: str, command: str) -> Path:
    if not text:
        raise UserError(f"{command} needs a file: {command} FILE.")
    return Path(text).expanduser()
