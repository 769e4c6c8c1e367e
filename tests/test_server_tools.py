"""Tools, thoughts and the other protocols of `pipeinfer serve`, asked by the official clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import pydantic
import pytest
from serving import serving

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

QUESTION = [{"role": "user", "content": "What is the weather in Rome?"}]
FOX = "Tell me a story about a fox."
TOLD = [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": FOX}]
PLACE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["place", "unit", "days"],
    "additionalProperties": False,
}
WORD: dict[str, Any] = {"type": "object", "properties": {"word": {"type": "string", "maxLength": 8}}}
WORD |= {"required": ["word"], "additionalProperties": False}
SCHEMAS = {"get_weather": PLACE, "look_up": WORD}
ABOUT = {"get_weather": "The weather of a place.", "look_up": "What a word means."}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "description": ABOUT[name], "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
CLAUDES = [{"name": name, "description": ABOUT[name], "input_schema": schema} for name, schema in SCHEMAS.items()]
FLAT = [{"type": "function", **tool["function"], "strict": True} for tool in TOOLS]
ARGUMENTS = '{"place": "Rome", "unit": "celsius", "days": 2}'
CALL = f'<tool_call>{{"name": "get_weather", "arguments": {ARGUMENTS}}}</tool_call>'


def only(text: str) -> dict[str, str]:
    """The grammar of this answer alone: what a model might say, without a model that would."""
    return {"grammar": f"root ::= {json.dumps(text)}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    template = folder / "thinks.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
        "{% if enable_thinking %}<think>\n{% endif %}{# <think></think> #}{% if budget %}{{ budget + 1 }}{% endif %}"
    )
    options = "--slots", "2", "--ctx-size", "1024", "--chat-template", str(template), "--ping", "0.02"
    with serving(folder, *options) as server:
        yield server.url


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(server: str) -> Any:
    return anthropic.Anthropic(base_url=server, api_key="none", max_retries=0)


def chat(client: Any, **more: Any) -> Any:
    more = {"messages": QUESTION, "max_tokens": 250, "temperature": 0, "tools": TOOLS, **more}
    return client.chat.completions.create(model="demo", **more)


def checked(name: str, arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(arguments)
    jsonschema.validate(found, SCHEMAS[name])
    return found


# ------------------------------------------------------------------------------------- chat completions


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_call_that_must_come_is_valid(client: Any, choice: Any, seed: int) -> None:
    answer = chat(client, tool_choice=choice, seed=seed, temperature=1.2).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    (call,) = answer.message.tool_calls
    checked(call.function.name, call.function.arguments)
    assert call.type == "function" and call.id
    if choice != "required":
        assert call.function.name == "get_weather"


def test_a_call_in_a_stream(client: Any) -> None:
    chunks = list(chat(client, tool_choice="required", stream=True, seed=3))
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert deltas[0].role == "assistant"
    first, *further = [call for d in deltas for call in d.tool_calls or []]
    assert first.id and first.type == "function" and len(further) > 3  # piece by piece
    assert all(call.index == 0 and call.id is None and call.function.name is None for call in further)
    checked(first.function.name, "".join(call.function.arguments for call in (first, *further)))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(d.content for d in deltas)


def test_a_stream_that_waits_for_a_call_is_not_silent(server: str) -> None:
    body = {"messages": QUESTION, "tools": TOOLS, "stream": True, "temperature": 0, **only(CALL * 3)}
    with httpx.stream("POST", f"{server}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = list(answer.iter_lines())
    assert lines[-2] == "data: [DONE]" and lines.count(": still here") >= 2


def test_a_call_that_the_model_makes_by_itself(client: Any) -> None:
    text = f"Let me look.\n{CALL}\n{CALL}"
    answer = chat(client, extra_body=only(text)).choices[0]
    assert answer.message.content == "Let me look." and answer.finish_reason == "tool_calls"
    assert [c.function.arguments for c in answer.message.tool_calls] == [ARGUMENTS] * 2
    assert len({c.id for c in answer.message.tool_calls}) == 2
    chunks = [c.choices[0].delta for c in chat(client, stream=True, extra_body=only(text)) if c.choices]
    assert "".join(d.content or "" for d in chunks) == "Let me look."
    assert [c.index for d in chunks for c in d.tool_calls or []] == [0, 1]
    one = chat(client, parallel_tool_calls=False, extra_body=only(text)).choices[0]
    assert len(one.message.tool_calls) == 1
    none = chat(client, tool_choice="none", extra_body=only(text)).choices[0]
    assert none.message.content == text and none.finish_reason == "stop" and not none.message.tool_calls


def test_results_of_calls_go_on(client: Any, server: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
    talk = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny <|im_end|>"},
    ]
    answer = chat(client, messages=talk, max_tokens=8)
    assert answer.choices[0].message.content
    short = chat(client, messages=talk[:1], max_tokens=8)
    assert answer.usage.prompt_tokens > short.usage.prompt_tokens + 20


def test_a_call_that_had_no_room(client: Any) -> None:
    answer = chat(client, tool_choice="required", max_tokens=2).choices[0]
    assert answer.finish_reason == "length" and not answer.message.tool_calls and not answer.message.content


def test_a_call_that_was_cut_off_is_there_as_far_as_it_came(client: Any, claude: Any) -> None:
    """In every form that has one; only a message's `input` must be whole, so that it is empty."""
    forced = {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}, "seed": 3}
    whole = chat(client, **forced).choices[0].message.tool_calls[0].function.arguments
    answer = chat(client, **forced, max_tokens=30).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "length" and call.function.name == "get_weather" and call.id
    assert whole.startswith(call.function.arguments) and 0 < len(call.function.arguments) < len(whole)
    chunks = [c.choices[0] for c in chat(client, **forced, max_tokens=30, stream=True)]
    pieces = [call.function.arguments for c in chunks for call in c.delta.tool_calls or []]
    assert "".join(pieces) == call.function.arguments and chunks[-1].finish_reason == "length"
    asked = {"tools": CLAUDES, "tool_choice": {"type": "tool", "name": "get_weather"}, "max_tokens": 30}
    used = message(claude, **asked)
    assert used.stop_reason == "max_tokens" and used.content[0].input == {}
    deltas = [e.delta.partial_json for e in message(claude, **asked, stream=True) if e.type == "content_block_delta"]
    assert len(deltas) > 3 and whole.startswith("".join(deltas)) and deltas[0].startswith("{")
    item = respond(client, tools=FLAT, tool_choice="required", max_output_tokens=30).output[0]
    assert item.type == "function_call" and item.status == "incomplete"


def test_thoughts_and_guesses_are_counted(client: Any) -> None:
    text = "<think>\nRome is hot.\n</think>\n\nSunny."
    answer = chat(client, extra_body=only(text))
    details = answer.usage.completion_tokens_details
    assert 4 <= details.reasoning_tokens < answer.usage.completion_tokens
    assert chat(client, tools=None, max_tokens=9).usage.completion_tokens_details.reasoning_tokens == 0
    timings = chat(client, tools=None, max_tokens=60).timings
    assert 0 <= timings["draft_n_accepted"] <= timings["draft_n"]
    assert timings["draft_n"] - timings["draft_n_accepted"] <= 60  # no more than one wrong guess a token is judged


@pytest.mark.parametrize("opened", [False, True])
def test_thoughts_are_apart(client: Any, opened: bool) -> None:
    text = ("" if opened else "<think>\n") + "Rome is hot.\n</think>\n\nSunny."
    told = {"chat_template_kwargs": {"enable_thinking": opened}}
    if opened:
        said = client.chat.completions.create(
            model="demo", messages=QUESTION, max_tokens=6, temperature=0, extra_body=told
        )
        assert said.choices[0].message.reasoning_content and not said.choices[0].message.content
        return
    message = chat(client, extra_body={**only(text), **told}).choices[0].message
    assert (message.reasoning_content, message.content) == ("Rome is hot.", "Sunny.")
    deltas = [c.choices[0].delta for c in chat(client, stream=True, extra_body={**only(text), **told}) if c.choices]
    thought = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
    assert thought.strip() == "Rome is hot." and "".join(d.content or "" for d in deltas) == "Sunny."


def test_forms_and_calls_that_must_come_are_not_thoughts(client: Any) -> None:
    told = {"chat_template_kwargs": {"enable_thinking": True}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": WORD}}
    message = chat(client, tools=None, response_format=form, extra_body=told).choices[0].message
    jsonschema.validate(json.loads(message.content), WORD)
    (call,) = chat(client, tool_choice="required", extra_body=told).choices[0].message.tool_calls
    checked(call.function.name, call.function.arguments)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"budget": "much"}, 'does not work with budget = "much": leave out or change'),
        ({"self": 1}, "does not work with self = 1: leave out or change"),
        ({"messages": []}, "chat_template_kwargs: 'messages' comes from the request itself; leave it out."),
    ],
)
def test_what_the_template_cannot_be_told(server: str, told: dict[str, Any], words: str) -> None:
    for stream in (False, True):
        body = {"messages": QUESTION, "max_tokens": 4, "chat_template_kwargs": told, "stream": stream}
        answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=30)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert words in error["message"] and error["param"] == "chat_template_kwargs"
        assert error["type"] == "invalid_request_error" and error["message"].count(".") == 1


class Owner(pydantic.BaseModel):
    name: Literal["Ann", "Bob"]


class Pet(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    legs: int = pydantic.Field(ge=0, le=8)
    owner: Owner | None


class FindPet(pydantic.BaseModel):
    """Find a pet."""

    pet: Pet


def test_pydantic_models_through_the_clients(client: Any, claude: Any) -> None:
    asked = {"model": "demo", "temperature": 0, "max_tokens": 200}
    pet = client.chat.completions.parse(messages=QUESTION, response_format=Pet, **asked).choices[0].message.parsed
    assert isinstance(pet, Pet)
    tool = openai.pydantic_function_tool(FindPet)
    called = client.chat.completions.parse(messages=QUESTION, tools=[tool], tool_choice="required", **asked)
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, FindPet)
    with client.chat.completions.stream(messages=QUESTION, tools=[tool], tool_choice="required", **asked) as stream:
        kinds = {event.type for event in stream}
        last = stream.get_final_completion().choices[0].message.tool_calls[0].function
    assert isinstance(last.parsed_arguments, FindPet) and "tool_calls.function.arguments.done" in kinds
    parsed = client.responses.parse(
        model="demo", input=FOX, temperature=0, max_output_tokens=200, text_format=Pet
    ).output_parsed
    assert isinstance(parsed, Pet)
    form = {"type": "json_schema", "schema": Pet.model_json_schema()}
    answer = message(claude, output_config={"format": form}, max_tokens=200)
    assert Pet.model_validate_json(answer.content[0].text) and answer.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tool_choice": "always"}, "must be none, auto, required or"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "no tool 'fly'"),
        ({"tools": None, "tool_choice": "required"}, "needs tools"),
        ({"tools": [{"type": "web_search"}]}, "only functions"),
        ({"tools": [{"type": "function", "function": {}}]}, "name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}], "content": None}]}, "a function with a name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "same name"),
    ],
)
def test_tools_that_cannot_be(client: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        chat(client, **more)


@pytest.mark.parametrize("depth", [200, 450, 5000])
@pytest.mark.parametrize("path", ["chat/completions", "messages"])
def test_what_is_nested_too_deeply(server: str, depth: int, path: str) -> None:
    deep = '{"type": "object", "properties": {"a": ' * depth + "{}" + "}}" * depth
    tool = '{"type": "function", "function": {"name": "f", "parameters": %s}}'
    if path == "messages":
        tool = '{"name": "f", "input_schema": %s}'
    choice = '"required"' if path != "messages" else '{"type": "any"}'
    body = '{"max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "tools": [%s], "tool_choice": %s}'
    answer = httpx.post(
        f"{server}/v1/{path}", content=body % (tool % deep, choice), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text


# ------------------------------------------------------------------------------------------- responses


def respond(client: Any, **more: Any) -> Any:
    more = {"input": "What is the weather in Rome?", "max_output_tokens": 120, "temperature": 0, **more}
    return client.responses.create(model="demo", **more)


def test_a_response(client: Any) -> None:
    plain = chat(client, messages=TOLD, tools=None, max_tokens=10)
    answer = respond(client, instructions="You tell stories.", input=FOX, max_output_tokens=10)
    assert answer.output_text == plain.choices[0].message.content
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 10 and answer.usage.input_tokens == plain.usage.prompt_tokens
    parts = [TOLD[0], {"role": "user", "content": [{"type": "input_text", "text": FOX}]}]
    assert respond(client, max_output_tokens=10, input=parts).output_text == answer.output_text


def test_a_response_in_events(client: Any) -> None:
    answer = respond(client, max_output_tokens=10)
    events = list(respond(client, max_output_tokens=10, stream=True))
    kinds = [e.type for e in events]
    assert kinds[:4] == [f"response.{k}" for k in ("created", "in_progress", "output_item.added", "content_part.added")]
    ends = "output_text.done", "content_part.done", "output_item.done", "incomplete"
    assert kinds[-4:] == [f"response.{k}" for k in ends]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == answer.output_text
    assert events[-1].response.output_text == answer.output_text
    assert [e.sequence_number for e in events] == list(range(len(events)))
    with client.responses.stream(model="demo", input="Hi", max_output_tokens=8, temperature=0) as stream:
        for _ in stream:
            pass


def test_a_response_that_calls(client: Any) -> None:
    answer = respond(client, tools=FLAT, tool_choice={"type": "function", "name": "get_weather"})
    (call,) = answer.output
    assert (call.type, call.name, answer.status) == ("function_call", "get_weather", "completed")
    checked(call.name, call.arguments)
    with client.responses.stream(
        model="demo", input="What is the weather?", tools=FLAT, tool_choice="required", max_output_tokens=120
    ) as stream:
        kinds = [event.type for event in stream]
        (last,) = stream.get_final_response().output
    checked(last.name, last.arguments)
    assert "response.function_call_arguments.done" in kinds and kinds[-1] == "response.completed"
    talk = [
        *QUESTION,
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    assert respond(client, input=talk, tools=FLAT, max_output_tokens=8).output_text


def test_a_response_in_a_form(client: Any) -> None:
    form = {"format": {"type": "json_schema", "name": "word", "schema": WORD}}
    jsonschema.validate(json.loads(respond(client, text=form).output_text), WORD)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is not served"),
        ({"background": True}, "background is not served"),
        ({"tools": [{"type": "web_search"}]}, "only functions"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.: an item of type 'item_reference'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "reads text only"),
        ({"text": {"format": {"type": "xml"}}}, "must be text, json_object or"),
        ({"max_output_tokens": 0}, "at least 1"),
    ],
)
def test_responses_that_cannot_be(client: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        respond(client, **more)


# ------------------------------------------------------------------------------------------- messages


def message(claude: Any, **more: Any) -> Any:
    more = {"messages": QUESTION, "max_tokens": 120, "extra_body": {"temperature": 0}, **more}
    return claude.messages.create(model="demo", **more)


def test_a_message(client: Any, claude: Any) -> None:
    plain = chat(client, messages=TOLD, tools=None, max_tokens=10)
    answer = message(claude, system="You tell stories.", messages=TOLD[1:], max_tokens=10)
    assert [b.type for b in answer.content] == ["text"] and answer.role == "assistant"
    assert answer.content[0].text == plain.choices[0].message.content
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 10
    counted = claude.messages.count_tokens(model="demo", messages=TOLD[1:], system="You tell stories.")
    assert counted.input_tokens == answer.usage.input_tokens == plain.usage.prompt_tokens
    word = answer.content[0].text.split()[2]
    system = [{"type": "text", "text": "You tell stories."}]
    stopped = message(claude, system=system, messages=TOLD[1:], max_tokens=10, stop_sequences=["\ufffd", word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    assert word not in stopped.content[0].text
    yes = {"format": {"type": "json_schema", "schema": {"type": "boolean"}}}
    ended = message(claude, stop_sequences=["zebra"], extra_body={"temperature": 0, "output_config": yes})
    assert (ended.stop_reason, ended.stop_sequence) == ("end_turn", None)


def test_a_prompt_longer_than_the_context_is_counted(claude: Any) -> None:
    talk = [{"role": "user", "content": "word " * 2000}]
    assert claude.messages.count_tokens(model="demo", messages=talk).input_tokens > 2000
    with pytest.raises(anthropic.BadRequestError, match="shorten it"):
        message(claude, messages=talk)


def test_a_message_in_events(claude: Any) -> None:
    answer = message(claude, max_tokens=10)
    kinds = [e.type for e in message(claude, max_tokens=10, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    asked = {"model": "demo", "max_tokens": 10, "messages": QUESTION, "extra_body": {"temperature": 0}}
    with claude.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == answer.content[0].text
        final = stream.get_final_message()
    assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 10


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_message_that_calls(claude: Any, choice: dict[str, Any]) -> None:
    answer = message(claude, tools=CLAUDES, tool_choice=choice)
    (used,) = answer.content
    assert used.type == "tool_use" and answer.stop_reason == "tool_use"
    jsonschema.validate(used.input, SCHEMAS[used.name])
    asked = {"model": "demo", "max_tokens": 120, "messages": QUESTION, "extra_body": {"temperature": 0}}
    with claude.messages.stream(**asked, tools=CLAUDES, tool_choice=choice) as stream:
        final = stream.get_final_message()
    assert [(b.name, b.input) for b in final.content] == [(used.name, used.input)]
    talk = [
        *QUESTION,
        {"role": "assistant", "content": answer.content},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": used.id, "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "And tomorrow?"},
            ],
        },
    ]
    assert message(claude, messages=talk, tools=CLAUDES, max_tokens=8).content[0].text


def test_a_message_with_a_thought(claude: Any) -> None:
    thinks = {"type": "enabled", "budget_tokens": 1024}
    answer = message(claude, thinking=thinks, max_tokens=6)
    assert answer.content[0].type == "thinking" and answer.content[0].thinking
    talk = [*QUESTION, {"role": "assistant", "content": answer.content}, *QUESTION]
    assert message(claude, messages=talk, max_tokens=4).content[0].type == "text"
    asked = {"model": "demo", "max_tokens": 6, "messages": QUESTION, "extra_body": {"temperature": 0}}
    with claude.messages.stream(**asked, thinking=thinks) as stream:
        assert stream.get_final_message().content[0].thinking == answer.content[0].thinking


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "It"}]}, "the last one must be the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "reads text only"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "are not served"),
        ({"max_tokens": 0}, "at least 1"),
        ({"tool_choice": {"type": "any"}}, "needs tools"),
    ],
)
def test_messages_that_cannot_be(claude: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=said) as refused:
        message(claude, **more)
    assert refused.value.body["type"] == "error" and refused.value.body["error"]["type"] == "invalid_request_error"


def test_errors_before_the_route_have_its_form(server: str) -> None:
    for path, key in (("/v1/messages", "type"), ("/v1/chat/completions", "error")):
        answer = httpx.post(f"{server}{path}", content=b"x", headers={"Content-Type": "text/plain"})
        assert answer.status_code == 415 and key in answer.json()
    missing = httpx.post(f"{server}/v1/messages", json={"messages": QUESTION})
    assert missing.status_code == 400 and "max_tokens is missing" in missing.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "more", "said"),
    [
        ("chat/completions", {"messages": [{"role": ["user"], "content": "x"}]}, "the role must be one of"),
        (
            "chat/completions",
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": 5}}},
            "a list of tools",
        ),
        ("messages", {"tools": CLAUDES, "tool_choice": {"type": ["any"]}}, "needs the type"),
    ],
)
def test_values_of_another_type_are_refused(server: str, path: str, more: dict[str, Any], said: str) -> None:
    answer = httpx.post(f"{server}/v1/{path}", json={"messages": QUESTION, "max_tokens": 4, **more})
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


@pytest.mark.parametrize(("path", "kind"), [("/v1/messages", "api_error"), ("/v1/responses", "server_error")])
def test_a_mistake_of_the_server_is_said_in_its_form(path: str, kind: str) -> None:
    from starlette.requests import Request

    from pipeinfer_cpp.server.app import _broken

    scope = {"type": "http", "path": path, "headers": [], "query_string": b"", "server": ("here", 80)}
    answer = _broken(Request(scope), TypeError("odd"))
    said = json.loads(bytes(answer.body))["error"]
    assert answer.status_code == 500 and said["type"] == kind and "TypeError: odd" in said["message"]
