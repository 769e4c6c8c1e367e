"""`pipeinfer chat`: a conversation in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from pipeinfer_cpp.chat.template import template_of
from pipeinfer_cpp.cli import parsing
from pipeinfer_cpp.cli.common import DEFAULT_PAIR, PipelineOptions, SamplingOptions, TemplateOption, TemplateVariables
from pipeinfer_cpp.cli.groups import with_options
from pipeinfer_cpp.cli.spelling import nearest
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source

if TYPE_CHECKING:
    from pipeinfer_cpp.llama.chat_templates import BuiltinTemplate
    from pipeinfer_cpp.options import Options


@with_options(PipelineOptions, SamplingOptions)
def chat(
    pipeline_options: PipelineOptions,
    sampling_options: SamplingOptions,
    system: Annotated[str, typer.Option(help="The system prompt.", metavar="TEXT")] = "",
    max_tokens: Annotated[
        int,
        typer.Option("--max-tokens", "-n", help="Tokens of an answer at most; -1: until its end, or the context's."),
    ] = -1,
    show_draft: Annotated[
        bool, typer.Option("--show-draft", help="Colour each token by where it came from: draft, sibling or target.")
    ] = False,
    chat_template: TemplateOption = None,
    kwargs: TemplateVariables = None,
    reasoning_budget: Annotated[
        int, typer.Option(help="0: ask the model not to think, where its template can; -1: as it likes.", metavar="N")
    ] = -1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest chat, or with number N.")] = False,
    number: Annotated[int | None, typer.Argument(metavar="[N]", help="Of --resume: 1 is the newest.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the answers, and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="All figures behind each answer.")] = False,
    no_save: Annotated[bool, typer.Option("--no-save", help="Keep neither this chat nor what is typed.")] = False,
) -> None:
    """Chat with a model. Ctrl-C ends an answer; /help lists what can be done between answers."""
    sampling = sampling_options.sampling()
    options = pipeline_options.options()
    if max_tokens < 1 and max_tokens != -1:
        raise UserError("--max-tokens must be at least 1, or -1 for as many as fit into the context.")
    if reasoning_budget not in (-1, 0):
        raise UserError("--reasoning-budget is 0 (no thoughts) or -1 (as many as the model likes).")
    template, variables = given_template(chat_template, kwargs)
    if number is not None and not resume:
        raise UserError(f"{number} is not an argument of its own: --resume {number} goes on with that chat.")
    from pipeinfer_cpp.cli.fetching import offer_to_pull, with_files

    if options.pair is not None:
        offer_to_pull(options.pair, Path(options.models) if options.models else None)
    options = with_files(options)
    _check_template(options, template, variables, may_think=reasoning_budget != 0)

    from pipeinfer_cpp.chat.conversation import Conversation
    from pipeinfer_cpp.cli.chat_commands import Commands
    from pipeinfer_cpp.cli.chat_session import ChatSession
    from pipeinfer_cpp.cli.chat_settings import ChatSettings
    from pipeinfer_cpp.cli.chat_store import ChatStore, state_dir, worth_saying
    from pipeinfer_cpp.cli.opened import opened
    from pipeinfer_cpp.cli.reader import Reader, quiet_typing
    from pipeinfer_cpp.ui.consoles import notice, warn

    with opened(options, drafts="ask", quiet=quiet) as pipeline:
        pipeline.check_grammar(sampling)
        conversation = Conversation(
            template_of(pipeline.plan.target, pipeline.plan.pair, pipeline.vocabulary, template, variables),
            pipeline.vocabulary,
            pipeline.settings.n_ctx,
            model=pipeline.plan.target.sha256,
            system=system,
        )
        stop = sampling_options.stops
        settings = ChatSettings(
            pipeline, conversation, sampling, max_tokens=max_tokens, stop=stop, show_draft=show_draft
        )
        if reasoning_budget == 0:
            settings.set("think", "off")
        for warning in worth_saying(pipeline.warnings) if not quiet else ():
            warn(warning)
        reader = Reader(lambda: commands.words, None if no_save else state_dir() / "history")
        pipeline.on_notice = reader.tell
        session = ChatSession(pipeline, conversation, settings, reader, ChatStore(enabled=not no_save))
        commands = Commands(session)
        session.figures = 0 if quiet else 2 if verbose else 1
        if reader.interactive and not quiet:
            notice(f"Chatting with {pipeline.plan.target.name}. /help shows what you can do, Ctrl-D leaves.")
        try:
            with quiet_typing():
                if resume:
                    session.resume(number or 1, keep_seed=sampling_options.seed is not None)
                session.run(commands.run)
        finally:
            session.close()
    if session.failed and not session.answers and not reader.interactive:
        raise typer.Exit(1)


def _check_template(
    options: Options, given: str | BuiltinTemplate | None, variables: dict[str, Any], *, may_think: bool
) -> None:
    """Before anything is loaded or cut. Raises UserError where there is no template, or none that can be asked not
    to think."""
    from pipeinfer_cpp.chat.thinking import Thinking
    from pipeinfer_cpp.cluster.choices import chosen_models

    pair, target, _ = chosen_models(options)
    if not target.is_file():
        return  # opening says so
    template = template_of(Source.open(target), pair, None, given, variables)
    if not may_think and Thinking(template.source).switch is None:
        raise UserError(
            "--reasoning-budget 0 needs a chat template with a switch for thoughts (enable_thinking), and this "
            "one has none: /think fold hides them."
        )


def given_template(given: str | None, kwargs: str | None) -> tuple[str | BuiltinTemplate | None, dict[str, Any]]:
    """What --chat-template and --chat-template-kwargs say: a Jinja text or a built-in template, and its variables.
    Raises UserError for what is neither."""
    template, variables = _template_named(given), _variables(kwargs)
    if variables and template is not None and not isinstance(template, str):
        raise UserError(f"The built-in chat template {given} takes no --chat-template-kwargs.")
    return template, variables


def _template_named(given: str | None) -> str | BuiltinTemplate | None:
    """What --chat-template names. Raises UserError when it is nothing."""
    if given is None:
        return None
    from pipeinfer_cpp.llama.chat_templates import BuiltinTemplate, builtin_names

    names = builtin_names()
    if given in names:
        return BuiltinTemplate(given)
    if not Path(given).expanduser().is_file():
        near = nearest(given, names)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(names)}."
        raise UserError(f"--chat-template {given} is neither a file nor a name that llama.cpp knows: {hint}")
    return parsing.text_of(Path(given).expanduser(), "--chat-template")


def _variables(text: str | None) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any]) if text is not None else {}
    except msgspec.MsgspecError:
        raise UserError(
            f"--chat-template-kwargs {text!r} is not a JSON object, such as '{{\"enable_thinking\": false}}'."
        ) from None


__all__ = ["DEFAULT_PAIR", "chat", "given_template", "template_of"]
