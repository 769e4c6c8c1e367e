"""SHA-256 of files, remembered so that a model of many gigabytes is read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf.one_pass import read_once
from pipeinfer_cpp.system.files import appearing, cache_folder, locked
from pipeinfer_cpp.system.reports import CountReport

__all__ = ["check_unchanged", "file_stamps", "hash_files", "remember_hash", "remembered_hash"]

Stamps = list[list[int]]


def file_stamps(parts: Sequence[Path]) -> Stamps:
    """Device, inode, size, modification and change time (ns) of each: differs whenever one was written again."""
    stats = [path.stat() for path in parts]
    return [[s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in stats]


def check_unchanged(parts: Sequence[Path], before: Stamps, what: str) -> None:
    """Raise PipeInferError when a part was written since `before`, while it was `what`."""
    if file_stamps(parts) != before:
        raise PipeInferError(f"{parts[0]} changed while it was {what}: wait until it is complete, then try again.")


def hash_files(parts: Sequence[Path], progress: CountReport | None = None) -> str:
    """SHA-256 (hex) of the parts' content, one after the other, from the cache where known.

    A second process that asks for the same files at the same time waits for the first. Raises
    PipeInferError when a part changes while it is read.
    """
    size = sum(path.stat().st_size for path in parts)
    waiting = (lambda: progress(0, size)) if progress is not None else (lambda: None)
    with locked(hash_record(parts).with_suffix(".lock"), waiting=waiting):
        known = remembered_hash(parts)
        if known:
            return known
        before = file_stamps(parts)
        digest = read_once(parts, [], whole=True, progress=progress)
        assert digest is not None
        check_unchanged(parts, before, "read")
        remember_hash(parts, before, digest)
        return digest


def remembered_hash(parts: Sequence[Path]) -> str | None:
    """The hash computed earlier, when no part was written since, wherever it lies now."""
    try:
        record = json.loads(hash_record(parts).read_text())
        if record["stamps"] == file_stamps(parts):
            return str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def remember_hash(parts: Sequence[Path], stamps: Stamps, digest: str) -> None:
    text = json.dumps({"parts": [str(p) for p in parts], "stamps": stamps, "sha256": digest})
    with contextlib.suppress(OSError, UserError), appearing(hash_record(parts)) as out:
        out.write(text.encode())


def hash_record(parts: Sequence[Path]) -> Path:
    """Where the hash of these files is kept: by device and inode, so that their name does not matter."""
    nodes = "|".join(f"{device}:{inode}" for device, inode, *_ in file_stamps(parts))
    return cache_folder("hashes") / f"{hashlib.sha256(nodes.encode()).hexdigest()[:24]}.json"
