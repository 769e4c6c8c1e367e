"""Messages as the tokens of a prompt."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeinfer_cpp.chat.conversation import Conversation, Template
from pipeinfer_cpp.chat.template import ChatMessage, ChatTemplate, template_of
from pipeinfer_cpp.chat.thinking import Thinking
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.chat_templates import BuiltinTemplate
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.server.ask import ApiError
from pipeinfer_cpp.server.reply import Reader, tail
from pipeinfer_cpp.server.tools import Forced, Tools, WithTools

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


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

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Tools | None = None,
        *,
        variables: Mapping[str, Any] | None = None,
        formed: bool = False,
    ) -> tuple[list[int], Reader, Forced | None]:
        """The prompt, what its answers are read with, and the call that must follow where `tools` asks for one.

        `variables`: more for the template. `formed`: the answer has a form, so it begins at once, without a thought.
        It may be longer than the context.
        Raises ApiError for messages that cannot be, and where the model has no template.
        """
        if self.template is None:
            raise ApiError(400, self._why, param="messages")
        said = [plain_message(i, message) for i, message in enumerate(messages)]
        if not said:
            raise ApiError(400, "messages is empty: there is nothing to answer.", param="messages")
        template = self.template
        if variables and isinstance(template, ChatTemplate):
            template = copy.copy(template)
            template.variables = {**template.variables, **variables}
        offered = WithTools(template, tools.tools if tools is not None else [])
        conversation = Conversation(offered, self.vocabulary, self.n_ctx)
        offered.guard = conversation.guarded
        conversation.messages = said
        forced = tools.forced(template) if tools is not None else None
        try:
            tokens = conversation.tokens()
        except UserError as error:
            if variables and template is not self.template:
                self.chat(messages, tools)  # so it is these that it refuses
                told = ", ".join(f"{name} = {json.dumps(value)[:60]}" for name, value in variables.items())
                raise ApiError(
                    400,
                    f"The model's chat template does not work with {told}: leave out or change what is wrong of it.",
                    param="chat_template_kwargs",
                ) from None
            raise ApiError(400, str(error), param="messages") from None
        opening = forced.opening if forced is not None else ""
        if formed or forced is not None:
            tokens += self.vocabulary.tokenize(self._answer_begins(template, tokens) + opening)
        return tokens, Reader(self.vocabulary, template, tokens, tools, opening), forced

    def _answer_begins(self, template: Template, tokens: list[int]) -> str:
        """What ends the thought that the prompt has begun."""
        thinking = Thinking(template.source)
        thinking.begin(tail(self.vocabulary, tokens))
        return f"\n{thinking.end}\n\n" if thinking.end else ""

    def text(self, prompt: str) -> list[int]:
        return self.fitting(self.vocabulary.tokenize(prompt, begin=True))

    def known(self, tokens: list[int], param: str) -> list[int]:
        """Raises ApiError for token ids that the vocabulary does not have."""
        if (wrong := next((t for t in tokens if not 0 <= t < self.vocabulary.size), None)) is not None:
            raise ApiError(400, f"There is no token {wrong} in this vocabulary.", param=param)
        return tokens

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


def plain_message(i: int, message: Mapping[str, Any]) -> ChatMessage:
    role, where = message.get("role"), f"messages[{i}]"
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise ApiError(400, f"{where}: the role must be one of {known}, not {role!r}.", param="messages")
    if message.get("content") is None and role != "assistant":
        raise ApiError(400, f"{where} has no content.", param="messages")
    plain: ChatMessage = {"role": ROLES[role], "content": text_of(where, message.get("content"))}
    if role == "tool":
        plain["tool_call_id"] = str(message.get("tool_call_id") or "")
    if role == "assistant" and message.get("tool_calls"):
        if not isinstance(message["tool_calls"], list):
            raise ApiError(400, f"{where}: tool_calls must be a list.", param="messages")
        plain["tool_calls"] = [_call(where, call) for call in message["tool_calls"]]
    if role == "assistant" and isinstance(message.get("reasoning_content"), str):
        plain["reasoning_content"] = message["reasoning_content"]
    return plain


def _call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ApiError(400, f"{where}: a tool call needs a function with a name.", param="messages")
    arguments = function.get("arguments") or "{}"
    try:
        known = isinstance(json.loads(arguments), dict)
    except (TypeError, ValueError, RecursionError):
        known = False
    if not known:
        raise ApiError(400, f"{where}: the arguments of a tool call must be the JSON text of an object.",
                       param="messages")  # fmt: skip
    made = {"name": function["name"], "arguments": arguments}
    return {"id": str(call.get("id") or ""), "type": "function", "function": made}


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
