"""What a pipeline needs of its machines' memory, as a table or for programs."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from pipeinfer_cpp.cluster.fit import Fit
from pipeinfer_cpp.gguf.needs import Needs
from pipeinfer_cpp.models.files import size_text

_PARTS = (
    ("weights", "weights"),
    ("kv", "KV cache"),
    ("compute", "compute"),
    ("checkpoints", "checkpoints"),
    ("program", "program"),
)


def memory_table(fit: Fit, n_ctx: int, trained: int) -> Table:
    """One row for each process; the caption says what a token costs and what is free."""
    rows = _rows(fit, n_ctx)
    parts = [(name, title) for name, title in _PARTS if any(getattr(need, name) for _, _, need in rows)]
    table = Table(title=Text(f"Memory at a context of {n_ctx:,} tokens"), title_justify="left", caption_justify="left")
    table.add_column("")
    for title in ("layers", *(title for _, title in parts), "in all"):
        table.add_column(title, justify="right")
    for name, layers, need in rows:
        table.add_row(name, layers, *(size_text(getattr(need, part)) for part, _ in parts), size_text(need.total))
    if len(rows) > 1:
        sums = [sum(getattr(need, part) for _, _, need in rows) for part, _ in parts]
        table.add_section()
        table.add_row("together", "", *map(size_text, sums), size_text(sum(need.total for _, _, need in rows)))
    table.caption = Text("\n".join(_notes(fit, n_ctx, trained)))
    return table


def memory_fields(fit: Fit, n_ctx: int, trained: int) -> dict[str, Any]:
    """The same for programs, in bytes."""
    memory = fit.here.memory
    return {
        "ctx": n_ctx,
        "ctx_trained": trained,
        "ctx_largest": fit.largest_ctx(trained),
        "bytes_per_token": fit.cell(),
        "stash": fit.stash(n_ctx),
        "fits": fit.fits(n_ctx),
        "free": memory.free if memory is not None else None,
        "usable": memory.usable if memory is not None else None,
        "processes": [
            {"name": name, "layers": layers, **{part: getattr(need, part) for part, _ in _PARTS}, "total": need.total}
            for name, layers, need in _rows(fit, n_ctx)
        ],
    }


def _rows(fit: Fit, n_ctx: int) -> list[tuple[str, str, Needs]]:
    stages = zip(fit.ranges, fit.stages(n_ctx), strict=True)
    rows = [(f"stage {i}", f"{first}-{end - 1}", need) for i, ((first, end), need) in enumerate(stages)]
    drafting = fit.drafting(n_ctx)
    return rows if drafting is None else [*rows, ("draft", "", drafting)]


def _notes(fit: Fit, n_ctx: int, trained: int) -> list[str]:
    notes = [f"Each token of the context costs {fit.cell() / 1000:.1f} kB; the model's own context is {trained:,}."]
    memory = fit.here.memory
    if memory is not None:
        notes.append(f"Of this machine's {size_text(memory.total)}, {size_text(memory.free)} are free.")
    if kept := fit.stash(n_ctx):
        notes.append(f"Conversations that gave up their slot may keep {kept:,} tokens beside the cache.")
    if not fit.fits(n_ctx):
        notes.append(f"It does not fit: {fit.refusal(n_ctx, trained)}")
    elif (largest := fit.largest_ctx(trained)) > n_ctx:
        notes.append(f"A context of {largest:,} would fit here, with {size_text(fit.cell() * largest)} of cache.")
    return notes
