"""`pipeinfer models`: which there are, what is in them, fetching them, making bigger ones of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="models", help="List, inspect, fetch and inflate models.", no_args_is_help=True)
_MODELS = typer.Option("--models", help="A further models.toml.", metavar="FILE")


@app.command("list")
def list_pairs(models: Annotated[Path | None, _MODELS] = None) -> None:
    """All pairs, and which of them are on this machine."""
    from pipeinfer_cpp.models import load_registry
    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.model_tables import pairs_table

    out().print(pairs_table(load_registry(models)))


@app.command()
def inspect(
    what: Annotated[str, typer.Argument(help="A GGUF, or a pair's name.", metavar="FILE|PAIR")],
    models: Annotated[Path | None, _MODELS] = None,
) -> None:
    """Architecture, layers, sizes, quantisation, context, template; whether it can be sliced; a pair's fit."""
    from pipeinfer_cpp.errors import UserError
    from pipeinfer_cpp.gguf import Source
    from pipeinfer_cpp.models import load_registry
    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.model_tables import fit_line, pair_lines, source_table

    path = Path(what).expanduser()
    if path.suffix == ".gguf" or path.is_file():
        out().print(source_table(Source.open(path)))
        return
    pair = load_registry(models).pair(what)
    out().print(pair_lines(pair))
    sources = []
    for part, model in (("target", pair.target), ("draft", pair.draft)):
        if model is None:
            continue
        here = model.local()
        if here is None and model.path is not None:
            raise UserError(f"The {part} of {what}, {model.path}, does not exist: mend models.toml.")
        if here is None:
            typer.echo(f"{part}: {model.name} is not on this machine; `pipeinfer models pull {what}` gets it.")
            continue
        sources.append(Source.open(here))
        out().print(source_table(sources[-1], part))
    if len(sources) == 2:
        out().print(fit_line(*sources))


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="The pair's name.", metavar="PAIR")],
    models: Annotated[Path | None, _MODELS] = None,
) -> None:
    """Fetch a pair's files; an interrupted download goes on where it stopped."""
    from pipeinfer_cpp.cli.chat import fetch
    from pipeinfer_cpp.models import load_registry

    pair = load_registry(models).pair(name)
    files = [model for model in (pair.target, pair.draft) if model is not None]
    fetch(files)
    for model in files:
        typer.echo(str(model.local()))


@app.command()
def inflate(
    what: Annotated[str, typer.Argument(help="A GGUF, or a pair's name for its target.", metavar="FILE|PAIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The GGUF to write.", metavar="FILE")],
    layers: Annotated[int | None, typer.Option(help="How many layers it shall have.", metavar="N")] = None,
    width: Annotated[int | None, typer.Option(help="Length of its hidden states.", metavar="N")] = None,
    ffn: Annotated[int | None, typer.Option(help="Units of its feed-forward networks.", metavar="N")] = None,
    heads: Annotated[
        int | None, typer.Option(help="Attention heads (default: in proportion to the width).", metavar="N")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    models: Annotated[Path | None, _MODELS] = None,
) -> None:
    """Write a bigger model with the same outputs and the cost of its size, to benchmark with.

    What is added computes in full and comes to zero. Sizes that are not given stay as they are.
    """
    from pipeinfer_cpp.gguf import Source, inflation, write_inflated
    from pipeinfer_cpp.ui.consoles import warn
    from pipeinfer_cpp.ui.progress import transfer

    plan = inflation(Source.open(_file_of(what, models)), layers=layers, width=width, ffn=ffn, heads=heads)
    with transfer() as progress:
        write_inflated(plan, output, lambda done, total: progress(output.name, done, total), force=force)
    typer.echo(str(output))
    if not plan.is_exact:
        warn(f"the width is no multiple of {plan.old.width}: outputs agree up to rounding, and a text may part.")


def _file_of(what: str, models: Path | None) -> Path:
    """The file of that path, or the target of that pair."""
    from pipeinfer_cpp.models import load_registry

    path = Path(what).expanduser()
    if path.suffix == ".gguf" or path.is_file():
        return path
    return load_registry(models).pair(what).path("target")
