"""`pipeinfer models`: which there are, what is in them, fetching and removing them, making bigger ones of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeinfer_cpp.cli import completing, pruning
from pipeinfer_cpp.cli.help import Brief, Group
from pipeinfer_cpp.cli.streams import write_json
from pipeinfer_cpp.errors import UserError

if TYPE_CHECKING:
    from pipeinfer_cpp.models import ModelFile

app = typer.Typer(
    name="models",
    cls=Group,
    help="List, inspect, fetch, remove and inflate models; clean up slices.",
    no_args_is_help=True,
    epilog="`pipeinfer models COMMAND --help` says more.",
)
_MODELS = typer.Option("--models", help="A further models.toml.", metavar="FILE")
_JSON = typer.Option("--json", help="One JSON object on stdout, for programs.")
_WHAT = "FILE|PAIR|OWNER/REPO:QUANT"
_PRUNE = "Remove cached slices that are no longer needed"
app.command(cls=Brief, short_help=_PRUNE)(pruning.prune)


@app.command("list", cls=Brief, short_help="List all pairs, which are here and which fit")
def list_models(models: Annotated[Path | None, _MODELS] = None, as_json: Annotated[bool, _JSON] = False) -> None:
    """All pairs, what else was fetched from Hugging Face, what is on this machine and what would fit it."""
    from pipeinfer_cpp.models import load_registry
    from pipeinfer_cpp.models.hub import fetched_models
    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.model_lists import list_fields, models_table

    registry = load_registry(models)
    known = {model for pair in registry.pairs.values() for model in pair.files}
    others = [m for m in fetched_models() if not any((m.repo, m.file) == (k.repo, k.file) for k in known)]
    if as_json:
        write_json(list_fields(registry, others))
    else:
        out().print(models_table(registry, others))


@app.command(cls=Brief, short_help="Show what a model is and how much memory it needs")
def inspect(
    what: Annotated[
        str,
        typer.Argument(
            help="A GGUF, a pair, or a name on Hugging Face.", autocompletion=completing.pairs, metavar=_WHAT,
        ),
    ],
    stages: Annotated[
        int | None, typer.Option(min=1, help="Also show how much memory it needs here in N stages.", metavar="N")
    ] = None,
    ctx_size: Annotated[
        int | None, typer.Option(min=0, help="With a context of N tokens (0: the model's own).", metavar="N")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Shares of the layers: 0.3,0.7.", metavar="SHARES")] = None,
    models: Annotated[Path | None, _MODELS] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Architecture, layers, sizes, quantisation, context, template; whether it can be sliced; a pair's fit.

    With --stages also what each stage needs of memory, what a token of the context costs, and what is free.
    """
    if ctx_size is not None and stages is None and split is None:
        raise UserError("--ctx-size says how much memory stages need: give --stages N with it.")
    from rich.text import Text

    from pipeinfer_cpp.gguf import Source
    from pipeinfer_cpp.models import load_registry
    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.model_tables import fit_line, pair_lines, source_fields, source_table

    pair = None if _is_file(what) else load_registry(models).pair(what)
    files: list[tuple[str, Path]] = [("", _file_of(what, models))] if pair is None else []
    shown: list[Any] = [pair_lines(pair)] if pair is not None else []
    for part, model in (("target", pair.target), ("draft", pair.draft)) if pair is not None else ():
        if model is None:
            continue
        here = model.local()
        if here is None and model.path is not None:
            raise UserError(f"The {part} of {what}, {model.path}, does not exist: correct its path in models.toml.")
        if here is not None:
            files.append((part, here))
        else:
            shown.append(Text(f"{part}: {model.name} is not on this machine; `pipeinfer models pull {what}` gets it."))
    sources = {part: Source.open(path) for part, path in files}
    fields: dict[str, Any] = {part or "model": source_fields(source) for part, source in sources.items()}
    shown += [source_table(source, part) for part, source in sources.items()]
    if len(sources) == 2:
        shown.append(fit_line(*sources.values()))
    target = sources.get("target", sources.get(""))
    if target is not None and (stages is not None or split is not None):
        fields["memory"], table = _weighed(target.path, sources.get("draft"), stages, split, ctx_size)
        shown.append(table)
    if as_json:
        write_json(fields)
    else:
        for one in shown:
            out().print(one)


def _weighed(
    target: Path, draft: Any, stages: int | None, split: str | None, ctx: int | None
) -> tuple[dict[str, Any], Any]:
    """What a pipeline of these files needs here, for programs and as a table."""
    from pipeinfer_cpp.cluster.plan import outline
    from pipeinfer_cpp.gguf.splits import parse_shares
    from pipeinfer_cpp.options import Options
    from pipeinfer_cpp.ui.memory_tables import memory_fields, memory_table

    shares = parse_shares(split) if split is not None else None
    n = stages if stages is not None else len(shares or ())
    options = Options(
        target=target, draft=draft.path if draft is not None else None, stages=n, split=shares, ctx=ctx
    )
    options.check()
    plan = outline(options, strict=False)
    assert plan.fit is not None
    what = plan.fit, plan.settings.n_ctx, plan.trained_ctx
    return memory_fields(*what), memory_table(*what)


@app.command(cls=Brief, short_help="Fetch a model or a pair")
def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="A pair, or a name on Hugging Face.", autocompletion=completing.pairs, metavar="PAIR|OWNER/REPO:QUANT",
        ),
    ],
    models: Annotated[Path | None, _MODELS] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Fetch a model or a pair's files; an interrupted download goes on where it stopped."""
    from pipeinfer_cpp.cli.fetching import fetch

    files = _named(name, models)
    fetch(files)
    paths = [str(model.local()) for model in files]
    if as_json:
        write_json({"files": paths})
    else:
        typer.echo("\n".join(paths))


@app.command("rm", cls=Brief, short_help="Remove what was fetched")
def remove(
    name: Annotated[
        str,
        typer.Argument(
            help="A pair, or a name on Hugging Face.", autocompletion=completing.pairs, metavar="PAIR|OWNER/REPO:QUANT",
        ),
    ],
    models: Annotated[Path | None, _MODELS] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Remove what was fetched of a model or a pair. A draft that another pair here uses stays."""
    from pipeinfer_cpp.models import load_registry
    from pipeinfer_cpp.models.files import size_text
    from pipeinfer_cpp.models.removing import needed_by, remove

    registry = load_registry(models)
    own = [model for model in _named(name, models, fetched=True) if model.path is None]
    if not own:
        raise UserError(f"The files of {name} were not fetched by pipeinfer: delete them yourself.")
    freed, kept = 0, {}
    for model in own:
        others = needed_by(model, registry, name)
        if others:
            kept[model.name] = others
        else:
            freed += remove(model)
    if as_json:
        write_json({"freed": freed, "kept": kept})
        return
    for what, others in kept.items():
        typer.echo(f"{what} stays: {', '.join(others)} needs it.")
    if not freed and not kept:
        raise UserError(f"Nothing of {name} is on this machine.")
    typer.echo(f"Freed {size_text(freed)}.")


@app.command(cls=Brief, short_help="Make a bigger model of the same outputs")
def inflate(
    what: Annotated[str, typer.Argument(help="A GGUF, or a pair's name for its target.", metavar=_WHAT)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The GGUF to write.", metavar="FILE")],
    layers: Annotated[int | None, typer.Option(help="Layers it will have.", metavar="N")] = None,
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
        warn(f"the width is no multiple of {plan.old.width}: outputs agree up to rounding, so a text may differ.")


def _is_file(what: str) -> bool:
    """A path, or a name on Hugging Face; else it names a pair."""
    from pipeinfer_cpp.models.hub import is_hub_name

    path = Path(what).expanduser()
    return path.suffix == ".gguf" or path.is_file() or is_hub_name(what)


def _file_of(what: str, models: Path | None) -> Path:
    """The file of that path or name on Hugging Face, or the target of that pair."""
    from pipeinfer_cpp.models import load_registry
    from pipeinfer_cpp.models.hub import model_path

    if _is_file(what):
        return model_path(what).expanduser()
    return load_registry(models).pair(what).path("target")


def _named(name: str, models: Path | None, *, fetched: bool = False) -> list[ModelFile]:
    """The files of a pair, or of a name on Hugging Face (only what was fetched of it already, if `fetched`)."""
    from pipeinfer_cpp.models import load_registry
    from pipeinfer_cpp.models.hub import find, here, is_hub_name

    if not is_hub_name(name):
        return list(load_registry(models).pair(name).files)
    if not fetched:
        return [find(name)]
    model = here(name)
    if model is None:
        raise UserError(f"{name} is not on this machine: `pipeinfer models list` shows what is.")
    return [model]
