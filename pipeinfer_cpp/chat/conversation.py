"""A conversation of several turns as token lists that begin with what the stages hold already.

What the model generated stays the tokens it generated: only what the template adds behind an answer is
tokenised. So the prompt of a turn extends the sequence in the KV caches, and nothing is computed twice.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from pipeinfer_cpp.chat.template import ChatMessage
from pipeinfer_cpp.engine.cached import Past
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.system.files import appearing

_MARK = "\ufdd0"
"""No character (Unicode keeps it for uses like this one): stands within names of control tokens that somebody said."""


class Tokenizer(Protocol):
    """What a conversation needs of `llama.vocabulary.Vocabulary`."""

    size: int
    adds_bos: bool
    bos: int

    def tokenize(self, text: str, *, begin: bool = False, special: bool = True) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...
    def name(self, token: int) -> str: ...


class Template(Protocol):
    """A `ChatTemplate`, or one that llama.cpp knows by name (it has no `source` and no use for `variables`)."""

    source: str
    variables: dict[str, Any]

    def render(self, messages: Sequence[ChatMessage], *, answer_follows: bool = True) -> str: ...


class Known(msgspec.Struct, frozen=True):
    """What the model has seen and written: the rendered text of a prompt, its answer, the tokens of both."""

    text: str
    answer: str
    tokens: list[int]


class Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation in a file. `known` and `past` are of use to the same `model` (a hash of its content) only.

    `asked`: a question behind the messages whose answer was not finished; `seed`: what that answer is drawn with.
    """

    model: str
    messages: list[ChatMessage]
    known: Known | None = None
    asked: str | None = None
    seed: int | None = None
    past: dict[str, Any] | None = None
    pipeinfer_chat: Literal[1] = 1


def read_saved(path: Path) -> Saved:
    """A saved conversation. Raises UserError for what is none."""
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=Saved)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except msgspec.MsgspecError as error:
        raise UserError(f"{path} is not a saved chat: {error}.") from None
    roles = [message.get("role") for message in saved.messages if "content" in message]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(roles) < len(saved.messages) or turns != ["user", "assistant"] * (len(turns) // 2):
        raise UserError(f"{path} is not a saved chat: its messages are not questions and answers in turn.")
    return saved


@dataclass(frozen=True)
class Question:
    """What a turn sends. `dropped` turns had to go to make room for it."""

    tokens: list[int]
    dropped: int = 0


class Mark(NamedTuple):
    """A conversation's state, to go back to."""

    messages: list[ChatMessage]
    known: Known | None
    asked: Known | None


class Conversation:
    """Messages and their tokens. A turn is `ask` (or `again`), then `answered`, or `restore` to give it up."""

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        n_ctx: int,
        *,
        model: Callable[[], str] = lambda: "",
        system: str = "",
    ) -> None:
        self.template, self.tokenizer, self._n_ctx, self._model = template, tokenizer, n_ctx, model
        self.messages: list[ChatMessage] = []
        self._known: Known | None = None
        self._asked: Known | None = None
        self.past: Past | None = None
        """How what the pipeline last held of it was computed, for `Pipeline.recall`."""
        self.system = system

    @property
    def system(self) -> str:
        """The system prompt; a new one changes the beginning of the conversation, from the next turn on."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else ""

    @system.setter
    def system(self, text: str) -> None:
        turns = self.messages[1:] if self.system else self.messages
        self.messages = [{"role": "system", "content": text}, *turns] if text else turns
        self._known = self._asked = None

    @property
    def n_tokens(self) -> int:
        """Tokens of the conversation so far, as far as they are known."""
        return len(self._known.tokens) if self._known else 0

    @property
    def n_turns(self) -> int:
        return sum(message["role"] == "assistant" for message in self.messages)

    def mark(self) -> Mark:
        return Mark(list(self.messages), self._known, self._asked)

    def restore(self, mark: Mark) -> None:
        """Go back to how it was at the mark."""
        self.messages, self._known, self._asked = list(mark.messages), mark.known, mark.asked

    def ask(self, text: str, *, reserve: int) -> Question:
        """Begin a turn. The oldest turns behind the system prompt go when fewer than `reserve` positions
        are left for the answer. Raises UserError when not even the question alone fits."""
        mark = self.mark()
        self.messages.append({"role": "user", "content": text})
        try:
            return self._prompt(reserve)
        except BaseException:
            self.restore(mark)
            raise

    def again(self, *, reserve: int) -> Question:
        """Begin the last turn once more. Raises UserError when there is none."""
        if not self.n_turns:
            raise UserError("There is no answer yet to generate again.")
        mark = self.mark()
        self.messages.pop()
        if self._asked is not None:
            return Question(self._asked.tokens)
        self._known = None
        try:
            return self._prompt(reserve)
        except BaseException:
            self.restore(mark)
            raise

    def answered(self, text: str, ids: Sequence[int], *, content: str | None = None) -> None:
        """End the turn with what was generated, also when it was cut short. `content`: the message, where that is
        not all of the text (a thought stood before it)."""
        assert self._asked is not None
        self.messages.append({"role": "assistant", "content": text if content is None else content})
        self._known = Known(self._asked.text, text, [*self._asked.tokens, *self._without_stop(text, ids)])

    def more(self) -> Question:
        """Go on with the last answer; `extended` ends that. Raises UserError when there is none, or no room."""
        if self._known is None or not self.n_turns:
            raise UserError("There is no answer to go on with.")
        if len(self._known.tokens) >= self._n_ctx:
            raise UserError("The context is full: ask something new, and the oldest turns make room for it.")
        return Question(self._known.tokens)

    def extended(self, text: str, ids: Sequence[int]) -> None:
        """The last answer has become longer."""
        assert self._known is not None
        known, whole = self._known, self.messages[-1]["content"] + text
        self.messages[-1] = {"role": "assistant", "content": whole}
        self._known = Known(known.text, whole, [*known.tokens, *self._without_stop(text, ids)])

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        system = self.system
        self.messages = []
        self._known = self._asked = self.past = None
        self.system = system

    def save(self, path: Path, *, seed: int | None = None, asked: str | None = None, overwrite: bool = True) -> None:
        """Write it, for its owner's eyes only and whole at every moment. Raises UserError when it cannot be."""
        if not overwrite and path.exists():
            raise UserError(f"{path} is there already: /save --force {path} writes over it.")
        messages = self.messages[:-1] if asked is not None and self.messages[-1]["role"] == "user" else self.messages
        past = self.past.to_json() if self.past is not None else None
        saved = Saved(self._model(), messages, self._known, asked, seed, past)
        try:
            with appearing(path, private=True) as file:
                file.write(msgspec.json.format(msgspec.json.encode(saved)) + b"\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from None

    def load(self, path: Path) -> Saved:
        """Put the saved conversation in this one's place. Raises UserError and leaves it as it was."""
        saved = read_saved(path)
        same = saved.model == self._model()
        known, past = (saved.known, saved.past) if same else (None, None)
        if known is not None and not self._has(known.tokens):
            known = None
        self.messages, self._known, self._asked, self.past = list(saved.messages), known, None, None
        with contextlib.suppress(ValueError):
            read = Past.from_json(past) if past is not None else None
            self.past = read if read is not None and self._has(read.tokens) else None
        return saved

    def _has(self, tokens: Sequence[int]) -> bool:
        return all(0 <= token < self.tokenizer.size for token in tokens)

    # --------------------------------------------------------------------------------------- tokens

    def _prompt(self, reserve: int) -> Question:
        text, tokens = self._tokens()
        dropped = 0
        if len(tokens) > self._n_ctx - reserve:
            # Twice the room: else the next turn would have to drop again, and compute all anew again.
            while len(tokens) > self._n_ctx - 2 * reserve and self._drop_oldest():
                dropped += 1
                text, tokens = self._tokens()
            if len(tokens) >= self._n_ctx:
                raise UserError(
                    f"The message is too long: with the system prompt it has {len(tokens)} tokens, and the context "
                    f"{self._n_ctx}. Shorten it or start with a larger --ctx-size."
                )
        self._asked = Known(text, "", tokens)
        return Question(tokens, dropped)

    def tokens(self) -> list[int]:
        """Of all messages as they are, up to where the next answer begins."""
        return self._tokens()[1]

    def _drop_oldest(self) -> bool:
        """Remove the first question and its answer; not the question that is asked now."""
        first = 1 if self.system else 0
        if len(self.messages) - first < 3:
            return False
        del self.messages[first : first + 2]
        self._known = None
        return True

    def _tokens(self) -> tuple[str, list[int]]:
        """The conversation as text and tokens: what is known, and behind it only what the template adds."""
        text = self.template.render([{**m, "content": self.guarded(m["content"])} for m in self.messages])
        known = self._known
        if known is not None:
            # Templates often strip the white space around an answer; the model saw it, so it stays.
            answer = self.guarded(known.answer)
            for said in (answer, answer.rstrip(), answer.strip()):
                if text.startswith(seen := known.text + said):
                    return text, known.tokens + self._tokenize(text[len(seen) :])
        bos = self.tokenizer.name(self.tokenizer.bos)
        begin = not (self.tokenizer.adds_bos and bos and text.startswith(bos))
        return text, self._tokenize(text, begin=begin)

    def guarded(self, content: str) -> str:
        """With a mark within each name of a control token: what is said never becomes one."""
        content = content.replace(_MARK, "")
        while names := self._control_names(content):
            for name in names:
                content = content.replace(name, f"{name[:1]}{_MARK}{name[1:]}")
        return content

    def _control_names(self, text: str) -> list[str]:
        """Those that llama.cpp would read as control tokens, the longest first."""
        control = {t for t in set(self.tokenizer.tokenize(text)) if not self.tokenizer.piece(t)}
        names = {self.tokenizer.name(t) for t in control}
        return sorted((name for name in names if len(name) > 1 and name in text), key=len, reverse=True)

    def _tokenize(self, text: str, *, begin: bool = False) -> list[int]:
        """The template's control tokens count as such. Between two of them, where there are marks, none does."""
        if _MARK not in text:
            return self.tokenizer.tokenize(text, begin=begin)
        names = self._control_names(text)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        tokens: list[int] = []
        for marked, group in itertools.groupby(parts, lambda part: _MARK in part):
            run = "".join(group).replace(_MARK, "")
            if run:
                tokens += self.tokenizer.tokenize(run, begin=begin and not tokens, special=not marked)
        return tokens

    def _without_stop(self, text: str, ids: Sequence[int]) -> list[int]:
        """The tokens of the answer's text. Behind a stop string `ids` has more: those go."""
        pieces = [self.tokenizer.piece(t) for t in ids]
        if b"".join(pieces).decode("utf-8", "replace") == text:
            return list(ids)
        wanted, n, size = text.encode(), 0, 0
        while n < len(pieces) and wanted.startswith(pieces[n], size):
            size += len(pieces[n])
            n += 1
        rest = wanted[size:].decode("utf-8", "replace")
        return [*ids[:n], *(self.tokenizer.tokenize(rest, special=False) if rest else [])]
