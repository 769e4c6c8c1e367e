"""One clear sentence instead of a traceback where the extra is not installed."""

from __future__ import annotations

from importlib.util import find_spec


def need(*modules: str) -> None:
    """End the program, naming the extra, when one of the modules is not installed."""
    missing = [m for m in modules if find_spec(m) is None]
    if missing:
        raise SystemExit(f"Not installed: {', '.join(missing)}. Run `pip install '.[demo-models]'` in the repository.")
