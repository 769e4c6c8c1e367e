"""No worker outlives its coordinator: its standard input is a pipe that only the coordinator holds."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path


def follow_parent(folder: Path) -> None:
    """End this process, whatever it is doing, as soon as standard input is closed. Where the coordinator did not close
    it but was killed, its `folder` of sockets goes too."""
    parent = os.getppid()

    def watch() -> None:
        while sys.stdin.buffer.raw.read(1):  # type: ignore[union-attr]
            pass
        if folder.name.startswith(f"pipeinfer-{parent}-") and _gone(parent):
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _gone(parent: int) -> bool:
    """Whether it has ended, or is about to: its files are closed a moment before it is reaped."""
    if os.getppid() != parent:
        return True
    try:
        fields = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] in "ZX" or bool(int(fields[6]) & 4)  # PF_EXITING


def resident_mb() -> float:
    """Resident memory of this process in megabytes (peak where the system does not tell the present)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
