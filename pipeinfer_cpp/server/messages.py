"""/v1/messages and /v1/messages/count_tokens, as Anthropic has them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from pipeinfer_cpp.results import Result
from pipeinfer_cpp.server.answers import Answers
from pipeinfer_cpp.server.ask import ApiError, ChatRequest, JsonSchema, ResponseFormat
from pipeinfer_cpp.server.calls import Call, merged
from pipeinfer_cpp.server.reply import Reader, replies

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
KINDS |= {429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}


class MessagesRequest(msgspec.Struct, kw_only=True):
    """Fields that are not known are passed over."""

    messages: list[dict[str, Any]]
    model: str = ""
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None

    def chat(self) -> ChatRequest:
        """The same as a chat in OpenAI's form. Raises ApiError for what cannot be."""
        if not self.messages:
            raise ApiError(400, "messages is empty: there is nothing to answer.", param="messages")
        if self.messages[-1].get("role") != "user":
            raise ApiError(400, "messages: the last one must be the user's: it is what is answered.", param="messages")
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": _text("system", self.system)})
        for i, message in enumerate(self.messages):
            messages += _messages(f"messages[{i}]", message)
        choice = self.tool_choice or {}
        thinks = (self.thinking or {}).get("type")
        return ChatRequest(
            messages=messages,
            model=self.model,
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            stream=self.stream,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            tools=[_tool(i, tool) for i, tool in enumerate(self.tools)] if self.tools else None,
            tool_choice=_choice(choice) if choice else None,
            parallel_tool_calls=not choice.get("disable_parallel_tool_use", False),
            response_format=self._format(),
            chat_template_kwargs={"enable_thinking": thinks != "disabled"} if thinks else None,
        )

    def _format(self) -> ResponseFormat | None:
        of = (self.output_config or {}).get("format")
        if of is None:
            return None
        if not isinstance(of, dict) or of.get("type") != "json_schema" or not isinstance(of.get("schema"), dict):
            raise ApiError(400, "output_config.format needs the type json_schema and a schema.", param="output_config")
        return ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=of["schema"]))


def error_body(error: ApiError) -> dict[str, Any]:
    """In Anthropic's form."""
    kind = KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


class MessageForm:
    """What a message looks like, in one piece or as events."""

    ends = b""

    def __init__(self, request: MessagesRequest, reader: Reader, model: str, id: str) -> None:
        self._stops, self._reader = request.stop_sequences or [], reader
        self._head = {"id": f"msg_{id}", "type": "message", "role": "assistant", "model": model}

    def error(self, error: ApiError) -> dict[str, Any]:
        return error_body(error)

    async def whole(self, answers: Answers) -> dict[str, Any]:
        blocks: list[dict[str, Any]] = []
        said = [part async for _, _, parts in replies(answers, self._reader) for part in parts]
        for part in merged(said):
            if isinstance(part, Call):
                blocks.append({**_block(part), "input": _input(part.arguments)})
                continue
            key = "thinking" if part.thought else "text"
            if not blocks or blocks[-1]["type"] != key:
                blocks.append(_block(part))
            blocks[-1][key] += part.text
        called = any(block["type"] == "tool_use" for block in blocks)
        end = self._end(answers.results[0], called)
        return {**self._head, "content": blocks, **end, "usage": _usage(answers)}

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        index, kind, called, begun = -1, "", False, False
        async for _, _, parts in replies(answers, self._reader):
            if not begun:
                begun = True
                empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
                yield {"type": "message_start", "message": {**self._head, **empty, "usage": _usage(answers)}}
            for part in parts:
                block = _block(part)
                if kind and (block["type"] != kind or (isinstance(part, Call) and not part.more)):
                    yield {"type": "content_block_stop", "index": index}
                    kind = ""
                if not kind:
                    index, kind = index + 1, block["type"]
                    yield {"type": "content_block_start", "index": index, "content_block": block}
                if isinstance(part, Call):
                    called = True
                    delta = {"type": "input_json_delta", "partial_json": part.arguments}
                elif part.thought:
                    delta = {"type": "thinking_delta", "thinking": part.text}
                else:
                    delta = {"type": "text_delta", "text": part.text}
                yield {"type": "content_block_delta", "index": index, "delta": delta}
        if kind:
            yield {"type": "content_block_stop", "index": index}
        end = self._end(answers.results[0], called)
        yield {"type": "message_delta", "delta": end, "usage": _usage(answers)}
        yield {"type": "message_stop"}

    def _end(self, result: Result, called: bool) -> dict[str, Any]:
        stop = None
        if result.finish_reason == "stop":
            said = self._reader.vocabulary.text(result.token_ids)
            rest = said[len(result.text) :] if said.startswith(result.text) else ""
            stop = next((s for s in self._stops if rest.startswith(s)), None)
        if result.finish_reason == "length":
            reason = "max_tokens"
        else:
            reason = "tool_use" if called else "stop_sequence" if stop is not None else "end_turn"
        return {"stop_reason": reason, "stop_sequence": stop}


def _usage(answers: Answers) -> dict[str, int]:
    usage = answers.usage()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,  # Anthropic counts those apart
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage["completion_tokens"],
    }


def _input(arguments: str) -> Any:
    """Nothing of arguments that were cut off: a stream has them as far as they came."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _block(part: Any) -> dict[str, Any]:
    """A block of content that begins with this part, without what is in it."""
    if isinstance(part, Call):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
    return {"type": "thinking", "thinking": "", "signature": ""} if part.thought else {"type": "text", "text": ""}


# ------------------------------------------------------------------------------------------- what is asked


def _messages(where: str, message: dict[str, Any]) -> list[dict[str, Any]]:
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise ApiError(400, f"{where}: the role must be user or assistant, not {role!r}.", param="messages")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise ApiError(400, f"{where}: the content must be a text or a list of blocks.", param="messages")
    if role == "assistant":
        return [_said(where, content)]
    found: list[dict[str, Any]] = []
    for block in content:
        if isinstance(block, dict) and block.get("type") == "tool_result":
            text = _text(where, block.get("content") or "")
            found.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id")), "content": text})
        elif found and found[-1]["role"] == "user":
            found[-1]["content"] += _text(where, [block])
        else:
            found.append({"role": "user", "content": _text(where, [block])})
    return found


def _said(where: str, blocks: list[Any]) -> dict[str, Any]:
    """A message of the assistant."""
    said: dict[str, Any] = {"role": "assistant", "content": ""}
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use" and isinstance(block.get("input"), dict) and isinstance(block.get("name"), str):
            function = {"name": block["name"], "arguments": json.dumps(block["input"], ensure_ascii=False)}
            call = {"id": str(block.get("id")), "type": "function", "function": function}
            said.setdefault("tool_calls", []).append(call)
        elif kind == "thinking":
            said["reasoning_content"] = said.get("reasoning_content", "") + str(block.get("thinking", ""))
        elif kind != "redacted_thinking":
            said["content"] += _text(where, [block])
    return said


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for block in content if isinstance(content, list) else [content]:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text" or not isinstance(block.get("text"), str):
            raise ApiError(400, f"{where}: a block of type {kind!r} is not served: this model reads text only.",
                           param="messages")  # fmt: skip
        texts.append(block["text"])
    return "\n".join(texts) if where == "system" else "".join(texts)


def _tool(i: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise ApiError(400, f"tools[{i}]: tools of type {tool['type']!r} are not served.", param="tools")
    function = {key: tool[key] for key in ("name", "description") if tool.get(key) is not None}
    return {"type": "function", "function": {**function, "parameters": tool.get("input_schema")}}


def _choice(choice: dict[str, Any]) -> Any:
    words = {"auto": "auto", "any": "required", "none": "none"}
    if choice.get("type") == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    word = words.get(str(choice.get("type")))
    if word is None:
        raise ApiError(400, "tool_choice needs the type auto, any, tool or none.", param="tool_choice")
    return word
