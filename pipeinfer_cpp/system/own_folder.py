"""Temporary folders that do not outlive their process for long, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path


class OwnFolder:
    """A new folder `PREFIX` + pid + "-" + letters in `base`, of this process until `remove`.

    Folders of the same prefix whose owners were killed are removed by the next one. An owner holds a lock on its
    folder: where `base` is shared with a container its pid says nothing here.
    """

    def __init__(self, prefix: str, base: Path) -> None:
        _sweep(prefix, base)
        self.path = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=base))
        self._lock = os.open(self.path, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """Also when it was removed before."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sweep(prefix: str, base: Path) -> None:
    for path in base.glob(prefix + "*-*"):
        with contextlib.suppress(ValueError, OSError):  # another prefix; another user's; in use
            pid = int(path.name[len(prefix) :].partition("-")[0])
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                folder = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(folder)
