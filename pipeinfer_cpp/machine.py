"""This machine: which it is, and how this project's processes share its cores."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def boot_id() -> str:
    """Differs each time the machine starts; "" where that cannot be known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def machine_id() -> str:
    """The same for all processes of one machine (containers too, as they share its cores)."""
    return boot_id() or platform.node()


@dataclass(frozen=True)
class Share:
    """What each of `processes` processes may use of `cores` cores, unless `asked` says how many threads."""

    cores: int
    processes: int
    asked: int | None = None

    @property
    def threads(self) -> int:
        return self.asked or max(1, self.cores // max(self.processes, 1))

    @property
    def crowded(self) -> bool:
        return self.processes * self.threads > self.cores

    @property
    def spare(self) -> bool:
        return self.processes * self.threads < self.cores
