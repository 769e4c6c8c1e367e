"""Writing a planned slice: streamed, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf.encoding import encode_string, pad
from pipeinfer_cpp.gguf.files import PIECE, Progress, appearing
from pipeinfer_cpp.gguf.header import MAGIC, VERSION, Tensor
from pipeinfer_cpp.gguf.plan import SlicePlan
from pipeinfer_cpp.gguf.steps import LEFT_OUT, KeyStep, Stripe, TensorStep


@dataclass(frozen=True)
class Written:
    """What was written: the file's size, where its tensor data starts, and the SHA-256 (hex) of
    its header and of all its bytes."""

    size: int
    data_start: int
    header_sha256: str
    sha256: str


def write_slice(plan: SlicePlan, path: str | os.PathLike[str], progress: Progress | None = None) -> Written:
    """Write the slice to `path`, by way of a temporary name in the same folder.

    Memory stays at a few megabytes whatever the model's size. `progress` is called with bytes
    done and bytes in all. Raises UserError when the file cannot be written (no room, no folder,
    or it is the source itself), PipeInferError when the source is cut short meanwhile.
    """
    target = Path(path)
    if any(target.exists() and target.samefile(part) for part in plan.source.parts):
        raise UserError(f"{target} is the model that is to be cut: choose another name for the slice.")
    check_room(target, plan.data_bytes, "The slice", "or set PIPEINFER_CACHE to a folder on another disk")
    kept = sorted((step for step in plan.tensors if step.target), key=lambda step: step.is_hole)
    header, layout = lay_out(plan.keys, kept, plan.source.alignment)
    whole, done = hashlib.sha256(header), 0
    with appearing(target) as out:
        out.write(header)
        for step, size in layout:
            if step.is_hole:
                out.seek(size, os.SEEK_CUR)
                _hash_zeros(whole, size)
                continue
            for piece in _pieces(step):
                out.write(piece)
                whole.update(piece)
                done += len(piece)
                if progress:
                    progress(done, plan.data_bytes)
            _pad(out, whole, size - step.n_bytes)
        total = out.tell()
        out.truncate(total)
    return Written(total, len(header), hashlib.sha256(header).hexdigest(), whole.hexdigest())


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


def _pieces(step: TensorStep) -> Iterator[bytes]:
    if step.data is not None:
        yield step.data
    elif step.origin and step.stripe:
        yield from _read_stripe(step.origin, step.stripe)
    elif step.origin:
        yield from _read(step.origin)


def _read(tensor: Tensor, size: int = PIECE) -> Iterator[bytes]:
    """The tensor's bytes, `size` at a time."""
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.offset)
        left = tensor.n_bytes
        while left:
            piece = file.read(min(size, left))
            if not piece:
                raise PipeInferError(f"{tensor.path} became shorter while it was cut: try again when it is complete.")
            left -= len(piece)
            yield piece


def _read_stripe(tensor: Tensor, stripe: Stripe) -> Iterator[bytes]:
    if stripe.row_bytes > PIECE:
        for row in range(tensor.n_bytes // stripe.row_bytes):
            start = tensor.offset + row * stripe.row_bytes + stripe.start
            yield from _read(replace(tensor, offset=start, n_bytes=stripe.size))
        return
    left = b""
    for piece in _read(tensor, PIECE // stripe.row_bytes * stripe.row_bytes):
        data = left + piece
        n_rows = len(data) // stripe.row_bytes
        rows = np.frombuffer(data, np.uint8, n_rows * stripe.row_bytes).reshape(n_rows, stripe.row_bytes)
        yield rows[:, stripe.start : stripe.start + stripe.size].tobytes()
        left = data[n_rows * stripe.row_bytes :]


def _pad(out: BinaryIO, digest: hashlib._Hash, n: int) -> None:
    out.write(bytes(n))
    digest.update(bytes(n))


def _hash_zeros(digest: hashlib._Hash, n: int) -> None:
    zeros = bytes(min(n, PIECE))
    while n:
        digest.update(zeros[:n] if n < len(zeros) else zeros)
        n -= min(n, len(zeros))


def check_room(target: Path, needed: int, what: str, remedy: str) -> None:
    """A clear word before gigabytes are written in vain."""
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError:
        return
    if free < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB and {target.parent} has {free / 1e9:.1f} GB free: "
            f"free some space {remedy}."
        )
