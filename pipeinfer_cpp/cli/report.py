"""A file that tells of an error nobody expected: what whoever mends it needs to know."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

_KEPT = 20


def write_report(error: BaseException, args: Sequence[str]) -> Path:
    """Write it, readable by this user only, and remove all but the newest. Raises OSError where nothing can be written.

    The error's own text carries the story of the run where the engine raised it.
    """
    folder = reports_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(_text(error, args))
    for old in sorted(folder.glob("*.txt"))[:-_KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def reports_dir() -> Path:
    """In the folder where programs keep what outlives a run and is no setting."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "pipeinfer" / "reports"


def _text(error: BaseException, args: Sequence[str]) -> str:
    from pipeinfer_cpp.system.machine import cores
    from pipeinfer_cpp.system.versions import llama_version, package_version

    lines = [
        "An error report. The command line below may contain text of yours: read it before you send it.",
        "",
        f"pipeinfer {package_version()}, llama-cpp-python {llama_version()}",
        f"Python {sys.version.split()[0]}, {platform.platform()}, {cores()} cores",
        f"command line: {' '.join(['pipeinfer', *map(repr, args)])}",
        *(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("PIPEINFER_")),
        "",
        *traceback.format_exception(type(error), error, error.__traceback__),
    ]
    return "\n".join(line.rstrip("\n").encode("utf-8", "backslashreplace").decode() for line in lines) + "\n"
