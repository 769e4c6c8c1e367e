"""The slash commands of a chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pipeinfer_cpp.cli import parsing
from pipeinfer_cpp.cli.chat_session import ChatSession
from pipeinfer_cpp.cli.chat_settings import THINK
from pipeinfer_cpp.cli.reader import FILES
from pipeinfer_cpp.cli.spelling import nearest
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.ui.consoles import notice, out, turns
from pipeinfer_cpp.ui.live_view import strip
from pipeinfer_cpp.ui.stats import stats_table

HELP = {
    "/help": "this list",
    "/reset, /clear": "begin a new conversation; the system prompt stays",
    "/stats": "the last answer's figures, the context, the processes",
    "/top": "a line behind each answer on what the stages did, or none again",
    "/save FILE": "write the conversation to a file (--force FILE: also where there is one)",
    "/load FILE": "go on with a saved conversation",
    "/resume N": "go on with an older chat (1: the newest); /resume alone lists them",
    "/read FILE": "say what is in a text file",
    "/continue": "go on with an answer that was cut",
    "/regen": "answer the last question again, with a new seed",
    "/think on|fold|off": "show a model's thoughts, fold them, or ask it not to think (where its template can)",
    "/set NAME VALUE": "change a setting (temp, top_k, seed, max_tokens, system, ...); /set alone shows all",
    "/bye, /exit, /quit": "leave (as do Ctrl-D, and Ctrl-C twice at an empty prompt)",
}
KEYS = (
    'Alt-Enter, or \\ at the end of a line, begins a new line; so does Enter between """ and """.',
    "Ctrl-C ends an answer. A line that begins with // is said without its first slash.",
)
_WITHOUT_PIPELINE = ("/help", "/?", "/stats", "/save", "/quit", "/exit", "/bye")


class Commands:
    """Runs a line that begins with a slash. Raises UserError for what cannot be done."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._commands: dict[str, Callable[[str], str | None]] = {
            "/help": self._help,
            "/?": self._help,
            "/reset": self._reset,
            "/clear": self._reset,
            "/stats": self._stats,
            "/top": self._top,
            "/save": self._save,
            "/load": self._load,
            "/resume": self._resume,
            "/read": self._read,
            "/continue": self._continue,
            "/regen": self._regen,
            "/think": self._think,
            "/set": self._set,
            "/quit": self._quit,
            "/exit": self._quit,
            "/bye": self._quit,
        }

    @property
    def words(self) -> dict[str, list[str]]:
        """What can be completed: the commands, each with what may follow it."""
        files = {name: FILES for name in ("/save", "/load", "/read")}
        commands: dict[str, list[str]] = {name: [] for name in self._commands}
        return {**commands, **files, "/set": list(self._session.settings.shown()), "/think": list(THINK)}

    def run(self, line: str) -> str | None:
        """Do it. Returns what is to be said to the model: a file's text, or a line that is no command."""
        line = line.strip()
        if line.startswith("//"):
            return line[1:]
        name, _, rest = line.partition(" ")
        command = self._commands.get(name.lower())
        if command is not None:
            if name.lower() not in _WITHOUT_PIPELINE:
                self._session.revive()
            return command(rest.strip())
        near = nearest(name.lower(), list(self._commands))
        hint = f" Did you mean {near}?" if near else ""
        notice(f"{name.splitlines()[0]} is no command, so it is said to the model.{hint}")
        return line

    def _help(self, _rest: str) -> None:
        table = Table.grid(padding=(0, 2))
        for usage, meaning in HELP.items():
            table.add_row(Text(usage, "bold"), Text(meaning))
        for line in KEYS:
            table.add_row("", Text(line))
        out().print(table)

    def _reset(self, _rest: str) -> None:
        self._session.conversation.reset()
        self._session.store.begin()
        notice("A new conversation.")

    def _stats(self, _rest: str) -> None:
        out().print(stats_table(self._session.pipeline, self._session.conversation, self._session.settings.sampling))

    def _top(self, rest: str) -> None:
        if rest:
            raise UserError("/top takes nothing behind it.")
        self._session.strip = not self._session.strip
        if self._session.strip:
            notice(strip(self._session.pipeline.live()))
        else:
            notice("The line on the stages is off.")

    def _save(self, rest: str) -> None:
        force = rest.startswith("--force ")
        path = _path(rest.removeprefix("--force ").strip(), "/save")
        self._session.conversation.save(path, seed=self._session.settings.sampling.seed, overwrite=force)
        notice(f"Saved {turns(self._session.conversation.n_turns)} to {path}.")

    def _load(self, rest: str) -> None:
        path = _path(rest, "/load")
        conversation = self._session.conversation
        conversation.load(path)
        self._session.store.begin()
        self._session.recall()
        notice(f"Loaded {turns(conversation.n_turns)} from {path}.")
        self._session.show_last()

    def _resume(self, rest: str) -> None:
        if rest:
            try:
                number = int(rest)
            except ValueError:
                raise UserError(f"/resume takes a number, not {rest!r}; /resume alone lists the chats.") from None
            self._session.resume(number)
            return
        chats = self._session.store.newest()
        if not chats:
            raise UserError("There is no chat to resume yet.")
        for number, chat in enumerate(chats[:10], 1):
            said = [message["content"] for message in chat.messages if message["role"] == "user"]
            first = " ".join((said or [chat.asked or ""])[0].split())
            notice(f"{number:>3}  {turns(len(said))}: {first[:60]}")

    def _read(self, rest: str) -> str:
        path = _path(rest, "/read")
        text = parsing.text_of(path, "/read").strip()
        if not text:
            raise UserError(f"{path} is empty.")
        return text

    def _continue(self, rest: str) -> None:
        if rest:
            raise UserError("/continue takes nothing behind it.")
        self._session.go_on()

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

    def _think(self, rest: str) -> None:
        settings = self._session.settings
        if not rest:
            raise UserError("Write /think on, /think fold or /think off.")
        settings.set("think", rest)
        folded = rest.lower() == "off" and settings.think != "off"
        more = ": this chat template cannot ask the model not to think" if folded else ""
        notice(f"think is now {settings.think}{more}.")

    def _quit(self, _rest: str) -> None:
        self._session.leaving = True


def _path(text: str, command: str) -> Path:
    if not text:
        raise UserError(f"{command} needs a file: {command} FILE.")
    return Path(text).expanduser()
