"""Slices kept by content: cut once, checked before every use, safe among processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf.digest import (
    check_unchanged,
    file_stamps,
    hash_files,
    hash_record,
    remember_hash,
    remembered_hash,
)
from pipeinfer_cpp.gguf.one_pass import Extent
from pipeinfer_cpp.gguf.plan import SlicePlan, slice_plan
from pipeinfer_cpp.gguf.plan_keys import SLICER_VERSION
from pipeinfer_cpp.gguf.source import Source
from pipeinfer_cpp.gguf.splits import LayerRange
from pipeinfer_cpp.gguf.writer import Written, check_room, write_slices
from pipeinfer_cpp.system.files import PIECE, appearing, cache_folder, locked, sweep
from pipeinfer_cpp.system.machine import boot_id
from pipeinfer_cpp.system.reports import CountReport

_SAMPLES, _SAMPLE_BYTES = 128, 4096


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, kept beside the slice as NAME.json.

    `stamp` is the file's size and modification time (ns) when its `extents` (offset, bytes and CRC-32
    of each tensor) were last known to hold, and `boot` the machine's run in which that was: a slice is not
    forced to the disk, so after a crash its bytes are looked at once. `sample_sha256` covers `_SAMPLES`
    pieces spread evenly over the file. `source_path` and `source_header` (SHA-256) say what it was cut from.
    """

    slicer: int
    source_path: str
    source_header: str
    source_sha256: str
    layers: tuple[int, int]
    stamp: tuple[int, int]
    boot: str
    data_start: int
    header_sha256: str
    sample_sha256: str
    extents: tuple[Extent, ...]


def cached_slice(
    source: Source,
    first_layer: int,
    end_layer: int,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: CountReport | None = None,
) -> Path:
    """The path of the slice of layers `[first_layer, end_layer)`: see `cached_slices`."""
    return cached_slices(source, [(first_layer, end_layer)], cache_dir=cache_dir, progress=progress)[0]


def cached_slices(
    source: Source,
    ranges: Sequence[LayerRange],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: CountReport | None = None,
    each: Callable[[int, int, int], None] | None = None,
) -> list[Path]:
    """The paths of these slices: from the cache, else cut now, all that are missing in one pass over the source.

    All layers of the model need no slice: the source's own path comes back. The cache is keyed by
    the source's content, the layers and SLICER_VERSION; where the content's hash is not known yet, it is
    taken in the same pass. An entry is used when its header and evenly spread samples are as written, and,
    if the file was touched or the machine started anew since, all of its tensors; any other entry is cut
    again. One process cuts a source at a time, others wait and find its slices. A killed process leaves
    `.part` files that nobody uses and the next cut removes.

    Raises what `slice_plan` and `write_slices` raise, and PipeInferError when the source changes
    meanwhile. `progress` gets bytes read and bytes to read, `each` (index of the range, bytes written,
    bytes to write).
    """
    plans = {layers: slice_plan(source, *layers) for layers in ranges}
    parts = {layers: plan for layers, plan in plans.items() if not (plan.takes_tokens and plan.gives_logits)}
    found: dict[LayerRange, Path] = {}
    if parts:
        folder = cache_folder("slices", cache_dir)
        key = hash_record(source.parts).stem
        waiting = (lambda: progress(0, source.size_bytes)) if progress is not None else (lambda: None)
        with locked(folder / f"{key}.lock", waiting=waiting):
            digest = remembered_hash(source.parts)
            if digest is None and _seen(folder, source):
                digest = hash_files(source.parts, progress)  # a copy, it seems: its slices are here already
            if digest is not None:
                names = {layers: _name(folder, digest, source, layers) for layers in parts}
                found = {layers: path for layers, path in names.items() if is_intact(path, digest, layers)}
            missing = [plan for layers, plan in parts.items() if layers not in found]
            if missing:
                _sweep(folder, key)
                index = {layers: i for i, layers in enumerate(ranges)}
                which = [index[plan.first_layer, plan.end_layer] for plan in missing]
                tell = each and (lambda i, done, total: each(which[i], done, total))
                found.update(_cut(folder, key, missing, digest, progress, tell))
    return [found.get(layers, source.path) for layers in ranges]


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
        if (stamp, boot_id()) == (record.stamp, record.boot):
            with contextlib.suppress(OSError):  # somebody else's cache
                os.utime(_record_of(path))  # when it was used last, see gguf.kept
            return True
        if not _holds(path, record.extents):
            return False
    except (OSError, msgspec.MsgspecError):
        return False
    with contextlib.suppress(OSError, UserError):
        _write_record(path, msgspec.structs.replace(record, stamp=stamp, boot=boot_id()))
    return True


def _cut(
    folder: Path,
    key: str,
    plans: Sequence[SlicePlan],
    digest: str | None,
    progress: CountReport | None,
    each: Callable[[int, int, int], None] | None,
) -> dict[LayerRange, Path]:
    """Cut these slices; the source is hashed on the way where `digest` is not known."""
    source = plans[0].source
    needed = sum(plan.file_bytes for plan in plans)
    what = "The slice needs" if len(plans) == 1 else f"The {len(plans)} slices need"
    check_room(folder / key, needed, what, "or set PIPEINFER_CACHE to a folder on another disk")
    before = file_stamps(source.parts)
    found = {}
    with contextlib.ExitStack() as stack:
        ends = [f"layers-{plan.first_layer}-{plan.end_layer - 1}" for plan in plans]
        fresh = [folder / f"{key}-{end}-{secrets.token_hex(4)}.gguf" for end in ends]
        with contextlib.ExitStack() as writing:
            files = [writing.enter_context(appearing(path, durable=False)) for path in fresh]
            written, taken = write_slices(plans, files, source_sha256=digest, progress=progress, each=each)
            check_unchanged(source.parts, before, "cut")
            for path in fresh:
                stack.callback(path.unlink, missing_ok=True)
        if digest is None:
            digest = taken
            remember_hash(source.parts, before, digest)
        for plan, path, one in zip(plans, fresh, written, strict=True):
            layers = (plan.first_layer, plan.end_layer)
            final = _name(folder, digest, source, layers)
            if not is_intact(final, digest, layers):
                _keep(plan, path, final, digest, one)
            found[layers] = final
    return found


def _keep(plan: SlicePlan, path: Path, final: Path, digest: str, written: Written) -> None:
    """Give a slice that was just written its name, and its record."""
    header, samples = _quick_hashes(path, written.data_start)
    if header != written.header_sha256:
        raise PipeInferError(f"{path} reads back differently from what was written: check that disk.")
    _record_of(final).unlink(missing_ok=True)
    path.replace(final)
    record = Record(
        slicer=SLICER_VERSION,
        source_path=str(plan.source.path),
        source_header=_header_hash(plan.source),
        source_sha256=digest,
        layers=(plan.first_layer, plan.end_layer),
        stamp=_stamp(final),
        boot=boot_id(),
        data_start=written.data_start,
        header_sha256=header,
        sample_sha256=samples,
        extents=written.extents,
    )
    _write_record(final, record)


def _name(folder: Path, digest: str, source: Source, layers: LayerRange) -> Path:
    first, end = layers
    return folder / f"{digest[:16]}-layers-{first}-{end - 1}-of-{source.n_layers}-v{SLICER_VERSION}.gguf"


def _sweep(folder: Path, key: str) -> None:
    """Remove what killed processes left, of this source (whose lock we hold) and of others."""
    for left in (*folder.glob(f".{key}-layers-*.part"), *folder.glob(f"{key}-layers-*")):
        left.unlink(missing_ok=True)
    sweep(folder, lambda name: folder / f"{name.partition('-layers-')[0]}.lock")


def _seen(folder: Path, source: Source) -> bool:
    """Whether the cache has slices of a source with the same header."""
    here: str | None = None
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            record = msgspec.json.decode(path.read_bytes(), type=_Origin)
            here = here or _header_hash(source)
            if record.source_header == here:
                return True
    return False


class _Origin(msgspec.Struct):
    source_header: str


def _header_hash(source: Source) -> str:
    """SHA-256 of what stands before the first tensor's data, and of the size."""
    start = min(tensor.offset for tensor in source.tensors.values() if tensor.path == source.path)
    with source.path.open("rb") as file:
        return hashlib.sha256(file.read(start) + str(source.size_bytes).encode()).hexdigest()


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


def _holds(path: Path, extents: Sequence[Extent]) -> bool:
    """Whether every tensor's bytes are as written."""
    with path.open("rb", buffering=0) as file:
        for start, size, crc in extents:
            file.seek(start)
            found, left = 0, size
            while left and (piece := file.read(min(PIECE, left))):
                found, left = zlib.crc32(piece, found), left - len(piece)
            if left or found != crc:
                return False
    return True


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _record_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _write_record(path: Path, record: Record) -> None:
    with appearing(_record_of(path)) as out:
        out.write(msgspec.json.encode(record))
