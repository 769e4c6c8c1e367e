"""Main memory: how much this process may use, and how much of it is free."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

LEFT = 256 << 20, 2 << 30
"""At least and at most so much is left to the system and other programs, between them a sixteenth of all."""


@dataclass(frozen=True)
class Memory:
    """Bytes in all, and free ones."""

    total: int
    free: int

    @property
    def usable(self) -> int:
        """What is free but for what is left to others."""
        return max(0, self.free - min(LEFT[1], max(LEFT[0], self.total // 16)))


def memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Memory | None:
    """Of this machine, or of the container that this process is in; None where the system does not tell."""
    try:
        fields = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
        found = Memory(_kilobytes(fields["MemTotal"]), _kilobytes(fields["MemAvailable"]))
    except (OSError, ValueError, KeyError):
        return _physical()
    for limit, used in _limits(proc, groups):
        found = Memory(min(found.total, limit), min(found.free, max(0, limit - used)))
    return found


def _kilobytes(text: str) -> int:
    return int(text.split()[0]) * 1024


def _physical() -> Memory | None:
    """Where there is no /proc: what is built in, half of it taken for free."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return Memory(total, total // 2) if total > 0 else None


def _limits(proc: Path, groups: Path) -> list[tuple[int, int]]:
    """Limit and use of this process's control groups, versions 1 and 2, and of those above them.

    File pages that nobody uses count as free, as they do in MemAvailable.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = Path(path.lstrip("/")).parts  # the host's where a container does not see its own: only `base` exists
        for group in [base.joinpath(*parts[:n]) for n in range(len(parts) + 1)]:
            with contextlib.suppress(OSError, ValueError):
                limit, used = (int((group / name).read_text()) for name in names[:2])
                pages = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                found.append((limit, used - int(pages.get(names[2], 0))))
    return found
