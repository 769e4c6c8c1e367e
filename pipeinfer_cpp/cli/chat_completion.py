"""What the Tab key completes in a chat."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document


def completer(words: Callable[[], dict[str, list[str]]], files: list[str]) -> Completer:
    """By what stands at the beginning of the line: commands, each with what may follow it; `files` stands for names
    of files."""
    return _ByCommand(words, files)


class _ByCommand(Completer):
    def __init__(self, words: Callable[[], dict[str, list[str]]], files: list[str]) -> None:
        self._words, self._files = words, files
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text, words = document.text_before_cursor, self._words()
        if not text.startswith("/") or "\n" in text:
            return
        command, space, rest = text.partition(" ")
        if not space:
            yield from (Completion(name, -len(text)) for name in words if name.startswith(text))
        elif words.get(command) == self._files:
            start = rest.removeprefix("--force ")
            yield from self._paths.get_completions(Document(start, len(start)), complete_event)
        elif " " not in rest:
            yield from (Completion(word, -len(rest)) for word in words.get(command, ()) if word.startswith(rest))
