"""`pipeinfer generate`: one text behind one prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from pipeinfer_cpp.cli import parsing
from pipeinfer_cpp.cli.chat import given_template
from pipeinfer_cpp.cli.common import PipelineOptions, SamplingOptions, TemplateOption, TemplateVariables
from pipeinfer_cpp.cli.groups import with_options
from pipeinfer_cpp.errors import UserError

if TYPE_CHECKING:
    from pipeinfer_cpp.llama.chat_templates import BuiltinTemplate
    from pipeinfer_cpp.pipeline import Pipeline
    from pipeinfer_cpp.results import Result


GRACE, OF_SUSPENDED = 3.0, 0.2
"""Seconds that the stages have to end a generation that Ctrl-C cancelled, and where one of them is suspended."""


@with_options(PipelineOptions, SamplingOptions)
def generate(
    pipeline_options: PipelineOptions,
    sampling_options: SamplingOptions,
    source: Annotated[
        str | None, typer.Argument(metavar="[PROMPT|-]", help="The prompt; - (or a pipe) reads it from stdin.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt.", metavar="TEXT")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", "-f", help="The prompt's file.", metavar="FILE")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without the model's chat template.")
    ] = False,
    max_tokens: Annotated[
        int,
        typer.Option("--max-tokens", "-n", help="Tokens to generate at most (-1: until the end, or the context's)."),
    ] = 256,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout at the end, and nothing else there.")
    ] = False,
    chat_template: TemplateOption = None,
    kwargs: TemplateVariables = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write a Chrome trace (for Perfetto or chrome://tracing) of the run.", metavar="FILE"),
    ] = None,
) -> None:
    """Answer a prompt; without a chat template, continue it. Ctrl-C keeps the text."""
    text = _prompt(source, prompt, prompt_file)
    if max_tokens < 1 and max_tokens != -1:
        raise UserError("--max-tokens must be at least 1, or -1 for as many as fit into the context.")
    sampling = sampling_options.sampling()
    options = pipeline_options.options(trace=trace is not None)
    template, variables = given_template(chat_template, kwargs)
    if raw and (template is not None or variables):
        raise UserError("--raw leaves the chat template out: give it without --chat-template and its kwargs.")
    if trace is not None:
        _check_writable(trace)

    from pipeinfer_cpp.cli.chat_store import worth_saying
    from pipeinfer_cpp.cli.opened import opened
    from pipeinfer_cpp.cli.signals import OneInterrupt
    from pipeinfer_cpp.cli.streams import write_json
    from pipeinfer_cpp.ui.consoles import notice, warn, writer
    from pipeinfer_cpp.ui.progress import reading

    write: Callable[..., object] = (lambda _text: None) if as_json else writer()
    with opened(options, drafts="tell") as pipeline, OneInterrupt() as interrupt, reading() as report:
        asked = text if raw else _asked(pipeline, text, template, variables)
        generation = pipeline.generate(
            asked, max_tokens=max_tokens, sampling=sampling, stop=sampling_options.stops, reading=report
        )
        shown = 0
        try:
            for warning in worth_saying(pipeline.warnings):
                warn(warning)
            if asked is not text:
                whose = "The model's" if template is None else "The given"
                notice(f"{whose} chat template is used: --raw continues the text as it is.")
            for token in generation:
                shown += len(token.text)
                write(token.text)
        except KeyboardInterrupt:
            try:
                stopped = any(process.stopped() for process in pipeline.processes)
                generation.cancel(OF_SUSPENDED if stopped else GRACE)
            except TimeoutError:
                notice("A stage does not answer: this ends without it.")
                raise typer.Exit(130) from None
        except Exception:
            write("\n" if shown else "")
            raise
        result = generation.wait()
        if as_json:
            fields = msgspec.structs.asdict(result) | {"seed": sampling.seed}
            del fields["warnings"]
            write_json(fields)
        else:
            write(result.text[shown:] + "\n")  # with what was there when it was cancelled
        for warning in [*result.warnings, *_ending(result, max_tokens)]:
            warn(warning)
        if not as_json:
            seed = f" · seed {sampling.seed}" if sampling_options.seed_is_random and not sampling.greedy else ""
            notice(result.line() + seed)
        if trace is not None:
            pipeline.write_trace(trace)
    if interrupt.presses:
        raise typer.Exit(130)


def _prompt(source: str | None, prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt's text, without the one line break that ends a file."""
    given = [value for value in (source, prompt, prompt_file) if value is not None]
    piped = not given and not sys.stdin.isatty()
    one = "Give one prompt: as an argument, with --prompt TEXT or --prompt-file FILE, or through a pipe."
    if len(given) > 1 or not (given or piped):
        raise UserError(one)
    if piped or str(given[0]) == "-":
        text = parsing.text_in(sys.stdin.buffer.read(), "The prompt on stdin")
    elif prompt_file is not None:
        text = parsing.text_of(prompt_file, "--prompt-file")
    else:
        return str(given[0])
    if piped and not text:
        raise UserError(one)
    return text.removesuffix("\n")


def _asked(
    pipeline: Pipeline, text: str, given: str | BuiltinTemplate | None, variables: dict[str, Any]
) -> str | list[int]:
    """The tokens of a question, where there is a chat template; else the text, to be continued."""
    from pipeinfer_cpp.chat.conversation import Conversation
    from pipeinfer_cpp.chat.template import template_of

    plan = pipeline.plan
    own = plan.target.chat_template or (plan.pair.chat_template if plan.pair else None)
    if variables and not (given or own):
        raise UserError(f"{plan.target.path.name} has no chat template: --chat-template-kwargs needs --chat-template.")
    if not text or not (given or own):
        return text
    template = template_of(plan.target, plan.pair, pipeline.vocabulary, given, variables)
    conversation = Conversation(template, pipeline.vocabulary, pipeline.settings.n_ctx)
    return conversation.ask(text, reserve=1).tokens


def _ending(result: Result, max_tokens: int) -> list[str]:
    """Why there is no text, or no more of it, where that is not what was asked for."""
    if result.finish_reason == "length":
        if result.n_generated == max_tokens:
            return [f"the text was cut at {max_tokens} tokens: -n allows more, -n -1 as many as fit into the context."]
        n_ctx = result.n_prompt + result.n_generated
        return [f"the text was cut because the context of {n_ctx} tokens is full: give a larger --ctx-size."]
    if result.finish_reason == "stop" and not result.text:
        return ["the model ended its text at once: it has nothing to add to this prompt."]
    return []


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
