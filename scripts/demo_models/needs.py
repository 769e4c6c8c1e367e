"""One clear sentence instead of a traceback where something is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn


def need(*modules: str) -> None:
    """End the program, naming the extra, when one of the modules is not installed."""
    missing = [m for m in modules if find_spec(m) is None]
    if missing:
        stop(f"Not installed: {', '.join(missing)}. Run: pip install 'pipeinfer-cpp[demo-models]'")


def need_files(*paths: str | Path) -> None:
    """End the program when one of the files does not exist."""
    missing = [str(p) for p in paths if not Path(p).exists()]
    if missing:
        stop(f"Not found: {', '.join(missing)}.")


def stop(why: str) -> NoReturn:
    print(why, file=sys.stderr)
    raise SystemExit(2)
