"""The versions that a handshake compares."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def package_version() -> str:
    try:
        return version("pipeinfer-cpp")
    except PackageNotFoundError:
        return "0.1.0"


def llama_version() -> str:
    return version("llama-cpp-python")


def cpu_name() -> str:
    """What this machine calls its processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
