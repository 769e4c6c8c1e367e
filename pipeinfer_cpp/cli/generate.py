"""`pipeinfer generate`: one text behind one prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from pipeinfer_cpp.cli import parsing
from pipeinfer_cpp.cli.common import PipelineOptions, SamplingOptions
from pipeinfer_cpp.cli.groups import with_options
from pipeinfer_cpp.errors import PipeInferError, UserError


@with_options(PipelineOptions, SamplingOptions)
def generate(
    pipeline_options: PipelineOptions,
    sampling_options: SamplingOptions,
    source: Annotated[str | None, typer.Argument(metavar="[-]", help="- reads the prompt from stdin.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt.", metavar="TEXT")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", "-f", help="The prompt's file.", metavar="FILE")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens to generate at most.")] = 256,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout at the end, and nothing else there.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write a Chrome trace (for Perfetto or chrome://tracing) of the run.", metavar="FILE"),
    ] = None,
) -> None:
    """Generate text behind a prompt, as the tokens come. Ctrl-C ends it and keeps what is there."""
    text = _prompt(source, prompt, prompt_file)
    if max_tokens < 1:
        raise UserError("--max-tokens must be at least 1.")
    sampling = sampling_options.sampling()
    options = pipeline_options.options(trace=trace is not None)
    if trace is not None:
        _check_writable(trace)

    from pipeinfer_cpp.cli.opened import opened
    from pipeinfer_cpp.cli.signals import OneInterrupt
    from pipeinfer_cpp.ui.consoles import notice, warn, writer
    from pipeinfer_cpp.ui.progress import reading

    write = (lambda _text: None) if as_json else writer()
    with opened(options, drafts="tell") as pipeline, OneInterrupt() as interrupt, reading() as report:
        generation = pipeline.generate(
            text, max_tokens=max_tokens, sampling=sampling, stop=tuple(sampling_options.stop or ()), reading=report
        )
        shown = 0
        try:
            for warning in pipeline.warnings:
                warn(warning)
            for token in generation:
                shown += len(token.text)
                write(token.text)
        except KeyboardInterrupt:
            generation.cancel()
        except PipeInferError:
            write("\n" if shown else "")
            raise
        result = generation.wait()
        if as_json:
            fields = msgspec.structs.asdict(result)
            del fields["warnings"]
            sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
        else:
            write(result.text[shown:] + "\n")  # with what was there when it was cancelled
        for warning in result.warnings:
            warn(warning)
        if not as_json:
            seed = f" · seed {sampling.seed}" if sampling_options.seed is None and not sampling.greedy else ""
            notice(result.line() + seed)
        if trace is not None:
            pipeline.write_trace(trace)
    if interrupt.presses:
        raise typer.Exit(130)


def _prompt(source: str | None, prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt's text, without the one line break that ends a file."""
    if source is not None and source != "-":
        raise UserError(f"{source!r} is not an argument: give the prompt with --prompt, or - to read stdin.")
    if sum(given is not None for given in (source, prompt, prompt_file)) != 1:
        raise UserError("Give one prompt: --prompt TEXT, --prompt-file FILE, or - to read stdin.")
    if source == "-" or prompt == "-" or str(prompt_file) == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError:
            raise UserError("The prompt on stdin is not UTF-8 text.") from None
    elif prompt_file is not None:
        text = parsing.text_of(prompt_file, "--prompt-file")
    else:
        return str(prompt)
    return text.removesuffix("\n").removesuffix("\r")


def _check_writable(path: Path) -> None:
    """A word before the work rather than behind it. Leaves nothing: what follows may fail."""
    try:
        new = not path.exists()
        with path.open("a"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"--trace {path} cannot be written: {error.strerror}.") from None
