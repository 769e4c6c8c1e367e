"""`Pipeline.chat`: a list of messages, as a prompt that goes on behind what the stages hold of the same chat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeinfer_cpp.arguments import text
from pipeinfer_cpp.chat.conversation import Conversation, Template, Tokenizer
from pipeinfer_cpp.chat.template import ChatMessage
from pipeinfer_cpp.cluster.job import Job
from pipeinfer_cpp.errors import UserError

_ROLES = ("system", "user", "assistant")


class Chats:
    """The newest chat of a pipeline. `prompt`, then `began` with the turn that generates its answer."""

    def __init__(self, template: Template, tokenizer: Tokenizer, n_ctx: int) -> None:
        self._conversation = Conversation(template, tokenizer, n_ctx)
        self._of = template, tokenizer, n_ctx
        self._job: Job | None = None

    def prompt(self, messages: list[ChatMessage], last: Job | None, reserve: int) -> tuple[list[int], bool]:
        """Token ids, and whether they go on with what the stages hold since the turn `last`.

        The oldest turns go where fewer than `reserve` positions are left. Raises UserError where that is no help.
        """
        job, self._job = self._job, None
        if job is not None and job.result is not None and self._conversation.messages == messages[:-2]:
            answer = messages[-2]
            if answer == {"role": "assistant", "content": job.result.text}:
                self._conversation.answered(job.result.text, job.result.token_ids)
        goes_on = len(messages) > 1 and self._conversation.messages == messages[:-1] and job is last
        if not goes_on:
            self._conversation = Conversation(*self._of)
            self._conversation.messages = messages[:-1]
        prompt = self._conversation.ask(messages[-1]["content"], reserve=reserve)
        return prompt.tokens, goes_on and not prompt.dropped

    def began(self, job: Job) -> None:
        self._job = job


def plain_messages(messages: Any) -> list[ChatMessage]:
    """Messages with text as their content, the last one the user's. Raises TypeError and UserError that name it."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping | bytes) or not isinstance(messages, Iterable):
        raise TypeError(f"messages: text or a list of messages is needed, not {type(messages).__name__}")
    found = [_plain(f"messages[{i}]", message) for i, message in enumerate(messages)]
    if not found or found[-1]["role"] != "user":
        raise UserError("messages: the last one must be the user's: it is what is answered.")
    return found


def _plain(name: str, message: Any) -> ChatMessage:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise TypeError(f"{name}: a dict with a role and a content is needed, not {message!r}")
    if message["role"] not in _ROLES:
        raise UserError(f"{name}: the role {message['role']!r} is not one of {', '.join(_ROLES)}.")
    content = message["content"]
    if not isinstance(content, str):
        if not isinstance(content, list | tuple):
            raise TypeError(f"{name}: its content must be text or a list of parts, not {content!r}")
        content = "".join(_text(name, part) for part in content)
    return {"role": message["role"], "content": text(name, content)}


def _text(name: str, part: Any) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise TypeError(f"{name}: the parts of its content can only be text ({{'type': 'text', 'text': ...}})")
    return str(part["text"])
