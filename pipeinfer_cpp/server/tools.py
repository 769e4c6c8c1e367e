"""Functions that a request offers: as the chat template writes them, and the form of an answer that must call one."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from pipeinfer_cpp.chat.conversation import Template
from pipeinfer_cpp.chat.template import ChatMessage, ChatTemplate
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.server.calls import FORCED, Kind, kind_of

_WORDS = """You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""What Hermes and Qwen are told; for templates that have no words of their own."""


class Tool(msgspec.Struct, frozen=True):
    name: str
    description: str = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object", "properties": {}})
    """A JSON schema of an object."""

    def in_openai(self) -> dict[str, Any]:
        said = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": said}


class Forced(NamedTuple):
    """An answer that must be a call: what the prompt ends with, and the JSON schema of what follows."""

    opening: str
    schema: dict[str, Any]


class Tools:
    """The functions of one request, and which of them must be called: None (as the model likes), or their names."""

    def __init__(self, tools: Sequence[Tool], must: Sequence[str] | None = None, *, parallel: bool = True) -> None:
        """Raises UserError for names that come twice or are not there, and for `parameters` of no object."""
        self.tools, self.parallel = list(tools), parallel
        self.schemas = {tool.name: tool.parameters for tool in tools}
        if len(self.schemas) < len(self.tools):
            raise UserError("two tools have the same name.")
        for tool in tools:
            if not tool.name:
                raise UserError("a tool needs a name.")
            if tool.parameters.get("type", "object") != "object":
                raise UserError(f"the parameters of the tool {tool.name} must be a JSON schema of an object.")
        for name in must or ():
            if name not in self.schemas:
                raise UserError(f"there is no tool {name!r} to call.")
        if must is not None and not must:
            raise UserError("a tool must be called, and there is none.")
        self.must = list(must) if must is not None else None

    def kind(self, template: Template) -> Kind:
        """Of the calls in an answer. One that must come is kept to its schema, which not every form can be."""
        kind = native(template.source) or "hermes"
        return kind if self.must is None or kind in FORCED else "hermes"

    def forced(self, template: Template) -> Forced | None:
        """None where no call must come."""
        if self.must is None:
            return None
        kind = self.kind(template)
        if kind == "mistral-args" and len(self.must) == 1:
            name = self.must[0]
            return Forced(f"[TOOL_CALLS]{name}[ARGS]", _moved(self.schemas[name], ""))
        key = "parameters" if kind == "llama" else "arguments"
        inner = "/items" if kind in ("mistral", "mistral-args") else ""
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    key: {"type": "object", **_moved(self.schemas[name], f"{inner}/anyOf/{i}/properties/{key}")},
                },
                "required": ["name", key],
                "additionalProperties": False,
            }
            for i, name in enumerate(self.must)
        ]
        one = {"anyOf": calls}
        if inner:
            return Forced("[TOOL_CALLS]", {"type": "array", "items": one, "minItems": 1, "maxItems": 1})
        return Forced("<tool_call>\n" if kind == "hermes" else "", one)


@functools.lru_cache(maxsize=8)
def native(source: str) -> Kind | None:
    """The form in which a chat template writes calls; None where that is not known, or it cannot write tools here."""
    kind = kind_of(source)
    if kind is None or kind in FORCED:
        return kind
    try:
        ChatTemplate(source).render([{"role": "user", "content": "?"}], tools=[Tool("f").in_openai()])
    except UserError:
        return None
    return kind


class WithTools:
    """A chat template that writes tools and calls too. `guard` marks what must not become a control token."""

    def __init__(self, template: Template, tools: Sequence[Tool]) -> None:
        self._template, self._tools = template, tools
        self.source, self.variables = template.source, template.variables
        self.guard: Callable[[str], str] = str

    def render(self, messages: Sequence[ChatMessage], *, answer_follows: bool = True) -> str:
        tools = [msgspec.convert(self._guarded(msgspec.to_builtins(tool)), Tool) for tool in self._tools]
        return render(self._template, [self._guarded_calls(message) for message in messages], tools)

    def _guarded_calls(self, message: ChatMessage) -> ChatMessage:
        guarded = dict(message)
        for key in ("tool_calls", "reasoning_content", "tool_call_id"):
            if key in message:
                guarded[key] = self._guarded(message[key])
        return guarded

    def _guarded(self, said: Any) -> Any:
        return json.loads(self.guard(json.dumps(said, ensure_ascii=False)))


def render(template: Template, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> str:
    """The prompt of messages that may hold calls and their results.

    A template that does not know tools, or writes calls in a form that is not read here, gets the functions in a
    system message, calls as text and results as the user's. Raises UserError when it refuses the messages.
    """
    touched = bool(tools) or any(m["role"] == "tool" or m.get("tool_calls") for m in messages)
    if not touched:
        return template.render(messages)
    refused: UserError | None = None
    if isinstance(template, ChatTemplate) and native(template.source) is not None:
        offered = [tool.in_openai() for tool in tools]
        for arguments in (json.loads, str):  # most want them as an object, some as text
            try:
                text = template.render(_for_template(messages, template.source, arguments), tools=offered or None)
            except UserError as error:
                refused = refused or error
            else:
                if all(tool.name in text for tool in tools):
                    return text
    try:
        return template.render(_plain(messages, tools))
    except UserError as error:
        raise refused or error from None


def _for_template(messages: Sequence[ChatMessage], source: str, arguments: Any) -> list[ChatMessage]:
    short = "length != 9" in source
    found = []
    for message in messages:
        made = {**message, "content": message.get("content") or ""}
        if made.get("tool_calls"):
            made["tool_calls"] = [_call(call, arguments, short) for call in made["tool_calls"]]
        else:
            made.pop("tool_calls", None)
        if "tool_call_id" in made and short:
            made["tool_call_id"] = _nine(made["tool_call_id"])
        found.append(made)
    return found


def _call(call: Mapping[str, Any], arguments: Any, short: bool) -> dict[str, Any]:
    of = call["function"]
    name = _nine(call["id"]) if short else call["id"]
    return {"id": name, "type": "function", "function": {"name": of["name"], "arguments": arguments(of["arguments"])}}


def _nine(name: str) -> str:
    """Nine letters and digits for any id: all that Mistral's templates take."""
    return name if len(name) == 9 and name.isalnum() else hashlib.sha256(name.encode()).hexdigest()[:9]


def _plain(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
    """The same in text alone, as Hermes writes it."""
    found: list[ChatMessage] = []
    if tools:
        words = _WORDS.format(tools="\n".join(json.dumps(tool.in_openai(), ensure_ascii=False) for tool in tools))
        found.append({"role": "system", "content": words})
    for message in messages:
        role, text = message["role"], message.get("content") or ""
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        for call in message.get("tool_calls") or ():
            of = call["function"]
            said = f'{{"name": {json.dumps(of["name"])}, "arguments": {of["arguments"]}}}'
            text += ("\n" if text else "") + f"<tool_call>\n{said}\n</tool_call>"
        if found and found[-1]["role"] == role and role in ("system", "user"):
            gap = "\n" if message["role"] == "tool" else "\n\n"
            found[-1] = {**found[-1], "content": f"{found[-1]['content']}{gap}{text}"}
        else:
            found.append({"role": role, "content": text})
    return found


def _moved(schema: Any, place: str) -> Any:
    """The schema at another place of a document: its references begin there."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    ref = schema.get("$ref")
    if isinstance(ref, str) and (ref == "#" or ref.startswith("#/")):
        moved["$ref"] = f"#{place}{ref[1:]}"
    return moved
