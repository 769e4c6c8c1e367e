"""A module of a package without all else that the package imports: worker processes start sooner so."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def submodule(package: str, name: str) -> Any:
    """`package.name`, imported without running the package's own `__init__`, unless that ran already.

    Whoever imports the package later gets all of it, with this very module in it.
    """
    if package in sys.modules:
        return importlib.import_module(f"{package}.{name}")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return importlib.import_module(f"{package}.{name}")  # says that it is missing
    stand_in = ModuleType(package)
    stand_in.__path__ = spec.submodule_search_locations
    sys.modules[package] = stand_in
    try:
        return importlib.import_module(f"{package}.{name}")
    finally:
        del sys.modules[package]
