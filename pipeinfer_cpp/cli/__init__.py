"""The `pipeinfer` command. `main` is its one door: whatever happens, it ends with a code and at most one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main", "run"]


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line. Returns its exit code: 0, 1 for a failure, 2 for bad input, 128 + n for signal n."""
    try:
        from pipeinfer_cpp.cli.signals import ending_on_signals

        with ending_on_signals():
            try:
                return _invoke(args)
            except SystemExit as ended:
                return ended.code if isinstance(ended.code, int) else 1
            except KeyboardInterrupt:
                return 130
            except BrokenPipeError:
                _drop_stdout()
                return 141
            except Exception as error:
                return _explain(error)
    except KeyboardInterrupt:  # before or behind everything
        return 130


def _invoke(args: Sequence[str]) -> int:
    import typer

    from pipeinfer_cpp.cli.app import command

    try:
        code = command().main(list(args), prog_name="pipeinfer", standalone_mode=False)
    except typer.Abort:
        return 130
    except typer.Exit as ended:
        code = ended.exit_code
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    """One line on stderr; on a terminal it is broken between words. Returns the exit code."""
    from pipeinfer_cpp.errors import PipeInferError

    if os.environ.get("PIPEINFER_DEBUG"):
        import traceback

        traceback.print_exc()
    usage = getattr(error, "format_message", None)  # what typer raises for a command line it does not understand
    if isinstance(error, PipeInferError):
        text, code = str(error), error.exit_code
    elif isinstance(error, UnicodeEncodeError) and "surrogate" in error.reason:
        text, code = "There is text on the command line that is not UTF-8.", 2
    elif usage is not None:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "pipeinfer"
        if not usage():  # no command: the help was shown
            return 2
        text, code = f"{usage().rstrip('.')}. See `{path} --help`.", getattr(error, "exit_code", 2)
    else:
        hint = "Set PIPEINFER_DEBUG=1 to see where."
        text, code = f"unexpected {type(error).__name__}: {error}. {hint}", 1
    text = f"Error: {' '.join(text.split())}"
    if sys.stderr.isatty():
        from pipeinfer_cpp.ui.consoles import err
        from pipeinfer_cpp.ui.wrapping import filled

        text = filled(text, err().width)
    print(text, file=sys.stderr)
    return int(code)


def _drop_stdout() -> None:
    """Nobody reads any more: what is still buffered must not fail again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
