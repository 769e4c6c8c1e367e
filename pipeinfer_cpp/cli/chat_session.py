"""A chat: lines in, answers out."""

from __future__ import annotations

from functools import partial

from pipeinfer_cpp.cli.chat_commands import Commands
from pipeinfer_cpp.cli.chat_settings import ChatSettings
from pipeinfer_cpp.cli.reader import Reader
from pipeinfer_cpp.cli.signals import OneInterrupt
from pipeinfer_cpp.conversation import Conversation, Mark, Prompt
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.results import Result
from pipeinfer_cpp.ui.consoles import complain, err, notice, out, warn, writer
from pipeinfer_cpp.ui.origins import Painter, legend
from pipeinfer_cpp.ui.progress import reading


class ChatSession:
    """Runs until the user leaves, or the pipeline fails (PipeInferError)."""

    def __init__(self, pipeline: Pipeline, conversation: Conversation, settings: ChatSettings, reader: Reader) -> None:
        self.pipeline, self.conversation, self.settings = pipeline, conversation, settings
        self.leaving = False
        self._reader = reader
        self._commands = Commands(self)
        self._warned: set[str] = set()
        self._write = writer()
        self._paint = Painter(out())

    def run(self) -> None:
        self.settings_changed()
        while not self.leaving and (line := self._reader.read()) is not None:
            if not line.strip():
                continue
            try:
                if line.lstrip().startswith("/"):
                    self._commands.run(line)
                else:
                    self._ask(line)
            except KeyboardInterrupt:  # between an answer and the next prompt
                if not self._reader.interactive:
                    raise
            except UserError as error:
                if self.pipeline.driver.failure is not None:
                    raise
                complain(str(error))

    def settings_changed(self) -> None:
        """Explain the colours when they are on."""
        if not self.settings.show_draft or "legend" in self._warned:
            return
        self._warned.add("legend")
        if self._paint.colours:
            err().print(legend())
        else:
            warn("--show-draft needs a terminal with colours.")

    def regenerate(self) -> None:
        """The last question once more, with a new seed."""
        mark = self.conversation.mark()
        prompt = self.conversation.again(reserve=self.settings.reserve)
        before = self.settings.sampling
        seed = self.settings.new_seed()
        notice("temp is 0, where a seed changes nothing: try /set temp 0.8." if before.greedy else f"Seed {seed}.")
        self._answer(prompt, mark)

    def _ask(self, text: str) -> None:
        mark = self.conversation.mark()
        self._answer(self.conversation.ask(text, reserve=self.settings.reserve), mark)

    def _answer(self, prompt: Prompt, mark: Mark) -> None:
        """Generate, show, remember. Ctrl-C ends it, and what was said so far stays."""
        if prompt.dropped:
            turns = "oldest turn is" if prompt.dropped == 1 else f"{prompt.dropped} oldest turns are"
            warn(f"The context is full: the {turns} forgotten.")
        try:
            result, cancelled = self._stream(prompt)
        except BaseException:
            self.conversation.restore(mark)
            raise
        if cancelled and not result.n_generated:
            self.conversation.restore(mark)
            notice("Cancelled before the first word: as if you had not asked.")
            return
        self.conversation.answered(result.text, result.token_ids)
        self._close(result, cancelled)

    def _stream(self, prompt: Prompt) -> tuple[Result, bool]:
        settings = self.settings
        with OneInterrupt() as interrupt, reading() as report:
            generation = self.pipeline.generate(
                prompt.tokens,
                max_tokens=settings.max_tokens,
                sampling=settings.sampling,
                stop=settings.stop,
                goes_on=True,
                reading=report,
            )
            shown = 0
            try:
                for token in generation:
                    shown += len(token.text)
                    if settings.show_draft and self._paint.colours:
                        self._write(token.text, partial(self._paint, origin=token.origin))
                    else:
                        self._write(token.text)
            except KeyboardInterrupt:
                generation.cancel()
            except BaseException:
                self._write("\n")
                raise
            result = generation.wait()
            self._write(result.text[shown:] + "\n")  # what was there when it was cancelled
        return result, interrupt.presses > 0

    def _close(self, result: Result, cancelled: bool) -> None:
        for warning in result.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                warn(warning)
        if cancelled:
            notice("Cancelled; what was said stays.")
        elif result.finish_reason == "length":
            full = result.n_prompt + result.n_generated >= self.pipeline.settings.n_ctx
            notice("Stopped: the context is full." if full else f"Stopped at {self.settings.max_tokens} tokens.")
        notice(result.line())
