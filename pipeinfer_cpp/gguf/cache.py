"""Slices kept by content: cut once, checked before every use, safe among processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf.digest import file_stamp, hash_files, remembered_hash
from pipeinfer_cpp.gguf.files import PIECE, Progress, appearing, cache_folder, locked, sweep
from pipeinfer_cpp.gguf.plan import SlicePlan, slice_plan
from pipeinfer_cpp.gguf.source import Source
from pipeinfer_cpp.gguf.writer import write_slice

SLICER_VERSION = 2
"""Goes up whenever the same layers of the same source would be written otherwise."""

_SAMPLES, _SAMPLE_BYTES = 128, 4096


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, kept beside the slice as NAME.json.

    `stamp` is the file's size and modification time (ns) when its `sha256` was last known to
    hold; `sample_sha256` covers `_SAMPLES` pieces spread evenly over the file.
    """

    slicer: int
    source_sha256: str
    layers: tuple[int, int]
    stamp: tuple[int, int]
    data_start: int
    header_sha256: str
    sample_sha256: str
    sha256: str


def cached_slice(
    source: Source,
    first_layer: int,
    end_layer: int,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """The path of the slice of layers `[first_layer, end_layer)`: from the cache, else cut now.

    All layers of the model need no slice: the source's own path comes back. The cache is keyed by
    the source's content, the layers and SLICER_VERSION. An entry is used when its header and
    evenly spread samples are as written, and, if the file was touched since, all of its bytes; any
    other entry is cut again. Two processes that want one slice cut it once: the second waits. A
    killed process leaves a `.part` file that nobody uses and the next cut removes.

    Raises what `slice_plan` and `write_slice` raise, and PipeInferError when the source changes
    meanwhile. `progress` counts the bytes hashed (where not remembered) and copied.
    """
    plan = slice_plan(source, first_layer, end_layer)
    if plan.takes_tokens and plan.gives_logits:
        return source.path
    folder = cache_folder("slices", cache_dir)
    to_hash = 0 if remembered_hash(source.parts) else source.size_bytes
    total = to_hash + plan.data_bytes
    digest = hash_files(source.parts, progress and (lambda done, _: progress(done, total)))
    path = folder / f"{digest[:16]}-layers-{first_layer}-{end_layer - 1}-of-{source.n_layers}-v{SLICER_VERSION}.gguf"
    with locked(_lock_of(path)):
        if not is_intact(path, digest, (first_layer, end_layer)):
            sweep(folder, lambda name: _lock_of(folder / name))
            _cut(plan, path, digest, progress and (lambda done, _: progress(to_hash + done, total)))
    return path


def is_intact(path: Path, source_sha256: str, layers: tuple[int, int]) -> bool:
    """Whether the slice at `path` is the one that was written for this source and these layers."""
    try:
        record = msgspec.json.decode(_record_of(path).read_bytes(), type=Record)
        stamp = _stamp(path)
        asked = (SLICER_VERSION, source_sha256, layers, stamp[0])
        if (record.slicer, record.source_sha256, record.layers, record.stamp[0]) != asked:
            return False
        header, samples = _quick_hashes(path, record.data_start)
        if (header, samples) != (record.header_sha256, record.sample_sha256):
            return False
        if stamp == record.stamp:
            return True
        if _full_hash(path) != record.sha256:
            return False
    except (OSError, msgspec.MsgspecError):
        return False
    with contextlib.suppress(OSError, UserError):
        _write_record(path, msgspec.structs.replace(record, stamp=stamp))
    return True


def _cut(plan: SlicePlan, path: Path, digest: str, progress: Progress | None) -> None:
    before = [file_stamp(part) for part in plan.source.parts]
    if hash_files(plan.source.parts) != digest:
        raise PipeInferError(f"{plan.source.path} changed while it was cut: wait until it is complete, then try again.")
    _record_of(path).unlink(missing_ok=True)
    written = write_slice(plan, path, progress)
    if [file_stamp(part) for part in plan.source.parts] != before:
        path.unlink(missing_ok=True)
        raise PipeInferError(f"{plan.source.path} changed while it was cut: wait until it is complete, then try again.")
    header, samples = _quick_hashes(path, written.data_start)
    if header != written.header_sha256:
        raise PipeInferError(f"{path} reads back other than it was written: check that disk.")
    record = Record(
        slicer=SLICER_VERSION,
        source_sha256=digest,
        layers=(plan.first_layer, plan.end_layer),
        stamp=_stamp(path),
        data_start=written.data_start,
        header_sha256=header,
        sample_sha256=samples,
        sha256=written.sha256,
    )
    _write_record(path, record)


def _quick_hashes(path: Path, data_start: int) -> tuple[str, str]:
    """SHA-256 of the header, and of pieces spread evenly over the rest (both ends included)."""
    samples = hashlib.sha256()
    with path.open("rb") as file:
        header = hashlib.sha256(file.read(data_start)).hexdigest()
        span = max(0, os.fstat(file.fileno()).st_size - data_start - _SAMPLE_BYTES)
        for i in range(_SAMPLES):
            file.seek(data_start + span * i // (_SAMPLES - 1))
            samples.update(file.read(_SAMPLE_BYTES))
    return header, samples.hexdigest()


def _full_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _record_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _write_record(path: Path, record: Record) -> None:
    with appearing(_record_of(path)) as out:
        out.write(msgspec.json.encode(record))
