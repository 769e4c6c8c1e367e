"""Errors that a person reads: one sentence that says what is wrong and what to do.

Sentences are written with the command line's options (`--top-k`). Who calls from Python reads the arguments' names
in their place (`top_k`): `str` of an error translates, except within `naming_options`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_ARGUMENTS = {"ctx-size": "ctx", "typical": "typical_p"}
"""Those whose names differ by more than hyphens."""
_COMMAND_LINE_ONLY = {"force", "modes", "suite", "record", "baseline", "listen"}
_COMMAND_LINE_ONLY |= {"chat-template", "chat-template-kwargs"}
_OPTION = re.compile(r"`[^`]*`|(?<![\w-])--([a-z][a-z-]*[a-z])(?: (\d+)\b)?")
"""A command between backticks stays as it is."""
_options = False


class PipeInferError(Exception):
    """A failure at run time (a stage died, a timeout). The command ends with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        return text if _options else _OPTION.sub(_argument, text)


class UserError(PipeInferError):
    """A mistake in what the user asked for or supplied. The command ends with code 2."""

    exit_code = 2


class FormLost(PipeInferError):
    """A text cannot be kept to the form that was asked for any further. The pipeline goes on."""


def naming_settings(error: UserError) -> UserError:
    """The same of a setting that was not typed as an option, so its name is the argument's."""
    return UserError(_OPTION.sub(_argument, str(error)))


@contextmanager
def naming_options() -> Iterator[None]:
    """This process is a command, or a worker whose words a command may show: errors name options."""
    global _options
    before, _options = _options, True
    try:
        yield
    finally:
        _options = before


def _argument(found: re.Match[str]) -> str:
    option, value = found.groups()
    if option is None or option in _COMMAND_LINE_ONLY:
        return found[0]
    name = _ARGUMENTS.get(option, option.replace("-", "_"))
    return name if value is None else f"{name}={value}"
