"""This machine: which it is, and how this project's processes share its cores."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path


def cores() -> int:
    """Those that this process may use, and has the time of: a container's quota counts too."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


@functools.lru_cache(maxsize=1)
def _quota() -> float | None:
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:
        return None
    return cpu_quota(groups, Path("/sys/fs/cgroup"))


def cpu_quota(groups: str, root: Path) -> float | None:
    """Cores' worth of time that the control groups grant; None where there is no limit. `groups`: /proc/self/cgroup."""
    found = []
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = next((root / n for n in (controllers, "cpu") if (root / n).is_dir()), root), _quota_v1
        else:
            continue
        own = Path(path.lstrip("/"))  # every group above limits too; in a container the path may not exist
        found += [read(base / part) for part in (own, *own.parents) if ".." not in part.parts]
    return min((quota for quota in found if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def boot_id() -> str:
    """Differs each time the machine starts; "" where that cannot be known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def suspended(pid: int) -> bool:
    """Whether a process is stopped (by SIGSTOP or Ctrl-Z, say). False where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


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
