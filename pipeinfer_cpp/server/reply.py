"""An answer as its reader gets it: thoughts, text and calls, told apart while the tokens come."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from pipeinfer_cpp.chat.conversation import Template
from pipeinfer_cpp.chat.thinking import Part, Thinking
from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.results import Token
from pipeinfer_cpp.server.answers import Answers
from pipeinfer_cpp.server.calls import Call, Calls, MustCall
from pipeinfer_cpp.server.tools import Tools

_TAIL = 64
"""Tokens of a prompt that may hold what opens a thought."""


def tail(vocabulary: Vocabulary, prompt: Sequence[int]) -> str:
    """The end of a prompt as text, control tokens too."""
    return "".join(vocabulary.name(token) for token in prompt[-_TAIL:])


class Reader:
    """What the answers to one prompt are read with."""

    def __init__(
        self, vocabulary: Vocabulary, template: Template, prompt: Sequence[int], tools: Tools | None, opening: str
    ) -> None:
        """`opening`: the end of the prompt that is a call's beginning already."""
        self.vocabulary, self.tools, self.opening = vocabulary, tools, opening
        self._template = template
        self._tail = tail(vocabulary, prompt).removesuffix(opening)

    def reply(self) -> Reply:
        """For one answer."""
        thinking = Thinking(self._template.source)
        thinking.begin(self._tail)
        calls: Calls | MustCall | None = None
        if self.tools is not None and self.tools.must is not None:
            calls = MustCall(self.opening)
        elif self.tools is not None:
            calls = Calls(self.tools.kind(self._template), self.tools.schemas)
        return Reply(self.vocabulary, thinking, calls, parallel=self.tools is None or self.tools.parallel)


class Reply:
    """Feed the tokens of one answer; take the parts that are certain."""

    def __init__(
        self, vocabulary: Vocabulary, thinking: Thinking, calls: Calls | MustCall | None, *, parallel: bool
    ) -> None:
        """`parallel`: more than one call counts."""
        self._vocabulary, self._thinking, self._calls = vocabulary, thinking, calls
        self._parallel, self._called = parallel, False
        self._space = ""
        self._thought = False

    @property
    def thinks(self) -> bool:
        """A thought is under way."""
        return self._thinking.end is not None

    def feed(self, token: Token) -> list[Part | Call]:
        text = token.text
        if token.id >= 0 and not self._vocabulary.piece(token.id):
            name = self._vocabulary.name(token.id)
            if self._thinking.names(name) or (self._calls is not None and self._calls.names(name)):
                text += name
        return self._told(self._thinking.feed(text)) if text else []

    def finish(self) -> list[Part | Call]:
        """What was held back."""
        parts = self._told(self._thinking.finish())
        if self._calls is not None:
            parts += self._answer(self._calls.finish())
        return parts

    def _told(self, parts: Sequence[Part]) -> list[Part | Call]:
        told: list[Part | Call] = []
        for part in parts:
            if part.thought:
                self._thought = True
                told.append(part)
                continue
            text = part.text.lstrip("\n") if self._thought else part.text  # the lines between thought and answer
            if text:
                self._thought = False
                told += self._answer(self._calls.feed(text)) if self._calls is not None else [Part(text, False)]
        return told

    def _answer(self, parts: Sequence[str | Call]) -> list[Part | Call]:
        """White space around calls is not text."""
        told: list[Part | Call] = []
        for part in parts:
            if isinstance(part, Call):
                self._space = ""
                if part.more or self._parallel or not self._called:
                    told.append(part)
                self._called = True
                continue
            text = self._space + part
            shown = text.rstrip()
            self._space = text[len(shown) :]
            if shown:
                told.append(Part(shown, False))
        return told


async def replies(answers: Answers, reader: Reader) -> AsyncIterator[tuple[int, Token | None, list[Part | Call]]]:
    """(choice, token, parts that became certain with it), and for the end of each choice (choice, None, parts);
    then its result is in `answers.results`."""
    choice, reply = 0, reader.reply()
    async with contextlib.aclosing(answers.tokens()) as tokens:
        async for at, token in tokens:
            while choice < at:
                yield choice, None, reply.finish()
                choice, reply = choice + 1, reader.reply()
            thinks, parts = reply.thinks, reply.feed(token)
            answers.n_thought += token.id >= 0 and (thinks or reply.thinks)
            yield choice, token, parts
    while choice < len(answers.results):
        yield choice, None, reply.finish()
        choice, reply = choice + 1, reader.reply()
