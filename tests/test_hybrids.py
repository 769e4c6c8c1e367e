"""Recurrent and hybrid models: pipelined speculation with hits, misses and aborted decodes, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hybrid_pipeline import Hybrid, in_rows, single_rows
from specimens import specimen

from pipeinfer_cpp.engine import Settings
from pipeinfer_cpp.gguf import Source, slice_plan, write_slice
from pipeinfer_cpp.gguf.cuts import Cuts

HYBRIDS = (
    *("qwen35", "qwen35moe", "qwen3next", "qwen4exp", "deepseek4", "glm5-next", "nemotron_h", "nemotron_h_moe"),
    *("kimi-linear", "granitehybrid", "falcon-h1", "lfm2", "lfm2moe", "bailingmoe3", "jamba", "plamo2"),
    *("mamba", "mamba2"),
)
PROMPT, N = 24, 96


def widest(path: Path, text: list[int], reference: np.ndarray) -> int:
    """As exact mode does: no run is wider than what gives the bits of single rows on this text."""
    return next((w for w in (4, 3, 2) if np.array_equal(in_rows(path, text, PROMPT, w), reference)), 1)


@pytest.mark.parametrize("name", HYBRIDS)
def test_every_accepted_row_has_the_bits_of_single_rows(name: str, tmp_path: Path) -> None:
    text = [int(t) for t in np.random.default_rng(11).integers(3, 120, N + PROMPT + 8)]
    # This llama.cpp adds a matrix of glm5-next, which must be F32 for that.
    kind = GGMLQuantizationType.F32 if name == "glm5-next" else GGMLQuantizationType.Q8_0
    path = specimen(name).build(tmp_path / "model.gguf", kind=kind)
    reference = single_rows(path, text, PROMPT)
    width = widest(path, text, reference)
    assert np.isfinite(reference).all() and reference.std() > 0.1
    source = Source.open(path)
    first = Cuts(source).finest()[0][1]
    slices = [path]
    if first < source.n_layers:
        slices = [tmp_path / "first.gguf", tmp_path / "last.gguf"]
        write_slice(slice_plan(source, 0, first), slices[0])
        write_slice(slice_plan(source, first, source.n_layers), slices[1])
    # Where no wider run keeps the bits, wider ones are tried too, up to rounding: behind a state that was not taken
    # back every row is off by about the logits' own spread.
    for rows in (width, 3) if width == 1 else (width,):
        settings = Settings(n_ctx=256, chunk=32, max_rows=rows, checkpoints=True)
        hybrid = Hybrid(slices, text, reference, settings, random.Random(5))
        try:
            hybrid.turn(PROMPT, N)
        finally:
            hybrid.close()
        stats = hybrid.engine.slots[0].stats
        print(
            f"{name}: {len(slices)} slices, width {rows}, {stats.accepted} accepted, {stats.rejected} rejected, "
            f"{stats.replayed} replayed, {hybrid.aborted} aborted, off by {max(hybrid.off):.2g}"
        )
        assert max(hybrid.off) == 0 if rows == width else np.median(hybrid.off) < 0.05 * reference.std()
        assert len(hybrid.off) >= N and stats.rejected > 5 and stats.accepted > 20
        assert rows == 1 or stats.replayed
