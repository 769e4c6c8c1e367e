"""Writing a planned slice: streamed, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.encoding import STRING, encode_string, encode_value, pad
from pipeinfer_cpp.gguf.header import MAGIC, VERSION
from pipeinfer_cpp.gguf.one_pass import Extent, Output, read_once
from pipeinfer_cpp.gguf.plan import SlicePlan
from pipeinfer_cpp.gguf.plan_keys import SOURCE_SHA256, UNKNOWN
from pipeinfer_cpp.gguf.steps import LEFT_OUT, KeyStep, TensorStep
from pipeinfer_cpp.system.files import appearing
from pipeinfer_cpp.system.reports import CountReport


@dataclass(frozen=True)
class Written:
    """What was written: the file's size, where its tensor data starts, the SHA-256 (hex) of its header,
    and a check of each tensor's bytes (placeholders have none: they are holes)."""

    size: int
    data_start: int
    header_sha256: str
    extents: tuple[Extent, ...]


def write_slice(
    plan: SlicePlan,
    path: str | os.PathLike[str],
    progress: CountReport | None = None,
    source_sha256: str = UNKNOWN,
) -> Written:
    """Write the slice to `path`, by way of a temporary name in the same folder.

    `source_sha256` goes into it: only with that can a stage be given the file in place of the model. Memory
    stays at a few megabytes whatever the model's size. `progress` is called with bytes done and bytes in all.
    Raises UserError when the file cannot be written (no room, no folder, or it is the source itself),
    PipeInferError when the source is cut short meanwhile.
    """
    target = Path(path)
    if any(target.exists() and target.samefile(part) for part in plan.source.parts):
        raise UserError(f"{target} is the model that is to be cut: choose another name for the slice.")
    check_room(target, plan.file_bytes, "The slice needs", "or choose another folder")
    with appearing(target) as out:
        written, _ = write_slices([plan], [out], source_sha256=source_sha256, progress=progress)
    return written[0]


def write_slices(
    plans: Sequence[SlicePlan],
    files: Sequence[IO[bytes]],
    *,
    source_sha256: str | None,
    progress: CountReport | None = None,
    each: Callable[[int, int, int], None] | None = None,
) -> tuple[list[Written], str]:
    """Write slices of one source into open files, in one pass over it.

    `source_sha256` (64 hex digits) is written into them and returned; None: it is taken, so that all of the source is
    read. `progress` gets bytes read
    and to read; `each` (slice, bytes written, bytes to write). Raises PipeInferError when the source
    is cut short meanwhile.
    """
    headers, outputs = [], []
    for plan, file in zip(plans, files, strict=True):
        kept = sorted((step for step in plan.tensors if step.target), key=lambda step: step.is_hole)
        header, layout = lay_out(plan.keys, kept, plan.source.alignment)
        file.write(header)
        file.flush()
        places, at = [], len(header)
        for step, size in layout:
            places.append((step, at))
            at += size
        file.truncate(at)
        headers.append((header, at))
        outputs.append(Output(file, places))
    totals = [plan.data_bytes for plan in plans]

    def tell(i: int, done: int) -> None:
        if each:
            each(i, done, totals[i])

    taken = read_once(plans[0].source.parts, outputs, whole=source_sha256 is None, progress=progress, each=tell)
    digest = source_sha256 or taken or UNKNOWN
    headers = [(_named(header, file, digest), size) for (header, size), file in zip(headers, files, strict=True)]
    written = [
        Written(size, len(header), hashlib.sha256(header).hexdigest(), tuple(v for _, v in sorted(out.checks.items())))
        for (header, size), out in zip(headers, outputs, strict=True)
    ]
    return written, digest


def _named(header: bytes, file: IO[bytes], digest: str) -> bytes:
    """The header with the source's hash in it, in the file too."""
    key = encode_string(SOURCE_SHA256)
    changed = header.replace(key + encode_value(STRING, UNKNOWN), key + encode_value(STRING, digest))
    if changed != header:
        os.pwrite(file.fileno(), changed, 0)
    return changed


def lay_out(
    keys: Iterable[KeyStep], tensors: Sequence[TensorStep], alignment: int
) -> tuple[bytes, list[tuple[TensorStep, int]]]:
    """The header, padded, of a file with these tensors in this order; and their padded sizes."""
    kept = [step for step in keys if step.action != LEFT_OUT]
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(kept))]
    parts += [encode_string(step.name) + step.encoded() for step in kept]
    offset, layout = 0, []
    for step in tensors:
        assert step.target
        shape = struct.pack(f"<I{len(step.shape)}Q", len(step.shape), *step.shape)
        parts.append(encode_string(step.target) + shape + struct.pack("<IQ", step.kind, offset))
        size = pad(step.n_bytes, alignment)
        layout.append((step, size))
        offset += size
    header = b"".join(parts)
    return header.ljust(pad(len(header), alignment), b"\0"), layout


def check_room(target: Path, needed: int, who_needs: str, remedy: str) -> None:
    """A clear word before gigabytes are written in vain. `who_needs` begins the sentence: "The slice needs"."""
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError:
        return
    if free < needed + _SPARE:
        raise UserError(
            f"{who_needs} {_mb(needed + _SPARE)} MB and {target.parent} has {int(free / 1e6):,} MB free: "
            f"free some space {remedy}."
        )


_SPARE = 4 << 20
"""For what a file system keeps of the files, and for their records."""


def _mb(n: int) -> str:
    return f"{-(-n // 10**6):,}"
