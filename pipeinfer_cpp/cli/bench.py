"""`pipeinfer bench`: modes side by side, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeinfer_cpp.cli import completing
from pipeinfer_cpp.cli.common import PipelineOptions
from pipeinfer_cpp.cli.groups import with_options
from pipeinfer_cpp.errors import UserError

if TYPE_CHECKING:
    from pipeinfer_cpp.lab.bench import Comparison
    from pipeinfer_cpp.lab.suites import Suite
    from pipeinfer_cpp.options import Options


@with_options(PipelineOptions)
def bench(
    pipeline_options: PipelineOptions,
    modes: Annotated[
        str | None,
        typer.Option(
            help="Arms to compare, the first is the yardstick: off, sync:4, async, async-cancel, async:cutoff=0.5, "
            "or ablation (default: off,sync:4,async).",
            metavar="ARM,...",
            autocompletion=completing.arms,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="story (default), chat, translate or code.", metavar="NAME", autocompletion=completing.suites
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Prompts of your own, one a line.", metavar="FILE", dir_okay=False)
    ] = None,
    prompts: Annotated[int, typer.Option(help="How many of them.")] = 4,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens behind each.")] = 64,
    rounds: Annotated[int, typer.Option(help="How often each prompt is measured in each arm.")] = 2,
    sweep: Annotated[
        str | None,
        typer.Option(help='A grid: "stages=1,2,4 wire=f16,q8 link=1gbit,10mbit"; resumes from -o.', metavar="GRID"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write (and resume from) a JSON file.", metavar="FILE")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Compare with an earlier -o; exit code 1 if slower.", metavar="FILE"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the result (extra `plots`).", metavar="FILE.png")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Record drafts and texts for `pipeinfer simulate --replay`.", metavar="FILE")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Write this pipeline's measured speeds as a cluster.toml.", metavar="FILE")
    ] = None,
) -> None:
    """Run prompts in several modes side by side, interleaved, greedy, and compare."""
    from pipeinfer_cpp.lab.arms import parse_arms
    from pipeinfer_cpp.lab.baseline import regressions
    from pipeinfer_cpp.lab.suites import suite as find_suite
    from pipeinfer_cpp.lab.sweep import Cell, Notebook, parse_sweep, read_cells

    for name, value in (("--prompts", prompts), ("--rounds", rounds)):
        if not 1 <= value <= 1000:
            raise UserError(f"{name} must be between 1 and 1000.")
    if not 8 <= max_tokens <= 4096:
        raise UserError("--max-tokens must be between 8 and 4096.")
    if baseline is not None and output is not None and baseline.resolve() == output.resolve():
        raise UserError(f"--baseline and --output are both {output}: the result would overwrite the baseline.")
    options = pipeline_options.options()
    chosen = find_suite(suite, prompt_file)
    arms = parse_arms(modes or "off,sync:4,async")
    cells = parse_sweep(sweep) if sweep is not None else [Cell(())]
    old = read_cells(baseline) if baseline is not None else None
    if plot is not None:
        from pipeinfer_cpp.lab.plots import check

        check(plot)
    task = {"arms": modes, "prompts": chosen.prompts[:prompts], "tokens": max_tokens, "rounds": rounds}
    configuration = {**task, "options": describe(options)}
    from pipeinfer_cpp.lab.cells import options_of

    ready = {cell: options_of(options, cell) for cell in cells}  # mistakes come before the first minute
    book = Notebook(output)
    total = len(cells)
    kept = [book.done[book.key(cell, configuration)] for cell in cells if book.key(cell, configuration) in book.done]
    for done in kept:
        show(done.comparison, f"{done.cell} (from {output})")
    for i, (cell, key) in enumerate(book.missing(cells, configuration)):
        name = f"{cell}, cell {len(kept) + i + 1} of {total}" if total > 1 else str(cell)
        comparison = _cell(ready[cell], chosen, prompts, arms, max_tokens, rounds, configuration, name, record, profile)
        book.add(cell, key, comparison)
        show(comparison, str(cell))
    finished = [book.done[book.key(cell, configuration)] for cell in cells]
    if total > 1:
        from pipeinfer_cpp.ui.consoles import out
        from pipeinfer_cpp.ui.measurements import grid_table

        out().print(grid_table({done.cell: done.comparison for done in finished}))
    if plot is not None:
        from pipeinfer_cpp.lab.plots import bars

        bars(plot, finished)
    if old is not None:
        slower = regressions(finished, old)
        from pipeinfer_cpp.ui.consoles import out

        for sentence in slower or ["No arm is slower than in the baseline."]:
            out().print(sentence, highlight=False)
        if slower:
            raise typer.Exit(1)


def describe(options: Options) -> dict[str, object]:
    """What was asked for, to tell configurations apart."""
    import dataclasses

    found = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}


def _cell(
    options: Options,
    suite: Suite,
    prompts: int,
    arms: list,  # type: ignore[type-arg]
    n: int,
    rounds: int,
    configuration: object,
    name: str,
    record: Path | None,
    profile: Path | None,
) -> Comparison:
    from pipeinfer_cpp.cli.opened import opened
    from pipeinfer_cpp.lab.bench import compare
    from pipeinfer_cpp.lab.cells import tokens_of
    from pipeinfer_cpp.ui.progress import counting

    with opened(options) as pipeline:
        usable = [arm for arm in arms if arm.mode == "off" or pipeline.plan.guesses]
        if not usable:
            raise UserError("Without a draft model only --modes off can be measured: give --draft FILE or ngram.")
        tokens = tokens_of(pipeline, suite, prompts)
        with counting(name) as report:
            comparison = compare(
                pipeline,
                usable,
                tokens,
                n_tokens=n,
                rounds=rounds,
                configuration=configuration,
                report=report,
            )
        if profile is not None:
            from pipeinfer_cpp.lab.profile import write_profile

            write_profile(profile, pipeline)
        if record is not None and (drafting := pipeline.plan.draft) is not None:
            from pipeinfer_cpp.lab import recording

            plan = pipeline.plan
            found = recording.record(
                plan.target.path, drafting.path, tokens, n, pipeline.vocabulary.eog, kv_type=pipeline.kv_type
            )
            recording.save(record, found)
    return comparison


def show(comparison: Comparison, name: str) -> None:
    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.measurements import measurements_table

    kind = next(iter(comparison.arms.values())).kind
    title = f"{kind.upper()}: {name}"
    ratios = {arm: str(ratio) if i else "1" for i, (arm, ratio) in enumerate(comparison.ratios.items())}
    out().print(measurements_table(comparison.arms, title, ratios))
    if not comparison.same_text:
        out().print("The arms did not write the same texts (see --exact).", style="yellow")
