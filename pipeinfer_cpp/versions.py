"""The versions that a handshake compares."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    try:
        return version("pipeinfer-cpp")
    except PackageNotFoundError:
        return "0.1.0"


def llama_version() -> str:
    return version("llama-cpp-python")
