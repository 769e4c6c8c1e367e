"""One text through slices, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.gguf import LayerRange, Source, slice_plan, write_slice
from pipeinfer_cpp.llama.context import SliceContext

PROMPT, SINGLE = 24, 4
"""Rows decoded at once, then one by one: past every window of a shrunk model."""


def chained_logits(paths: Sequence[Path], n_vocab: int, kv_type: str = "f16") -> NDArray[np.float32]:
    """float32[PROMPT + SINGLE, n_vocab]: a fixed text through the slices at `paths` (or one whole model)."""
    tokens = np.random.default_rng(5).integers(3, n_vocab - 3, PROMPT + SINGLE, np.int32)
    out, at = [], 0
    with contextlib.ExitStack() as stack:
        contexts = []
        for path in paths:
            contexts.append(SliceContext(path, n_ctx=64, n_ubatch=PROMPT, kv_type=kv_type))
            stack.callback(contexts[-1].close)
        for n in [PROMPT] + [1] * SINGLE:
            hidden = None
            pos = np.arange(at, at + n, dtype=np.int32)
            for context in contexts:
                hidden = context.decode(tokens[at : at + n], pos, np.zeros(n, np.int32), hidden=hidden)
            assert hidden is not None
            out.append(hidden.copy())
            at += n
    return np.concatenate(out)


def write_slices(source: Source, ranges: Sequence[LayerRange], folder: Path) -> list[Path]:
    """The slices of these layers in `folder`; one that is there already is not written again."""
    paths = []
    for first, end in ranges:
        path = folder / f"slice-{first}-{end}.gguf"
        if not path.exists():
            write_slice(slice_plan(source, first, end), path)
        paths.append(path)
    return paths
