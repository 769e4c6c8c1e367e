"""Whatever stands in a body in the place of what should, it is a request or an error that says what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from pipeinfer_cpp.server.ask import ApiError, ChatRequest, read
from pipeinfer_cpp.server.messages import MessagesRequest
from pipeinfer_cpp.server.prompts import plain_message
from pipeinfer_cpp.server.responses import ResponsesRequest

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
CHAT = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
        {
            "role": "assistant",
            "content": "a",
            "reasoning_content": "r",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "t"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    "chat_template_kwargs": {"enable_thinking": True},
    "reasoning_effort": "low",
    "stop": ["x"],
    "logit_bias": {"1": 1},
}
ALLOWED = {
    "messages": [{"role": "user", "content": "u"}],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
    },
}
MESSAGES = {
    "messages": [
        {"role": "user", "content": "u"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "text", "text": "a"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"a": "b"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "r"}]},
                {"type": "text", "text": "u"},
            ],
        },
    ],
    "system": [{"type": "text", "text": "s"}],
    "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    "stop_sequences": ["x"],
}
RESPONSES = {
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "r"},
    ],
    "instructions": "s",
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
    "reasoning": {"effort": "low"},
    "metadata": {},
}
JUNK: list[Any] = [None, True, 0, -1, 1.5, "", "x", "auto", "user", {}, {"type": "text"}, [], [None], [{}], ["x"], [[]]]


def places(body: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from places(value, (*above, key))


def put(body: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(body)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed


def understood(kind: Any, body: Any) -> bool:
    """As the server does it, up to the model. Any other exception would be the server's mistake."""
    try:
        asked = read(json.dumps(body).encode(), kind)
        chat = asked if kind is ChatRequest else asked.chat()
        for i, message in enumerate(chat.messages):
            json.dumps(plain_message(i, message))
        if (tools := chat.offered()) is not None:
            json.dumps([tool.in_openai() for tool in tools.tools])
        chat.variables()
        chat.sampling()
    except ApiError as error:
        assert 400 <= error.status < 500 and error.message.endswith("."), error.message
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "body"),
    [(ChatRequest, CHAT), (ChatRequest, ALLOWED), (MessagesRequest, MESSAGES), (ResponsesRequest, RESPONSES)],
)
def test_anything_anywhere_in_a_body(kind: Any, body: Any) -> None:
    assert understood(kind, body)
    found = {place: [understood(kind, put(body, place, value)) for value in JUNK] for place in places(body)}
    assert sum(not all(each) for each in found.values()) > len(found) / 3
