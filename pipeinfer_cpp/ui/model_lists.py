"""What there is on this machine, as tables and for programs: pairs, fetched models, slices."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeinfer_cpp.gguf.kept import KeptSlice
from pipeinfer_cpp.models import ModelFile, Pair, Registry
from pipeinfer_cpp.models.files import size_text
from pipeinfer_cpp.models.hub import name_of
from pipeinfer_cpp.system.memory import Memory, memory
from pipeinfer_cpp.ui.consoles import shown

_BESIDE = 600_000_000
"""Bytes that a small pipeline needs beside its weights."""


def models_table(registry: Registry, others: Sequence[ModelFile]) -> Table:
    """All pairs, then what else was fetched."""
    total = memory()
    table = Table()
    for column in ("pair", "what it is", "target", "draft", "on this machine", "fits"):
        table.add_column(column, overflow="fold")
    for pair in registry.pairs.values():
        here = shown("no: " + pair.reason, "red") if not pair.supported else _here(pair)
        sizes = _size(pair.target), _size(pair.draft)
        table.add_row(shown(pair.name, "bold"), shown(pair.description), *sizes, here, _fits_text(pair.files, total))
    for model in others:
        size, fits = _size(model), _fits_text([model], total)
        table.add_row(shown(name_of(model), "bold"), Text("fetched"), size, Text(""), Text("yes", "green"), fits)
    if total is not None:
        table.caption = Text(f"'fits': into this machine's memory of {size_text(total.total)}, all stages together")
        table.caption_justify = "left"
    return table


def list_fields(registry: Registry, others: Sequence[ModelFile]) -> dict[str, Any]:
    total = memory()
    return {
        "memory": {"total": total.total, "free": total.free} if total is not None else None,
        "pairs": [
            {
                "name": pair.name,
                "description": pair.description,
                "supported": pair.supported,
                "target": _file_fields(pair.target),
                "draft": _file_fields(pair.draft) if pair.draft is not None else None,
                "fits": _fits(pair.files, total),
            }
            for pair in registry.pairs.values()
        ],
        "models": [{"name": name_of(m), **_file_fields(m), "fits": _fits([m], total)} for m in others],
    }


def slices_table(slices: Sequence[KeptSlice], going: Mapping[KeptSlice, str], *, tense: str) -> Table:
    table = Table()
    for column in ("slice of", "layers", "size", "last used", tense):
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    for kept in slices:
        days = (time.time() - kept.used) / 86400
        used = "today" if days < 1 else f"{days:.0f} days ago"
        of = kept.source.name if kept.source is not None else kept.path.name
        why = going.get(kept)
        fate = Text(why, "yellow") if why is not None else Text("stays", "dim")
        table.add_row(shown(of), f"{kept.layers} of {kept.of_layers}", size_text(kept.size), used, fate)
    return table


def _file_fields(model: ModelFile) -> dict[str, Any]:
    here = model.local()
    return {
        "repo": model.repo,
        "file": model.file,
        "path": str(here) if here is not None else None,
        "parts": model.parts,
        "size": model.bytes,
    }


def _size(model: ModelFile | None) -> Text:
    if model is None:
        return Text("none")
    n = model.bytes
    return Text(size_text(n) if n is not None and model.local() is not None else model.size or "?")


def _here(pair: Pair) -> Text:
    n = sum(model.local() is not None for model in pair.files)
    if n == len(pair.files):
        return Text("yes", "green")
    return Text("in part" if n else "no", "yellow" if n else "dim")


def _fits(files: Sequence[ModelFile], total: Memory | None) -> bool | None:
    """Whether this machine could hold them if nothing else ran; None where that is not known."""
    sizes = [model.bytes for model in files]
    if total is None or None in sizes:
        return None
    return sum(filter(None, sizes)) * 1.05 + _BESIDE <= Memory(total.total, total.total).usable


def _fits_text(files: Sequence[ModelFile], total: Memory | None) -> Text:
    fits = _fits(files, total)
    return Text("?" if fits is None else "yes" if fits else "no", "green" if fits else "yellow")
