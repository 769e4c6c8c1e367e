"""The `pipeinfer` command. `main` is its one door: whatever happens, it ends with a code and at most one line."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["main", "run"]

_SURROUNDINGS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE}
_SURROUNDINGS |= {errno.ENFILE, errno.ENAMETOOLONG, errno.EFBIG, errno.EAGAIN, errno.ENOMEM}
"""What the machine refuses, and no mistake of ours."""


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    from pipeinfer_cpp.cli.streams import ready

    ready()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here multiplies with numpy: its threads would idle
    code = run(sys.argv[1:])
    from pipeinfer_cpp.cli.signals import ignore_all

    ignore_all()
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Run one command line. Returns its exit code: 0, 1 for a failure, 2 for bad input, 128 + n for signal n."""
    try:
        from pipeinfer_cpp.cli.signals import ending_on_signals
        from pipeinfer_cpp.errors import naming_options

        with ending_on_signals(), naming_options():
            try:
                return _invoke(args)
            except SystemExit as ended:
                return ended.code if isinstance(ended.code, int) else 1
            except KeyboardInterrupt:
                return _stopped()
            except Exception as error:
                if _nobody_reads(error):
                    from pipeinfer_cpp.cli.streams import drop_stdout

                    drop_stdout()
                    return 141
                return _explain(error, args)
    except KeyboardInterrupt:  # before or behind everything
        return _stopped()


def _invoke(args: Sequence[str]) -> int:
    import typer

    from pipeinfer_cpp.cli.app import command
    from pipeinfer_cpp.cli.help import Stopped

    try:
        code = command().main(list(args), prog_name="pipeinfer", standalone_mode=False)
    except (typer.Abort, Stopped):
        return _stopped()
    except typer.Exit as ended:
        code = ended.exit_code
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _stopped() -> int:
    """Ctrl-C where a command has nothing to say of it itself."""
    with contextlib.suppress(OSError, AttributeError):
        print("Stopped.", file=sys.stderr, flush=True)
    return 130


def _nobody_reads(error: BaseException) -> bool:
    from pipeinfer_cpp.cli.app import ReaderLeft

    return isinstance(error, (BrokenPipeError, ReaderLeft))


def _explain(error: Exception, args: Sequence[str]) -> int:
    """One line on stderr; on a terminal it is broken between words. Returns the exit code."""
    from pipeinfer_cpp.errors import PipeInferError
    from pipeinfer_cpp.system.threads import NO_MORE, refused

    if os.environ.get("PIPEINFER_DEBUG"):
        import traceback

        traceback.print_exc()
    usage = getattr(error, "format_message", None)  # what typer raises for a command line it does not understand
    if isinstance(error, PipeInferError):
        text, code = str(error), error.exit_code
    elif isinstance(error, UnicodeEncodeError) and "surrogate" in error.reason:
        text, code = "The command line contains text that is not UTF-8.", 2
    elif usage is not None:
        from pipeinfer_cpp.cli.spelling import usage_line

        if not usage():  # no command: the help was shown
            return 2
        text, code = usage_line(error), getattr(error, "exit_code", 2)
    elif refused(error):
        text, code = NO_MORE, 1
    elif getattr(error, "errno", None) in _SURROUNDINGS:  # of ZeroMQ too
        text, code = _refused(error), 1
    else:
        text, code = f"This is a bug in pipeinfer ({type(error).__name__}: {error}). {_reported(error, args)}", 1
    if os.strerror(errno.EMFILE) in text and "ulimit" not in text:  # llama.cpp's words, or a worker's
        text = f"{text} Allow more with `ulimit -n 4096`."
    text = f"Error: {' '.join(text.split())}"
    with contextlib.suppress(OSError):  # stderr may be on the full disk too
        if sys.stderr is not None and sys.stderr.isatty():
            from pipeinfer_cpp.ui.consoles import err
            from pipeinfer_cpp.ui.wrapping import filled

            text = filled(text, err().width)
        print(text, file=sys.stderr, flush=True)
    return int(code)


def _refused(error: Any) -> str:
    """What the machine does not allow, and of what. An OSError, or ZeroMQ's, which has no file's name."""
    from pipeinfer_cpp.cli.streams import drop_stdout

    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{os.strerror(error.errno)}. Allow more with `ulimit -n 4096`."
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        from pipeinfer_cpp.system.threads import NO_MORE

        return f"{os.strerror(error.errno)}: {NO_MORE[0].lower()}{NO_MORE[1:]}"
    filename = getattr(error, "filename", None)
    if error.errno == errno.EFBIG:
        return f"{filename or 'A file'} would be larger than the shell allows. Allow more with `ulimit -f unlimited`."
    if filename is not None:
        return f"{filename}: {error.strerror}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # of no file: it was stdout
        drop_stdout()
        return f"The output cannot be written: {error.strerror}."
    return f"{os.strerror(error.errno)}."


def _reported(error: Exception, args: Sequence[str]) -> str:
    """Where the report is."""
    from pipeinfer_cpp.cli.report import reports_dir, write_report

    try:
        return f"Details are in {write_report(error, args)}: please attach that file when you report it."
    except Exception as reason:
        why = getattr(reason, "strerror", None) or type(reason).__name__
        return f"No report could be written to {reports_dir()} ({why}); set PIPEINFER_DEBUG=1 to see the details."
