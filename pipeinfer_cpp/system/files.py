"""The cache folder; files that appear whole or not at all, and locks that the system frees when their holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.system.machine import suspended


def config_dir() -> Path:
    """pipeinfer/ in $XDG_CONFIG_HOME, else in ~/.config. It may not exist."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pipeinfer"


def cache_dir() -> Path:
    """$PIPEINFER_CACHE, else pipeinfer/ in the user's cache folder. It is made when missing."""
    given = os.environ.get("PIPEINFER_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(given) if given else Path(base) / "pipeinfer"
    path.mkdir(parents=True, exist_ok=True)
    return path



PIECE = 4 << 20
"""Bytes read or written at a time: what keeps memory small whatever the size of a tensor."""
QUIET = 2.0
"""Seconds that a lock is waited for without a word."""


@contextlib.contextmanager
def appearing(path: Path, *, durable: bool = True, private: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` only when the block ends well.

    Until then it is `.NAME.PID-RANDOM.part` in the same folder; an exception removes it, a killed
    process leaves it behind under that name (see `sweep`). Unless `durable` is off it is on the disk by then.
    `private`: only its owner may read it. What a link names is written, and a pipe or a device as it is.
    Raises UserError when the folder is missing, may not be written, or is full.
    """
    path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as file:
            yield file
        return
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        mode = 0o600 if private else 0o666
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _REASONS:
            raise UserError(f"{path} could not be written: {_REASONS[error.errno]}.") from None
        raise


_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.ENOENT: "its folder does not exist; make it first",
    errno.EACCES: "you may not write in its folder; choose another one",
    errno.EPERM: "you may not write in its folder; choose another one",
    errno.EROFS: "its file system is read-only; choose another folder",
    errno.EISDIR: "there is a folder of that name; choose another name",
}


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, waiting: Callable[[], None] = lambda: None) -> Iterator[bool | None]:
    """Hold the lock file `path` (made when missing, never removed) against other processes.

    Yields whether it is held: None when `wait` is off and another process has it, False where locks
    cannot be had (a file system without them), and the caller must do without. Who waits for longer than `QUIET`
    logs a warning that names the process; `waiting` is called ten times a second from then on, and may raise to
    give up.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a+b"))
        except OSError:
            yield False
            return
        held = _take(file, path, wait, waiting)
        if held:
            with contextlib.suppress(OSError):  # for those who wait: who it is
                file.truncate(0)
                file.write(str(os.getpid()).encode())
                file.flush()
        yield held


def _take(file: BinaryIO, path: Path, wait: bool, waiting: Callable[[], None]) -> bool | None:
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not wait:
                return None
        except OSError:
            return False
        if not told and time.monotonic() - began > QUIET:
            import logging  # where nobody set it up, it prints on stderr

            told = True
            logging.getLogger(__name__).warning("%s", _sentence(file, path))
        if told:
            waiting()
        time.sleep(0.1)


def _sentence(file: BinaryIO, path: Path) -> str:
    file.seek(0)
    try:
        pid = int(file.read(20))
    except ValueError:
        return f"Waiting for another process that is at the same model and holds {path}; Ctrl-C stops waiting."
    how = f"is suspended (kill -CONT {pid} wakes it, kill -9 {pid} ends it)" if suspended(pid) else "is still running"
    return f"Waiting for process {pid}, which is cutting or reading the same model: it {how}; Ctrl-C stops waiting."


def cache_folder(name: str, given: str | os.PathLike[str] | None = None) -> Path:
    """The folder `given`, or the one of that name in the cache folder, made when missing.

    Raises UserError when it cannot be made.
    """
    try:
        folder = Path(given) if given is not None else cache_dir() / name
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The cache folder {error.filename} cannot be used ({error.strerror}): set PIPEINFER_CACHE to another one."
        ) from None
    return folder


def sweep(folder: Path, lock_of: Callable[[str], Path]) -> None:
    """Remove `.part` files in `folder` whose writers are gone.

    `lock_of` gives the lock file that a writer of a name holds: a part whose lock is free has no
    writer any more.
    """
    for part in folder.glob(".*.part"):
        name = part.name[1:].removesuffix(".part").rpartition(".")[0]
        with contextlib.suppress(OSError), locked(lock_of(name), wait=False) as held:
            if held:
                part.unlink(missing_ok=True)
