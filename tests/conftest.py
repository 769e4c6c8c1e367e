"""Tests neither see nor touch what the user has in cache and configuration."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_folders() -> Iterator[Path]:
    """One cache for the whole session: slices are cut and stages tested once."""
    folder = Path(tempfile.mkdtemp(prefix="pipeinfer-tests-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPEINFER_CACHE", str(folder / "cache"))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)
