"""`pipeinfer slice`: the parts of a model as GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.splits import LayerRange

if TYPE_CHECKING:
    from pipeinfer_cpp.gguf import Source


def cut(
    file: Annotated[Path, typer.Argument(help="The model, a GGUF (of a multi-part one, any part).", metavar="FILE")],
    layers: Annotated[str | None, typer.Option(help="The layers of each slice: 0-9,10-19.", metavar="RANGES")] = None,
    stages: Annotated[int | None, typer.Option(help="Or into how many even slices.", metavar="N")] = None,
    split: Annotated[str | None, typer.Option(help="Or shares of the layers: 0.3,0.3,0.4.", metavar="SHARES")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the slices.", metavar="DIR")] = Path("."),
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what becomes of every key and tensor, and why.")
    ] = False,
) -> None:
    """Cut a model's layers into slices that llama.cpp loads as models of their own.

    Stages cut (and keep) their own slices: this is for looking at them, or for cutting ahead.
    """
    from pipeinfer_cpp.gguf import Source, slice_plan, write_slice
    from pipeinfer_cpp.proof.prove import prove
    from pipeinfer_cpp.ui.consoles import out, warn
    from pipeinfer_cpp.ui.plans import plan_table
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
    if not output.is_dir():
        raise UserError(f"{output} is not a folder: make it first, or choose another with -o.")
    note = prove(source, ranges).note
    if note:
        warn(note)
    written = []
    with transfer() as progress:
        for one in plans:
            path = output / f"{source.path.stem}-layers-{one.first_layer}-{one.end_layer - 1}.gguf"
            write_slice(one, path, lambda done, total, name=path.name: progress(name, done, total))  # type: ignore[misc]
            written.append(path)
    for path in written:
        typer.echo(str(path))


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
