"""/v1/responses, as OpenAI has it, without what needs a memory: each request says all of its conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from pipeinfer_cpp.chat.thinking import Part
from pipeinfer_cpp.results import Result
from pipeinfer_cpp.server.answers import Answers
from pipeinfer_cpp.server.ask import ApiError, ChatRequest, JsonSchema, ResponseFormat
from pipeinfer_cpp.server.calls import Call
from pipeinfer_cpp.server.reply import Reader, replies


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """Fields that are not known are passed over."""

    input: str | list[dict[str, Any]]
    model: str = ""
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None

    def chat(self) -> ChatRequest:
        """The same as a chat. Raises ApiError for what cannot be."""
        for name in ("previous_response_id", "conversation", "prompt", "background"):
            if getattr(self, name):
                raise ApiError(
                    400,
                    f"{name} is not served: nothing is kept between requests. Send the whole conversation as input.",
                    param=name,
                )
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            for i, item in enumerate(self.input):
                _add(f"input[{i}]", item, messages)
        choice = self.tool_choice
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
            choice = {"type": "allowed_tools", "allowed_tools": choice}
        effort = (self.reasoning or {}).get("effort")
        return ChatRequest(
            messages=messages,
            model=self.model,
            max_tokens=self.max_output_tokens,
            stream=self.stream,
            temperature=self.temperature,
            top_p=self.top_p,
            tools=[_tool(i, tool) for i, tool in enumerate(self.tools)] if self.tools else None,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=self._format(),
            reasoning_effort=effort if isinstance(effort, str) else None,
        )

    def _format(self) -> ResponseFormat | None:
        of = (self.text or {}).get("format")
        if of is None:
            return None
        kind = of.get("type") if isinstance(of, dict) else None
        if kind not in ("text", "json_object", "json_schema"):
            raise ApiError(400, f"text.format must be text, json_object or json_schema, not {kind!r}.", param="text")
        if kind == "json_schema" and not isinstance(of.get("schema"), dict):
            raise ApiError(400, "text.format json_schema needs a schema.", param="text")
        schema = of["schema"] if kind == "json_schema" else None
        return ResponseFormat(type=kind, json_schema=JsonSchema(schema=schema) if schema is not None else None)


class ResponseForm:
    """What a response looks like, in one piece or as events."""

    ends = b""

    def __init__(self, request: ResponsesRequest, reader: Reader, model: str, id: str) -> None:
        self._reader, self._id, self._n = reader, id, 0
        self._head = {
            "id": f"resp_{id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **(request.reasoning or {})},
            "store": False,
            "temperature": request.temperature,
            "text": request.text or {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": request.top_p,
            "truncation": "disabled",
        }

    def error(self, error: ApiError) -> dict[str, Any]:
        said = {"code": error.code or error.kind, "message": error.message, "param": error.param}
        return {"type": "error", **said, "sequence_number": self._n}

    async def whole(self, answers: Answers) -> dict[str, Any]:
        items: list[dict[str, Any]] = []
        async for _, _, parts in replies(answers, self._reader):
            for part in parts:
                if not items or not _goes_on(items[-1], part):
                    items.append(self._item(part, len(items)))
                _put(items[-1], part)
        for item in items:
            _end(item, _status(answers.results[0]))
        return self._whole(answers, items)

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        begun = False
        async for _, _, parts in replies(answers, self._reader):
            if not begun:
                begun = True
                now = {**self._head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
                yield self._event("created", response=now)
                yield self._event("in_progress", response=now)
            for part in parts:
                if not items or not _goes_on(items[-1], part):
                    if items:
                        for event in self._done(items, "completed"):
                            yield event
                    items.append(self._item(part, len(items)))
                    for event in self._added(items):
                        yield event
                _put(items[-1], part)
                said = part.arguments if isinstance(part, Call) else part.text
                yield self._event(f"{_KINDS[items[-1]['type']]}.delta", **self._where(items), delta=said)
        if items:
            for event in self._done(items, _status(answers.results[0])):
                yield event
        whole = self._whole(answers, items)
        yield self._event(whole["status"], response=whole)

    def _whole(self, answers: Answers, items: list[dict[str, Any]]) -> dict[str, Any]:
        status, usage = _status(answers.results[0]), answers.usage()
        return {
            **self._head,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": items,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": usage["completion_tokens_details"],
                "total_tokens": usage["total_tokens"],
            },
        }

    # --------------------------------------------------------------------------------------- events

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        number, self._n = self._n, self._n + 1
        return {"type": f"response.{kind}", "sequence_number": number, **more}

    def _where(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """What an event of the last item says of its place."""
        item = items[-1]
        place = {"item_id": item["id"], "output_index": len(items) - 1}
        if item["type"] == "function_call":
            return place
        return {**place, "content_index": 0, **({"logprobs": []} if item["type"] == "message" else {})}

    def _added(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        item, place = items[-1], self._where(items)
        place.pop("logprobs", None)
        bare = {**item, "content": []} if "content" in item else item
        events = [self._event("output_item.added", output_index=place["output_index"], item=dict(bare))]
        if item["type"] == "message":
            events.append(self._event("content_part.added", **place, part=dict(item["content"][0])))
        return events

    def _done(self, items: list[dict[str, Any]], status: str) -> list[dict[str, Any]]:
        item, place = items[-1], self._where(items)
        _end(item, status)
        kind = f"{_KINDS[item['type']]}.done"
        if item["type"] == "function_call":
            events = [self._event(kind, **place, name=item["name"], arguments=item["arguments"])]
        else:
            events = [self._event(kind, **place, text=item["content"][0]["text"])]
        if item["type"] == "message":
            place.pop("logprobs", None)
            events.append(self._event("content_part.done", **place, part=item["content"][0]))
        return [*events, self._event("output_item.done", output_index=place["output_index"], item=item)]

    def _item(self, part: Part | Call, index: int) -> dict[str, Any]:
        """A new, empty item of the output that begins with this part."""
        if isinstance(part, Call):
            id, item = f"fc_{self._id}{index}", {"call_id": part.id, "name": part.name, "arguments": ""}
            return {"id": id, "type": "function_call", "status": "in_progress", **item}
        if part.thought:
            thought = [{"type": "reasoning_text", "text": ""}]
            return {"id": f"rs_{self._id}{index}", "type": "reasoning", "summary": [], "content": thought}
        content: list[dict[str, Any]] = [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
        head = {"id": f"msg_{self._id}{index}", "type": "message", "status": "in_progress", "role": "assistant"}
        return {**head, "content": content}


_KINDS = {"message": "output_text", "reasoning": "reasoning_text", "function_call": "function_call_arguments"}


def _goes_on(item: dict[str, Any], part: Part | Call) -> bool:
    if isinstance(part, Call):
        return part.more
    return bool(item["type"] == ("reasoning" if part.thought else "message"))


def _put(item: dict[str, Any], part: Part | Call) -> None:
    if isinstance(part, Call):
        item["arguments"] += part.arguments
    else:
        item["content"][0]["text"] += part.text


def _end(item: dict[str, Any], status: str) -> None:
    if item.get("status") == "in_progress":
        item["status"] = status


def _status(result: Result) -> str:
    return "incomplete" if result.finish_reason == "length" else "completed"


# ------------------------------------------------------------------------------------------- what is asked


def _add(where: str, item: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind != "reasoning":
        raise ApiError(400, f"{where}: an item of type {kind!r} is not served.", param="input")


def _tool(i: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise ApiError(400, f"tools[{i}]: tools of type {tool.get('type')!r} are not served, only functions.",
                       param="tools")  # fmt: skip
    return {"type": "function", "function": {k: tool.get(k) for k in ("name", "description", "parameters")}}
