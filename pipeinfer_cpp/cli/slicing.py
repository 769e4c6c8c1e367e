"""`pipeinfer slice`: the parts of a model as GGUF files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.splits import LayerRange

if TYPE_CHECKING:
    from pipeinfer_cpp.gguf import SlicePlan, Source


def cut(
    file: Annotated[Path, typer.Argument(help="The model, a GGUF (of a multi-part one, any part).", metavar="FILE")],
    layers: Annotated[str | None, typer.Option(help="The layers of each slice: 0-9,10-19.", metavar="RANGES")] = None,
    stages: Annotated[int | None, typer.Option(help="Or into how many even slices.", metavar="N")] = None,
    split: Annotated[str | None, typer.Option(help="Or shares of the layers: 0.3,0.3,0.4.", metavar="SHARES")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder that gets the slices as well.", metavar="DIR")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what becomes of every key and tensor, and why.")
    ] = False,
) -> None:
    """Cut a model's layers into slices that llama.cpp loads as models of their own.

    They are kept where the first start of a pipeline with these layers looks for them, and their paths are printed.
    With -o they are put into a folder too: a machine with only such a file serves its layers with
    `pipeinfer stage --target FILE`.
    """
    from pipeinfer_cpp.gguf import Source, cached_slices, slice_plan
    from pipeinfer_cpp.proof.prove import prove
    from pipeinfer_cpp.ui.consoles import out, warn
    from pipeinfer_cpp.ui.model_tables import plan_table
    from pipeinfer_cpp.ui.progress import transfer

    source = Source.open(file)
    ranges, notes = _ranges(source, layers, stages, split)
    plans = [slice_plan(source, first, end) for first, end in ranges]
    for note in notes:
        warn(note)
    if plan:
        for one in plans:
            out().print(plan_table(one))
        return
    if output is not None and not output.is_dir():
        raise UserError(f"{output} is not a folder: make it first, or choose another with -o.")
    note = prove(source, ranges).note
    if note:
        warn(note)
    if len(ranges) == 1:
        warn("one stage holds the whole model: there is nothing to cut.")
    with transfer() as progress:
        kept = cached_slices(source, ranges, progress=lambda done, total: progress(source.path.name, done, total))
        paths = kept if output is None else [_placed(path, one, output) for path, one in zip(kept, plans, strict=True)]
    for path in paths:
        typer.echo(str(path))


def _placed(kept: Path, plan: SlicePlan, folder: Path) -> Path:
    """The same file by a name in that folder, or a copy on that disk; of a whole model the model itself."""
    from pipeinfer_cpp.gguf import write_slice

    source = plan.source
    if kept == source.path:
        return kept
    path = folder / f"{source.path.stem}-layers-{plan.first_layer}-{plan.end_layer - 1}.gguf"
    if path.exists() and any(path.samefile(part) for part in source.parts):
        raise UserError(f"{path} is the model that is to be cut: choose another folder with -o.")
    new = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        os.link(kept, new)
        new.replace(path)
        new.unlink(missing_ok=True)  # where both are the same file already, a rename does nothing
    except OSError:  # another disk, or one without links
        write_slice(plan, path, source_sha256=source.sha256())
    return path


def _ranges(
    source: Source, layers: str | None, stages: int | None, split: str | None
) -> tuple[list[LayerRange], list[str]]:
    """The layers of each slice, and what to tell the user of them."""
    from pipeinfer_cpp.gguf import check_split, even_split, fit_split, parse_layers, parse_shares, split_by_shares

    if sum(given is not None for given in (layers, stages, split)) != 1:
        raise UserError("Say where to cut with one of --layers 0-9,10-19, --stages N or --split 0.5,0.5.")
    if layers is not None:
        typed = parse_layers(layers, source.n_layers)
        check_split(source, typed)
        return typed, []
    if split is not None:
        return fit_split(source, split_by_shares(parse_shares(split), source.n_layers))
    assert stages is not None
    return fit_split(source, even_split(source.n_layers, stages))
