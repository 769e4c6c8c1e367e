"""Tests neither see nor touch what the user has in cache and configuration."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_FOLDER = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """One cache for the whole session: slices are cut and stages tested once.

    Set before any test module is read: some of them keep a copy of the environment for the commands they start.
    """
    folder = config.stash[_FOLDER] = Path(tempfile.mkdtemp(prefix="pipeinfer-tests-"))
    os.environ["PIPEINFER_CACHE"] = str(folder / "cache")
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    os.environ["XDG_RUNTIME_DIR"] = str(folder / "run")
    (folder / "run").mkdir()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)
