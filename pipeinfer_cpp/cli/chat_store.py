"""Chats on disk: each one is written as it goes, so that nothing that ends a process loses it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from pipeinfer_cpp.chat.conversation import Conversation, Saved, read_saved
from pipeinfer_cpp.errors import UserError

KEPT = 50


def state_dir() -> Path:
    """pipeinfer/ in $XDG_STATE_HOME, else in ~/.local/state; the user's alone. It is made when missing."""
    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pipeinfer"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def first_time(what: str) -> bool:
    """Whether this was never asked before on this machine: for what is worth one mention."""
    try:
        (state_dir() / f"told-{what.replace(' ', '-')}").touch(0o600, exist_ok=False)
    except OSError:
        return False
    return True


def worth_saying(warnings: list[str]) -> list[str]:
    """Without what was said on this machine before and helps nobody twice."""
    return [text for text in warnings if "no speed-up" not in text or first_time("no speed-up")]


class ChatStore:
    """The newest chats, a file each. The one that is under way is written by `write`, from its first question on."""

    def __init__(self, folder: Path | None = None, *, enabled: bool = True) -> None:
        """Not `enabled`: older chats can be looked at, and nothing is written."""
        self._folder = folder if folder is not None else state_dir() / "chats"
        self._enabled = enabled
        self._path: Path | None = None
        self._known: tuple[int, int] | None = None
        """The file as this chat last read or wrote it."""

    def begin(self) -> None:
        """The next `write` is of another chat."""
        self._path = None

    def write(self, conversation: Conversation, seed: int, asked: str | None = None) -> None:
        """Keep it as it is now; `asked`: the question that has no answer yet. Raises UserError when it cannot be."""
        if not self._enabled:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._path is None or _version(self._path) not in (self._known, None):  # another chat went on in it
                name = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}-{os.getpid()}.json"
                self._path = self._folder / name
            conversation.save(self._path, seed=seed, asked=asked)
            self._known = _version(self._path)
            for old in self._files()[KEPT:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"This chat cannot be kept in {self._folder}: {error.strerror}.") from None

    def newest(self) -> list[Saved]:
        """What there is, the newest first; what cannot be read is left out."""
        found = []
        for path in self._files():
            with contextlib.suppress(UserError):
                found.append(read_saved(path))
        return found

    def resume(self, number: int, conversation: Conversation) -> Saved:
        """Put the chat with this number (1: the newest) in the conversation's place; it is written there again."""
        readable = []
        for path in self._files():
            with contextlib.suppress(UserError):
                read_saved(path)
                readable.append(path)
        if not readable:
            raise UserError("There is no chat to resume yet.")
        if not 1 <= number <= len(readable):
            raise UserError(f"There is no chat {number}: there are 1 (the newest) to {len(readable)}.")
        path = readable[number - 1]
        version = _version(path)
        saved = conversation.load(path)
        if self._enabled:
            self._path, self._known = path, version
        return saved

    def _files(self) -> list[Path]:
        def age(path: Path) -> float:
            with contextlib.suppress(OSError):
                return path.stat().st_mtime
            return 0.0

        return sorted(self._folder.glob("*.json"), key=lambda path: (age(path), path.name), reverse=True)


def _version(path: Path) -> tuple[int, int] | None:
    """Differs once something else was written there; None where nothing is."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None
