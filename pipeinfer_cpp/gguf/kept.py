"""The slices in the cache folder: what they are, and which of them nobody will miss."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeinfer_cpp.gguf.plan_keys import SLICER_VERSION
from pipeinfer_cpp.system.files import cache_folder

UNUSED_DAYS = 60
_DAY = 86400.0
_NAME = re.compile(r"[0-9a-f]{16}-layers-(?P<layers>\d+-\d+)-of-(?P<of>\d+)-v(?P<version>\d+)\.gguf")


class _Origin(msgspec.Struct):
    """What a slice's record says of where it came from."""

    source_path: str = ""


@dataclass(frozen=True)
class KeptSlice:
    """`source`: the file that it was cut from, as its record says. `size`: its bytes on the disk, without holes.
    `used`: when it was last cut or opened (seconds since 1970)."""

    path: Path
    source: Path | None
    layers: str
    of_layers: int
    version: int
    size: int
    used: float

    def why_not(self, days: float = UNUSED_DAYS) -> str | None:
        """Why it can go: nobody can use it, or nobody has for so many days. None where it should stay."""
        if self.version != SLICER_VERSION:
            return "cut by another version"
        if self.source is not None and not self.source.exists():
            return "its model is gone"
        age = (time.time() - self.used) / _DAY
        return f"not used for {age:.0f} days" if age >= days else None

    def remove(self) -> None:
        """A stage that has it open keeps its memory."""
        for path in (self.path, self.path.with_suffix(".json")):
            path.unlink(missing_ok=True)


def kept_slices() -> list[KeptSlice]:
    """All of them, the largest first."""
    found = []
    for path in cache_folder("slices").glob("*.gguf"):
        match = _NAME.fullmatch(path.name)
        record = path.with_suffix(".json")
        with contextlib.suppress(OSError):
            stat = path.stat()
            source: Path | None = None
            used = max(stat.st_atime, stat.st_mtime)
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                used = max(used, record.stat().st_mtime)
                origin = msgspec.json.decode(record.read_bytes(), type=_Origin).source_path
                source = Path(origin) if origin else None
            found.append(
                KeptSlice(
                    path,
                    source,
                    match["layers"] if match is not None else "?",
                    int(match["of"]) if match is not None else 0,
                    int(match["version"]) if match is not None else 0,
                    stat.st_blocks * 512,
                    used,
                )
            )
    return sorted(found, key=lambda kept: -kept.size)
