"""Reading a model once: its hash is taken and all slices of it are written on the way."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.system.reports import CountReport

if TYPE_CHECKING:
    from pipeinfer_cpp.gguf.steps import TensorStep

_PIECE, _BUFFERS = 2 << 20, 4
"""Memory in use is their product, whatever the size of the model."""

Extent = tuple[int, int, int]
"""Offset, bytes and CRC-32 of a part of a file."""


@dataclass
class Output:
    """A slice that is being written: its file, and where each tensor goes (step, offset in the file)."""

    file: IO[bytes]
    layout: Sequence[tuple[TensorStep, int]]
    written: int = 0
    checks: dict[int, Extent] = field(default_factory=dict)

    def put(self, start: int, at: int, data: memoryview) -> None:
        """Bytes `at` of the tensor that starts at `start`; those before them came before."""
        view, offset = data, start + at
        while len(view):
            n = os.pwrite(self.file.fileno(), view, offset)
            view, offset = view[n:], offset + n
        _, size, crc = self.checks.get(start, (start, 0, 0))
        self.checks[start] = (start, size + len(data), zlib.crc32(data, crc))


@dataclass(frozen=True)
class _Job:
    """A tensor of the source, at `offset` in its file, that goes to `start` in an output."""

    offset: int
    n_bytes: int
    output: Output
    start: int


def read_once(
    parts: Sequence[Path],
    outputs: Sequence[Output],
    *,
    whole: bool,
    progress: CountReport | None = None,
    each: Callable[[int, int], None] | None = None,
) -> str | None:
    """Write the outputs' tensors in one pass over the source's files.

    `whole`: read all their bytes and return their SHA-256 (hex); else only what the outputs take.
    `progress` gets bytes read and bytes to read, `each` (output, its bytes so far). Raises
    PipeInferError when a file is shorter than its header says.
    """
    digest = hashlib.sha256()
    plans = [_jobs_and_pieces(part, outputs, whole) for part in parts]
    done, total = 0, sum(size for _, pieces in plans for _, size in pieces)
    with ExitStack() as stack:
        # A thread each for hash and writes: both let go of the interpreter, and each keeps its order.
        hasher = stack.enter_context(ThreadPoolExecutor(1, "hash"))
        writer = stack.enter_context(ThreadPoolExecutor(1, "write"))
        ring = [(bytearray(_PIECE), list[Future[None]]()) for _ in range(_BUFFERS)]
        turn = 0
        for part, (jobs, pieces) in zip(parts, plans, strict=True):
            file = stack.enter_context(part.open("rb", buffering=0))
            waiting = iter(jobs)
            job, active = next(waiting, None), list[_Job]()
            for at, size in pieces:
                buffer, futures = ring[turn]
                turn = (turn + 1) % _BUFFERS
                _settle(futures)
                view = memoryview(buffer)[:size]
                _fill(part, file, at, view)
                if whole:
                    futures.append(hasher.submit(digest.update, view))
                while job is not None and job.offset < at + size:
                    active.append(job)
                    job = next(waiting, None)
                for one in active:
                    a, b = max(one.offset, at), min(one.offset + one.n_bytes, at + size)
                    if a < b:
                        futures.append(
                            writer.submit(one.output.put, one.start, a - one.offset, view[a - at : b - at])
                        )
                        one.output.written += b - a
                active = [one for one in active if one.offset + one.n_bytes > at + size]
                done += size
                if progress:
                    progress(done, total)
                if each:
                    for i, output in enumerate(outputs):
                        each(i, output.written)
        for _, futures in ring:
            _settle(futures)
    for output in outputs:
        _write_others(output)
    return digest.hexdigest() if whole else None


def _jobs_and_pieces(
    part: Path, outputs: Sequence[Output], whole: bool
) -> tuple[list[_Job], list[tuple[int, int]]]:
    """What is taken from a file, in its order, and the pieces to read (offset, bytes)."""
    jobs = [
        _Job(step.origin.offset, step.origin.n_bytes, output, start)
        for output in outputs
        for step, start in output.layout
        if step.origin and _is_copy(step) and step.origin.path == part
    ]
    jobs.sort(key=lambda job: job.offset)
    if whole:
        spans = [(0, part.stat().st_size)]
    else:
        spans = []
        for job in jobs:
            a, b = job.offset, job.offset + job.n_bytes
            if spans and a <= spans[-1][1] + 4096:
                spans[-1] = (spans[-1][0], max(b, spans[-1][1]))
            else:
                spans.append((a, b))
    return jobs, [(at, min(_PIECE, b - at)) for a, b in spans for at in range(a, b, _PIECE)]


def _is_copy(step: TensorStep) -> bool:
    return step.data is None and step.stripe is None


def _write_others(output: Output) -> None:
    """Tensors that are not copied as they are: small rewritten ones, and stripes of large ones."""
    for step, start in output.layout:
        if step.is_hole or (step.origin and _is_copy(step)):
            continue
        at = 0
        for piece in pieces_of(step):
            output.put(start, at, memoryview(piece))
            at += len(piece)
        output.written += at


def pieces_of(step: TensorStep) -> Iterator[bytes]:
    """The bytes of a step that is no hole, in pieces of a few megabytes."""
    if step.data is not None:
        yield step.data
        return
    tensor = step.origin
    assert tensor is not None
    stripe = step.stripe
    size = _PIECE if stripe is None else max(1, _PIECE // stripe.row_bytes) * stripe.row_bytes
    with tensor.path.open("rb", buffering=0) as file:
        for at in range(0, tensor.n_bytes, size):
            buffer = bytearray(min(size, tensor.n_bytes - at))
            _fill(tensor.path, file, tensor.offset + at, memoryview(buffer))
            if stripe is None:
                yield bytes(buffer)
            else:
                rows = np.frombuffer(buffer, np.uint8).reshape(-1, stripe.row_bytes)
                yield rows[:, stripe.start : stripe.start + stripe.size].tobytes()


def _fill(path: Path, file: IO[bytes], at: int, view: memoryview) -> None:
    while len(view):
        n = os.preadv(file.fileno(), [view], at) if hasattr(os, "preadv") else _read_at(file, at, view)
        if not n:
            raise PipeInferError(f"{path} became shorter while it was read: try again when it is complete.")
        view, at = view[n:], at + n


def _read_at(file: IO[bytes], at: int, view: memoryview) -> int:
    data = os.pread(file.fileno(), len(view), at)
    view[: len(data)] = data
    return len(data)


def _settle(futures: list[Future[None]]) -> None:
    while futures:
        futures.pop().result()
