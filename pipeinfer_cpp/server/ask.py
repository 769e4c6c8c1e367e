"""What is asked of the server: typed requests, and the errors of those that cannot be, in the OpenAI form."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.server.tools import Tool, Tools

MOST = 8
"""Choices of one request at most."""


class ApiError(Exception):
    """A request that is not served: `status` is HTTP's."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def kind(self) -> str:
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class JsonSchema(msgspec.Struct):
    name: str = ""
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | bool | None = None
    """llama-server's way to say it."""


class Request(msgspec.Struct, kw_only=True):
    """What all ways to ask for a text share. Fields that are not known are passed over, as other servers do."""

    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    id_slot: int = -1
    cache_prompt: bool = True

    @property
    def choices(self) -> int:
        n = 1 if self.n is None else self.n
        if not 1 <= n <= MOST:
            raise ApiError(400, f"n must be between 1 and {MOST}.", param="n")
        return n

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        if not all(stops) or len(stops) > 64:
            raise ApiError(400, "stop takes up to 64 texts, none of them empty.", param="stop")
        return stops

    def sampling(self, **more: Any) -> Sampling:
        """Raises ApiError for values out of range."""
        names = {"temperature": "temp"}
        simple = (
            "temperature", "top_p", "top_k", "min_p", "typical_p", "frequency_penalty", "presence_penalty",
            "repeat_penalty", "repeat_last_n", "seed", "grammar",
        )  # fmt: skip
        values = {names.get(name, name): getattr(self, name) for name in simple if getattr(self, name) is not None}
        if self.logit_bias:
            try:
                values["logit_bias"] = {int(token): amount for token, amount in self.logit_bias.items()}
            except ValueError:
                raise ApiError(400, "logit_bias maps token ids to amounts.", param="logit_bias") from None
        values.update(more or self._form())
        sampling = Sampling(**values)
        try:
            sampling.check()
        except UserError as error:
            raise ApiError(400, in_fields(error)) from None
        return sampling

    def _form(self) -> dict[str, Any]:
        """What is asked of the text's form."""
        if self.json_schema is not None:
            return {"json_schema": self.json_schema}
        of = self.response_format
        if of is None or of.type == "text":
            return {}
        if of.type == "json_object":
            return {"json_schema": of.schema if of.schema is not None else {"type": "object"}}
        if of.type == "json_schema":
            schema = of.json_schema.schema if of.json_schema is not None else of.schema
            if schema is None:
                raise ApiError(400, "response_format json_schema needs a json_schema with a schema.",
                               param="response_format")  # fmt: skip
            return {"json_schema": schema}
        raise ApiError(400, f"response_format must be text, json_object or json_schema, not {of.type!r}.",
                       param="response_format")  # fmt: skip


_OWN = {"messages", "tools", "add_generation_prompt"}
"""What a chat template is told by the server and no request."""


class CompletionRequest(Request, kw_only=True):
    prompt: str | list[str | int | list[int]] = ""
    logprobs: int | None = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None


class ChatRequest(Request, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def variables(self) -> dict[str, Any]:
        """What the chat template is told."""
        effort: dict[str, Any] = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        if self.reasoning_effort == "none":
            effort = {"enable_thinking": False, "thinking": False}
        told = self.chat_template_kwargs or {}
        if own := _OWN & told.keys():
            raise ApiError(400, f"chat_template_kwargs: {min(own)!r} comes from the request itself; leave it out.",
                           param="chat_template_kwargs")  # fmt: skip
        return {**effort, **told}

    def offered(self) -> Tools | None:
        """The functions that may be called. Raises ApiError for those that cannot be."""
        choice, must = self.tool_choice, None
        if not self.tools:
            if choice not in (None, "none", "auto"):
                raise ApiError(400, "tool_choice needs tools.", param="tool_choice")
            return None
        tools = [_tool(f"tools[{i}]", tool) for i, tool in enumerate(self.tools)]
        if isinstance(choice, dict):
            allowed = choice.get("allowed_tools", choice) if choice.get("type") == "allowed_tools" else None
            if isinstance(allowed, dict):
                listed = allowed.get("tools")
                if not isinstance(listed, list):
                    raise ApiError(400, "tool_choice: allowed_tools needs a list of tools.", param="tool_choice")
                names = [_chosen(one) for one in listed]
                if missing := set(names) - {tool.name for tool in tools}:
                    raise ApiError(400, f"tool_choice: there is no tool {min(missing)!r}.", param="tool_choice")
                tools = [tool for tool in tools if tool.name in names]
                choice = allowed.get("mode", "auto")
            else:
                must = [_chosen(choice)]
        if choice == "none":
            return None
        if choice == "required":
            must = [tool.name for tool in tools]
        elif choice not in (None, "auto") and must is None:
            raise ApiError(400, f"tool_choice must be none, auto, required or a function, not {choice!r}.",
                           param="tool_choice")  # fmt: skip
        try:
            return Tools(tools, must, parallel=self.parallel_tool_calls is not False)
        except UserError as error:
            raise ApiError(400, f"The tools cannot be offered: {error}", param="tools") from None


def _tool(where: str, tool: dict[str, Any]) -> Tool:
    if tool.get("type", "function") != "function":
        raise ApiError(400, f"{where}: tools of type {tool['type']!r} are not served, only functions.", param="tools")
    of = tool.get("function")
    if not isinstance(of, dict):
        raise ApiError(400, f"{where}: a function is needed.", param="tools")
    try:
        return msgspec.convert({key: value for key, value in of.items() if value is not None}, Tool)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"{where}: {error}.", param="tools") from None


def _chosen(choice: Any) -> str:
    """The name of one function."""
    of = choice.get("function", choice) if isinstance(choice, dict) and choice.get("type") == "function" else None
    if not isinstance(of, dict) or not isinstance(of.get("name"), str):
        raise ApiError(400, "tool_choice: a function with a name is needed.", param="tool_choice")
    return str(of["name"])


def in_fields(error: Exception) -> str:
    """Its words, with a request's fields for the options of the command line."""
    known = {"temp": "temperature", "typical": "typical_p"}
    return re.sub(r"--([a-z][a-z-]*)", lambda found: known.get(found[1], found[1].replace("-", "_")), str(error))


T = TypeVar("T")


def read(body: bytes, kind: type[T]) -> T:
    """A request's body. Raises ApiError, which names the field that is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        at = re.search(r"at `\$\.?(.*)`$", str(error))
        missing = re.search(r"missing required field `(\w+)`", str(error))
        field = missing[1] if missing else (re.split(r"[.\[]", at[1])[0] if at else None)
        raise ApiError(400, f"The request is not valid: {error}.", param=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"The body is not JSON: {error}.") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
