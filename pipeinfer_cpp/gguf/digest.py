"""SHA-256 of files, remembered so that a model of many gigabytes is read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf.files import PIECE, Progress, appearing, cache_folder, locked

__all__ = ["Progress", "file_stamp", "hash_files", "remembered_hash"]


def file_stamp(path: Path) -> list[int]:
    """Size, modification and change time (ns): differs whenever a file was written again."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def hash_files(parts: Sequence[Path], progress: Progress | None = None) -> str:
    """SHA-256 (hex) of the parts' content, one after the other, from the cache where known.

    A second process that asks for the same files at the same time waits for the first. Raises
    PipeInferError when a part changes while it is read.
    """
    record = _record(parts)
    with locked(record.with_suffix(".lock")):
        known = remembered_hash(parts)
        if known:
            return known
        before = [file_stamp(path) for path in parts]
        digest, done, total = hashlib.sha256(), 0, sum(stamp[0] for stamp in before)
        for path, stamp in zip(parts, before, strict=True):
            with path.open("rb", buffering=0) as file:
                left = stamp[0]  # no further: a file that still grows would never end
                while left and (piece := file.read(min(PIECE, left))):
                    digest.update(piece)
                    left -= len(piece)
                    done += len(piece)
                    if progress:
                        progress(done, total)
        if [file_stamp(path) for path in parts] != before:
            raise PipeInferError(f"{parts[0]} changed while it was read: wait until it is complete, then try again.")
        text = json.dumps({"parts": [str(p) for p in parts], "stamps": before, "sha256": digest.hexdigest()})
        with contextlib.suppress(OSError, UserError), appearing(record) as out:
            out.write(text.encode())
        return digest.hexdigest()


def remembered_hash(parts: Sequence[Path]) -> str | None:
    """The hash computed earlier, when no part was written since."""
    try:
        record = json.loads(_record(parts).read_text())
        if record["stamps"] == [file_stamp(path) for path in parts]:
            return str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _record(parts: Sequence[Path]) -> Path:
    folder = cache_folder("hashes")
    names = "\0".join(str(path.resolve()) for path in parts)
    return folder / f"{hashlib.sha256(names.encode()).hexdigest()[:24]}.json"
