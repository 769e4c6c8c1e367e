"""A chat: lines in, answers out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from pipeinfer_cpp.chat.conversation import Conversation, Mark, Question
from pipeinfer_cpp.cli.answer_view import AnswerView
from pipeinfer_cpp.cli.chat_settings import ENGINE_SETTINGS, ChatSettings
from pipeinfer_cpp.cli.chat_store import ChatStore
from pipeinfer_cpp.cli.reader import Reader
from pipeinfer_cpp.cli.signals import OneInterrupt, undisturbed
from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.results import Result
from pipeinfer_cpp.ui.consoles import complain, err, notice, out, warn, writer
from pipeinfer_cpp.ui.live_view import strip
from pipeinfer_cpp.ui.origins import Painter, legend
from pipeinfer_cpp.ui.progress import opening, reading

_AGAIN = "Starting the pipeline again; the conversation is kept."
_RESTARTS = 2
"""Of the pipeline for one question: what dies each time is not mended by another one."""


class ChatSession:
    """Runs until the user leaves. A pipeline that dies is opened again, and the conversation goes on in it; where
    that fails, the question is given up (PipeInferError where the questions are piped in)."""

    def __init__(
        self,
        pipeline: Pipeline,
        conversation: Conversation,
        settings: ChatSettings,
        reader: Reader,
        store: ChatStore,
    ) -> None:
        self.pipeline, self.conversation, self.settings, self.store = pipeline, conversation, settings, store
        self.leaving = False
        self.failed = self.answers = 0
        """Questions that got none, and that got one."""
        self.figures = 1
        """Behind an answer: 0 none, 1 a short line, 2 all."""
        self.strip = False
        """Behind an answer: what the stages did."""
        self._reader = reader
        self._warned: set[str] = set()
        self._paint = Painter(out())
        self._write = writer()
        self._closed = False

    def run(self, command: Callable[[str], str | None]) -> None:
        """Until the user leaves. `command` does what a line that begins with a slash asks for, and returns what is
        to be said to the model."""
        self.settings_changed()
        while not self.leaving and (line := self._reader.read()) is not None:
            if line.strip():
                self._attempt(line, command)

    def close(self) -> None:
        with undisturbed():
            self.pipeline.close()

    def resume(self, number: int, *, keep_seed: bool = False) -> None:
        """Go on with an older chat; a question that it has no answer for is asked again."""
        saved = self.store.resume(number, self.conversation)
        self.recall()
        if saved.seed is not None and not keep_seed:
            self.settings.seed(saved.seed)
        self.show_last()
        if saved.asked is not None:
            notice(f"> {saved.asked}")
            self.ask(saved.asked)

    def recall(self) -> None:
        """The pipeline computes the conversation as it first was, where that is known: the same text follows."""
        past = self.conversation.past
        if past is not None and not self._gone:
            self.pipeline.recall(past)

    def show_last(self) -> None:
        if self.conversation.n_turns:
            question, answer = self.conversation.messages[-2:]
            notice(f"> {question['content']}")
            notice(answer["content"])

    def settings_changed(self) -> None:
        """Explain the colours when they are on."""
        if not self.settings.show_draft or "legend" in self._warned:
            return
        self._warned.add("legend")
        if self._paint.colours:
            err().print(legend())
        else:
            warn("--show-draft needs a terminal with colours.")

    def ask(self, text: str) -> None:
        self.revive()
        mark = self.conversation.mark()
        self._answer(self.conversation.ask(text, reserve=self.settings.reserve), mark)

    def regenerate(self) -> None:
        """The last question once more, with a new seed."""
        self.revive()
        mark = self.conversation.mark()
        prompt = self.conversation.again(reserve=self.settings.reserve)
        before = self.settings.sampling
        seed = self.settings.new_seed()
        notice("temp is 0, where a seed changes nothing: try /set temp 0.8." if before.greedy else f"Seed {seed}.")
        self._answer(prompt, mark)

    def go_on(self) -> None:
        """More of the last answer."""
        self.revive()
        result, cancelled = self._generate(self.conversation.more())
        if not result.text:
            notice("The model has nothing to add.")
            return
        self.conversation.extended(result.text, result.token_ids)
        self._keep()
        self._close(result, cancelled)

    # ------------------------------------------------------------------------------------- an answer

    def _attempt(self, line: str, command: Callable[[str], str | None]) -> None:
        try:
            said = command(line) if line.lstrip().startswith("/") else line
            if said is not None:
                self.ask(said)
        except KeyboardInterrupt:  # between an answer and the next prompt
            if not self._reader.interactive:
                raise
        except UserError as error:
            self.failed += 1
            complain(str(error))
        except PipeInferError as error:
            if not self._reader.interactive:
                raise
            self.failed += 1
            complain(f"{error} The conversation is kept: ask again to start the pipeline once more.")

    def _answer(self, prompt: Question, mark: Mark) -> None:
        """Generate, show, remember. Ctrl-C ends it, and what was said so far stays."""
        if prompt.dropped:
            turns = "oldest turn is" if prompt.dropped == 1 else f"{prompt.dropped} oldest turns are"
            warn(f"The context is full: the {turns} forgotten.")
        try:
            self._keep(self.conversation.messages[-1]["content"])
            result, cancelled = self._generate(prompt)
        except BaseException:
            self.conversation.restore(mark)
            raise
        if cancelled and not result.n_generated:
            self.conversation.restore(mark)
            self._keep()
            notice("Cancelled before the first word: as if you had not asked.")
            return
        content = self._view.answer if self._view.has_names else None
        self.conversation.answered(result.text, result.token_ids, content=content)
        self.answers += 1
        self._keep()
        self._close(result, cancelled)

    def _keep(self, asked: str | None = None) -> None:
        """On disk. That this fails is said once: the chat itself goes on."""
        try:
            self.store.write(self.conversation, self.settings.sampling.seed, asked)
        except UserError as error:
            self._note(str(error))

    def _generate(self, prompt: Question) -> tuple[Result, bool]:
        """On a pipeline that is there: one that is gone is opened again. What was shown is not shown twice."""
        thinking, fold = self.settings.thinking, self.settings.think == "fold"
        view = self._view = AnswerView(self._write, self._paint, thinking, self._prompt_end(prompt), fold=fold)
        for restarts in range(_RESTARTS + 1):
            if self._gone:
                if not restarts:  # it died between two answers
                    notice(f"{old} {_AGAIN}" if (old := self.pipeline.driver.failure) else _AGAIN, "yellow")
                self._reopen()
            try:
                result, cancelled = self._stream(prompt, view)
                self.conversation.past = self.pipeline.past()
                return result, cancelled
            except PipeInferError as error:
                if self.pipeline.driver.failure is None:
                    raise
                view.broken()
                if restarts == _RESTARTS:
                    raise PipeInferError(str(error)) from error
                notice(f"{error} {_AGAIN}", "yellow")
        raise AssertionError("unreachable")

    def _prompt_end(self, prompt: Question) -> str:
        """Names of control tokens too: it may end within a thought."""
        vocabulary = self.conversation.tokenizer
        tail = prompt.tokens[-16:]
        return "".join(vocabulary.piece(t).decode("utf-8", "replace") or vocabulary.name(t) for t in tail)

    @property
    def _gone(self) -> bool:
        return self._closed or self.pipeline.driver.failure is not None

    def revive(self) -> None:
        """Where the last start failed: the vocabulary that makes prompts went with the pipeline."""
        if self._closed:
            self._reopen()

    def _reopen(self) -> None:
        """The same pipeline once more, with what was set since; the conversation is computed from its tokens."""
        old = self.pipeline
        self.close()
        self._closed = True
        with opening("Starting again", quiet=True) as report:
            pipeline = Pipeline(replace(old.plan.options, ctx=old.settings.n_ctx), report)
        self.pipeline = self.settings.pipeline = pipeline
        pipeline.on_notice = self._reader.tell
        pipeline.show()
        self._closed = False
        self.conversation.tokenizer = pipeline.vocabulary
        pipeline.configure(**{name: getattr(old.settings, name) for name in ENGINE_SETTINGS})
        self.recall()

    def _stream(self, prompt: Question, view: AnswerView) -> tuple[Result, bool]:
        settings, vocabulary = self.settings, self.pipeline.vocabulary
        view.begin()
        with OneInterrupt() as interrupt, reading() as report:
            generation = self.pipeline.generate(
                prompt.tokens,
                max_tokens=settings.room(len(prompt.tokens)),
                sampling=settings.sampling,
                stop=settings.stop,
                goes_on=True,
                reading=report,
            )
            with contextlib.suppress(KeyboardInterrupt):
                for token in generation:
                    held = token.id < 0  # what was held back (half a character), shown at the end
                    name = "" if held or vocabulary.piece(token.id) else vocabulary.name(token.id)
                    view.show(token.text, token.origin if settings.show_draft else None, name)
            if interrupt.presses:
                generation.cancel()
            result = generation.wait()
            view.end(result.text)
        return result, interrupt.presses > 0

    def _note(self, warning: str) -> None:
        """Said once a chat."""
        if warning not in self._warned:
            self._warned.add(warning)
            warn(warning)

    def _close(self, result: Result, cancelled: bool) -> None:
        for warning in result.warnings if self.figures else ():
            self._note(warning)
        if cancelled:
            notice("Cancelled; what was said stays.")
        elif result.finish_reason == "length":
            full = result.n_prompt + result.n_generated >= self.pipeline.settings.n_ctx
            notice("Stopped: the context is full." if full else f"Stopped at {self.settings.max_tokens} tokens.")
        if self.figures:
            notice(result.line() if self.figures == 2 else result.short_line())
        if self.strip:
            notice(strip(self.pipeline.live()))
