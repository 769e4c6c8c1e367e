"""Writing a bigger model with the same outputs: streamed, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf.header import Tensor
from pipeinfer_cpp.gguf.inflate_plan import Inflation
from pipeinfer_cpp.gguf.inflate_tensors import InflatedTensor
from pipeinfer_cpp.gguf.writer import check_room, lay_out
from pipeinfer_cpp.system.files import PIECE, appearing
from pipeinfer_cpp.system.reports import CountReport


def write_inflated(
    plan: Inflation, path: str | os.PathLike[str], progress: CountReport | None = None, *, force: bool = False
) -> None:
    """Write the bigger model to `path`, by way of a temporary name in the same folder.

    Zeros are written out, so that the file takes the disk and memory of its size; memory in use
    meanwhile is a few megabytes. `progress` is called with bytes done and bytes in all. Raises
    UserError when the file exists (unless `force`), is the source, or cannot be written.
    """
    target = Path(path)
    if any(target.exists() and target.samefile(part) for part in plan.source.parts):
        raise UserError(f"{target} is the model that is to be inflated: choose another name.")
    if target.exists() and not force:
        raise UserError(f"{target} exists already: choose another name, or overwrite it with --force.")
    check_room(target, plan.data_bytes, "The inflated model needs", "or choose another folder")
    header, layout = lay_out(plan.keys, plan.tensors, plan.source.alignment)
    done = 0
    with appearing(target) as out:
        out.write(header)
        for step, (_, size) in zip(plan.tensors, layout, strict=True):
            for piece in _pieces(step):
                out.write(piece)
                done += len(piece)
                if progress:
                    progress(done, plan.data_bytes)
            out.write(bytes(size - step.n_bytes))


def _pieces(step: InflatedTensor) -> Iterator[bytes]:
    """Bytes of zero are the number zero in every type of ggml, and rows are whole blocks."""
    left = step.n_bytes
    if step.data is not None:
        yield step.data
        left -= len(step.data)
    elif step.origin is not None:
        along_row, *of_rows = step.repeats or (1,)
        n_rows, n_rows_new = prod(step.origin.shape[1:]), prod(step.shape[1:])
        for _ in range(prod(of_rows)):
            yield from _rows(step.origin, n_rows, along_row, step.n_bytes // n_rows_new)
            left -= step.n_bytes // n_rows_new * n_rows
    for at in range(0, left, PIECE):
        yield bytes(min(PIECE, left - at))


def _rows(origin: Tensor, n_rows: int, repeats: int, size_new: int) -> Iterator[bytes]:
    """The origin's rows, each repeated and padded to `size_new` bytes."""
    size = origin.n_bytes // n_rows
    with origin.path.open("rb") as file:
        file.seek(origin.offset)
        at_once = max(1, PIECE // size_new)
        for first in range(0, n_rows, at_once):
            n = min(at_once, n_rows - first)
            raw = file.read(n * size)
            if len(raw) < n * size:
                raise PipeInferError(f"{origin.path} became shorter while it was read: try again when it is complete.")
            rows = np.zeros((n, size_new), np.uint8)
            rows[:, : size * repeats] = np.tile(np.frombuffer(raw, np.uint8).reshape(n, size), repeats)
            yield rows.tobytes()
