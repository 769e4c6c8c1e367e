"""Packages: the versions that a handshake compares, and how to add one."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
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


def installing(packages: str) -> str:
    """The command that adds them to the environment that this runs in. Where uv made it, there is no pip in it."""
    python = shlex.quote(sys.executable)
    if find_spec("pip") is None:
        return f"uv pip install --python {python} {packages}"
    return f"{python} -m pip install {packages}"
