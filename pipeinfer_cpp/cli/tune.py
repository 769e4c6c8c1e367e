"""`pipeinfer tune`: the best speculation settings for a pair on this cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeinfer_cpp.cli import completing
from pipeinfer_cpp.cli.common import PipelineOptions
from pipeinfer_cpp.cli.groups import with_options
from pipeinfer_cpp.errors import UserError


@with_options(PipelineOptions)
def tune(
    pipeline_options: PipelineOptions,
    suite: Annotated[
        str | None,
        typer.Option(
            help="story (default), chat, translate or code.", metavar="NAME", autocompletion=completing.suites
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Prompts of your own, one a line.", metavar="FILE", dir_okay=False)
    ] = None,
    prompts: Annotated[int, typer.Option(help="How many of them: half to search, half to judge.")] = 8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens behind each.")] = 48,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what was found.")] = False,
) -> None:
    """Search mode, cutoff, recovery and decay by short runs; what is surely better is kept for these machines."""
    from pipeinfer_cpp.lab.suites import suite as find_suite

    if not 4 <= prompts <= 100:
        raise UserError("--prompts must be between 4 and 100: half are used to search, half to judge what was found.")
    if not 8 <= max_tokens <= 4096:
        raise UserError("--max-tokens must be between 8 and 4096.")
    options = replace(pipeline_options.options(), tuned=False)
    if options.pair is None and not dry_run:
        raise UserError("Settings are saved for a pair: give --pair NAME, or --dry-run to only see them.")
    chosen = find_suite(suite, prompt_file)
    if len(chosen.prompts) < 4:
        raise UserError(f"{prompt_file} has {len(chosen.prompts)} prompts: tune needs 4 or more, one a line.")
    from pipeinfer_cpp.cli.opened import opened
    from pipeinfer_cpp.cluster.choices import chosen_models
    from pipeinfer_cpp.cluster.tuned import keep
    from pipeinfer_cpp.lab.cells import tokens_of
    from pipeinfer_cpp.lab.tuning import tune as search
    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.progress import opening

    if chosen_models(options)[2] is None:
        raise UserError("There is nothing to tune without a draft model: use a pair that has one.")
    with opened(options) as pipeline:
        tokens = tokens_of(pipeline, chosen, prompts)
        with opening("Tuning") as report:
            settings, gain = search(
                pipeline, tokens, max_tokens, lambda what, done, total: report("search", what, done, total)
            )
    if not settings:
        tried = f" The best that was found has {gain} of their speed on other prompts." if gain is not None else ""
        out().print(f"Nothing is surely better here than the settings as they are.{tried}", highlight=False)
    else:
        shown = ", ".join(f"{name} {value}" for name, value in settings.items())
        out().print(f"Best here: {shown}, {gain} the speed as it was, on other prompts.", highlight=False)
    if not dry_run:
        path = keep(options, settings)
        if settings:
            out().print(f"Kept for this pair on these machines, in {path}.", highlight=False)
