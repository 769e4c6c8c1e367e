"""A command line that was not understood, in one sentence that says what may have been meant."""

from __future__ import annotations

import difflib
from typing import Any


def usage_line(error: Any) -> str:
    """`error`: what typer raises, with the context of the command that it is about."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "pipeinfer"
    option = getattr(error, "option_name", None)
    text = error.format_message()
    if option is not None and hasattr(error, "possibilities"):
        near = nearest(option, _options(context))
        text = f"There is no option {option}{_meant(near)}"
    elif text.endswith("?."):  # typer's own guess, with a full stop too many
        text = text[:-1]
    return f"{text if text.endswith('?') else text.rstrip('.') + '.'} See `{path} --help`."


def nearest(word: str, known: list[str]) -> str | None:
    """The one that looks most like it; None where none does."""
    if found := difflib.get_close_matches(word, known, 1, 0.8):
        return found[0]
    if shorter := [name for name in known if len(name.lstrip("-/")) > 2 and word.startswith(name)]:
        return max(shorter, key=len)
    if found := difflib.get_close_matches(word, known, 1, 0.6):
        return found[0]
    longer = [name for name in known if len(word.lstrip("-")) > 2 and name.startswith(word)]
    return min(longer, key=len, default=None)


def _meant(near: str | None) -> str:
    return f". Did you mean {near}?" if near else "."


def _options(context: Any) -> list[str]:
    if context is None:
        return []
    found = [name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    return [name for name in found if name.startswith("--")]
