"""The folder for what can be made again: slices, hashes, self-test results."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """$PIPEINFER_CACHE, else pipeinfer/ in the user's cache folder. It is made when missing."""
    given = os.environ.get("PIPEINFER_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(given) if given else Path(base) / "pipeinfer"
    path.mkdir(parents=True, exist_ok=True)
    return path
