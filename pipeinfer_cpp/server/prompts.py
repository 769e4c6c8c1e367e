"""Messages as the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeinfer_cpp.chat_template import ChatTemplate, Message
from pipeinfer_cpp.conversation import Conversation, Template
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.chat_templates import BuiltinTemplate
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.server.ask import ApiError
from pipeinfer_cpp.template_of import template_of

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Prompts:
    """The model's chat template over a vocabulary. What users say never becomes a control token."""

    def __init__(
        self, pipeline: Pipeline, given: str | BuiltinTemplate | None = None, variables: dict[str, Any] | None = None
    ) -> None:
        """`given`, `variables`: another template than the model's, and what it is told."""
        self.vocabulary, self.n_ctx = pipeline.vocabulary, pipeline.settings.n_ctx
        self.template: ChatTemplate | Template | None = None
        self._why = ""
        try:
            plan = pipeline.plan
            self.template = template_of(plan.target, plan.pair, pipeline.vocabulary, given, variables or {})
        except UserError as error:
            self._why = str(error)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Raises ApiError for messages that cannot be, and where the model has no template."""
        if self.template is None:
            raise ApiError(400, self._why, param="messages")
        said = [_plain(i, message) for i, message in enumerate(messages)]
        if not said:
            raise ApiError(400, "messages is empty: there is nothing to answer.", param="messages")
        conversation = Conversation(self.template, self.vocabulary, self.n_ctx)
        conversation.messages = said
        try:
            return self.fitting(conversation.tokens())
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from None

    def text(self, prompt: str) -> list[int]:
        return self.fitting(self.vocabulary.tokenize(prompt, begin=True))

    def fitting(self, tokens: list[int]) -> list[int]:
        """Raises ApiError for a prompt that is empty or longer than the context."""
        if not tokens:
            raise ApiError(400, "The prompt is empty.", param="prompt")
        if len(tokens) >= self.n_ctx:
            raise ApiError(
                400,
                f"The prompt has {len(tokens)} tokens and the context {self.n_ctx}: shorten it.",
                code="context_length_exceeded",
            )
        return tokens


def _plain(i: int, message: Mapping[str, Any]) -> Message:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        known = ", ".join(ROLES)
        raise ApiError(400, f"messages[{i}]: the role {role!r} is none of {known}.", param="messages")
    return {"role": ROLES[str(role)], "content": text_of(f"messages[{i}]", content)}


def text_of(where: str, content: Any) -> str:
    """A message's text: as it is, or in parts. Raises ApiError for images and sounds."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where}: the content must be a text or a list of parts.", param="messages")
    words = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            raise ApiError(400, f"{where}: a part of type {kind!r} is no text, and this model reads text only.",
                           param="messages")  # fmt: skip
        words.append(part["text"])
    return "".join(words)
