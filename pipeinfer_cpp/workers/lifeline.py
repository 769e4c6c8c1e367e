"""No worker outlives its coordinator: its standard input is a pipe that only the coordinator holds."""

from __future__ import annotations

import os
import sys
import threading


def follow_parent() -> None:
    """End this process, whatever it is doing, as soon as standard input is closed."""

    def watch() -> None:
        while sys.stdin.buffer.raw.read(1):  # type: ignore[union-attr]
            pass
        os._exit(0)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def resident_mb() -> float:
    """Resident memory of this process in megabytes (peak where the system does not tell the present)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
