"""`pipeinfer chat`: a conversation in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeinfer_cpp.cli.common import DEFAULT_PAIR, PipelineOptions, SamplingOptions
from pipeinfer_cpp.cli.groups import with_options
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source

if TYPE_CHECKING:
    from pipeinfer_cpp.chat_template import ChatTemplate
    from pipeinfer_cpp.models import Pair
    from pipeinfer_cpp.pipeline import Pipeline


@with_options(PipelineOptions, SamplingOptions)
def chat(
    pipeline_options: PipelineOptions,
    sampling_options: SamplingOptions,
    system: Annotated[str, typer.Option(help="The system prompt.", metavar="TEXT")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens of an answer at most.")] = 512,
    show_draft: Annotated[
        bool, typer.Option("--show-draft", help="Colour each token by where it came from: draft, sibling or target.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest chat, or with number N.")] = False,
    number: Annotated[int | None, typer.Argument(metavar="[N]", help="Of --resume: 1 is the newest.")] = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Keep neither this chat nor what is typed.")] = False,
) -> None:
    """Chat with a model. Ctrl-C ends an answer; /help lists what can be done between answers."""
    sampling = sampling_options.sampling()
    options = pipeline_options.options()
    if max_tokens < 1:
        raise UserError("--max-tokens must be at least 1.")
    if number is not None and not resume:
        raise UserError(f"{number} is not an argument of its own: --resume {number} goes on with that chat.")
    from pipeinfer_cpp.cli.fetching import offer_to_pull, with_files

    if options.pair is not None:
        offer_to_pull(options.pair, Path(options.models) if options.models else None)
    options = with_files(options)
    if options.target is not None and Path(options.target).is_file():
        _template(Source.open(options.target), None)  # said now, not after a minute of loading

    from pipeinfer_cpp.cli.chat_session import ChatSession
    from pipeinfer_cpp.cli.chat_settings import ChatSettings
    from pipeinfer_cpp.cli.chat_store import ChatStore, state_dir
    from pipeinfer_cpp.cli.opened import opened
    from pipeinfer_cpp.cli.reader import Reader, quiet_typing
    from pipeinfer_cpp.conversation import Conversation
    from pipeinfer_cpp.ui.consoles import notice, warn

    with opened(options, drafts="ask") as pipeline:
        pipeline.check_grammar(sampling)
        conversation = Conversation(
            template_of(pipeline),
            pipeline.vocabulary,
            pipeline.settings.n_ctx,
            model=pipeline.plan.target.sha256,
            system=system,
        )
        stop = tuple(sampling_options.stop or ())
        settings = ChatSettings(
            pipeline, conversation, sampling, max_tokens=max_tokens, stop=stop, show_draft=show_draft
        )
        for warning in pipeline.warnings:
            warn(warning)
        reader = Reader(lambda: session.words, None if no_save else state_dir() / "history")
        session = ChatSession(pipeline, conversation, settings, reader, ChatStore(enabled=not no_save))
        if reader.interactive:
            notice(f"Chatting with {pipeline.plan.target.name}. /help shows what you can do, Ctrl-D leaves.")
        try:
            with quiet_typing():
                if resume:
                    session.resume(number or 1, keep_seed=sampling_options.seed is not None)
                session.run()
        finally:
            session.close()
    if session.failed and not session.answers and not reader.interactive:
        raise typer.Exit(1)


def template_of(pipeline: Pipeline) -> ChatTemplate:
    """The GGUF's chat template, else the pair's. Raises UserError when there is neither."""
    from pipeinfer_cpp.chat_template import ChatTemplate

    plan, vocabulary = pipeline.plan, pipeline.vocabulary
    text = _template(plan.target, plan.pair)
    return ChatTemplate(text, bos=vocabulary.name(vocabulary.bos), eos=vocabulary.name(vocabulary.eos))


def _template(target: Source, pair: Pair | None) -> str:
    text = target.chat_template or (pair.chat_template if pair else None)
    if not text:
        raise UserError(
            f"{target.path.name} has no chat template: continue a text with `pipeinfer generate`, "
            "or give it a pair with a chat_template in models.toml."
        )
    return text


__all__ = ["DEFAULT_PAIR", "chat", "template_of"]
