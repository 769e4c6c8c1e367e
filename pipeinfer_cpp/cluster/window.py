"""A window into a pipeline: a Unix socket on which the same user's `pipeinfer top` sees what goes on in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from pipeinfer_cpp.cluster.live import Live
from pipeinfer_cpp.errors import PipeInferError

WAIT = 5.0
"""Seconds for an answer."""
_NUMBERS = itertools.count()


class Window:
    """Whoever connects is told what goes on, once. Raises OSError where there cannot be one."""

    def __init__(self, live: Callable[[], Live]) -> None:
        """`live` is called in a thread of the window's."""
        self._live = live
        self.path = _folder() / f"{os.getpid()}-{next(_NUMBERS)}.sock"
        self._closing = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path.unlink(missing_ok=True)  # of a process of the same number that was killed
            self._socket.bind(str(self.path))
            self._socket.listen(8)
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="window", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
            knock.settimeout(WAIT)
            knock.connect(str(self.path))  # wakes the thread
        if threading.current_thread() is not self._thread:
            self._thread.join(WAIT)
        self._socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _serve(self) -> None:
        while not self._closing:
            try:
                caller, _ = self._socket.accept()
            except OSError:
                return
            with caller, contextlib.suppress(OSError, PipeInferError):
                if not self._closing:
                    caller.settimeout(WAIT)
                    caller.sendall(msgspec.json.encode(self._live()))


def windows() -> dict[int, Path]:
    """Those that are open, by process id. Of a process with several, the newest."""
    found: dict[int, Path] = {}
    with contextlib.suppress(OSError):
        for path in sorted(_folder().glob("*.sock"), key=lambda path: path.stat().st_mtime):
            pid = path.name.partition("-")[0]
            if not pid.isdecimal():
                continue
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:  # it was killed
                path.unlink(missing_ok=True)
            except OSError:
                pass
            else:
                found[int(pid)] = path
    return found


def look(path: Path) -> Live | None:
    """What goes on behind the window; None where nobody answers any more."""
    with contextlib.suppress(OSError, msgspec.DecodeError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(WAIT)
        caller.connect(str(path))
        said = b""
        while part := caller.recv(65536):
            said += part
        return msgspec.json.decode(said, type=Live)
    return None


def _folder() -> Path:
    """The user's alone. Made when missing; OSError where it is somebody else's."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) / "pipeinfer" if runtime else Path(tempfile.gettempdir()) / f"pipeinfer-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    about = base.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise PermissionError(f"{base} is not this user's alone")
    return base
