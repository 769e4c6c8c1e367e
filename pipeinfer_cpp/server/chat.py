"""/v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from pipeinfer_cpp.chat.thinking import Part
from pipeinfer_cpp.results import Result
from pipeinfer_cpp.server.answers import Answers, Ask, finish_reason, logprob
from pipeinfer_cpp.server.ask import ApiError, ChatRequest
from pipeinfer_cpp.server.calls import Call, merged
from pipeinfer_cpp.server.prompts import Prompts
from pipeinfer_cpp.server.reply import Reader, replies


def ask_of(request: ChatRequest, prompts: Prompts, owner: str, *, fits: bool = True) -> tuple[Ask, Reader]:
    """What is asked, and what its answers are read with. Raises ApiError for what cannot be.

    `fits`: the prompt must fit into the context; one that is only counted need not.
    """
    most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    top = request.top_logprobs or 0
    if not 0 <= top <= 20:
        raise ApiError(400, "top_logprobs must be between 0 and 20.", param="top_logprobs")
    if top and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
    most = checked_most(most)
    sampling = request.sampling()
    tools = request.offered()
    tokens, reader, forced = prompts.chat(
        request.messages, tools, variables=request.variables(), formed=bool(sampling.forms)
    )
    if fits:
        prompts.fitting(tokens)
    if forced is not None:
        sampling = request.sampling(json_schema=forced.schema)
    ask = Ask(
        owner,
        tokens,
        msgspec.structs.replace(sampling, top_logprobs=top),
        request.stops,
        most,
        request.choices,
        request.id_slot,
        request.cache_prompt,
    )
    return ask, reader


def checked_most(most: int | None) -> int:
    """`max_tokens`; -1: as many as fit."""
    if most is None or most == -1:
        return -1
    if most < 1:
        raise ApiError(400, "max_tokens must be at least 1.", param="max_tokens")
    return most


class ChatForm:
    """What a chat's answer looks like, in one piece or in chunks."""

    ends = b"data: [DONE]\n\n"

    def __init__(self, request: ChatRequest, reader: Reader, model: str, id: str) -> None:
        self._request, self._reader, self._vocabulary = request, reader, reader.vocabulary
        self._head = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}

    def error(self, error: ApiError) -> dict[str, Any]:
        return error.body()

    async def whole(self, answers: Answers) -> dict[str, Any]:
        n = answers.ask.choices
        said: list[list[Part | Call]] = [[] for _ in range(n)]
        probs: list[list[dict[str, Any]]] = [[] for _ in range(n)]
        async for choice, token, parts in replies(answers, self._reader):
            said[choice] += parts
            if self._request.logprobs and token is not None and token.id >= 0:
                probs[choice].append(logprob(self._vocabulary, token))
        choices = [
            {
                "index": i,
                "message": _message(said[i]),
                "logprobs": {"content": probs[i][: result.n_generated]} if self._request.logprobs else None,
                "finish_reason": _reason(result, any(isinstance(part, Call) for part in said[i])),
            }
            for i, result in enumerate(answers.results)
        ]
        more = {"choices": choices, "usage": answers.usage(), "timings": answers.timings()}
        return {**self._head, "object": "chat.completion", **more}

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        begun: set[int] = set()
        calls = [0] * answers.ask.choices
        async for choice, token, parts in replies(answers, self._reader):
            if choice not in begun:
                begun.add(choice)
                yield self._chunk(choice, {"role": "assistant", "content": ""})
            wanted = self._request.logprobs and token is not None and token.id >= 0
            probs = [logprob(self._vocabulary, token)] if wanted and token is not None else []
            for part in parts or ([Part("", False)] if probs else []):
                yield self._chunk(choice, _delta(part, calls[choice]), probs=probs)
                calls[choice] += isinstance(part, Call) and not part.more
                probs = []
            if token is None:
                yield self._chunk(choice, {}, _reason(answers.results[choice], calls[choice] > 0))
        options = self._request.stream_options
        if options is not None and options.include_usage:
            more = {"choices": [], "usage": answers.usage(), "timings": answers.timings()}
            yield {**self._head, "object": "chat.completion.chunk", **more}

    def _chunk(
        self, choice: int, delta: dict[str, Any], reason: str | None = None, probs: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        content = {"logprobs": {"content": probs}} if probs else {}
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [{"index": choice, "delta": delta, "finish_reason": reason, **content}],
        }


def _message(parts: Sequence[Part | Call]) -> dict[str, Any]:
    thought = "".join(part.text for part in parts if isinstance(part, Part) and part.thought)
    text = "".join(part.text for part in parts if isinstance(part, Part) and not part.thought)
    calls = [part.in_openai() for part in merged(parts) if isinstance(part, Call)]
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    if thought:
        message["reasoning_content"] = thought.strip()
    if calls:
        message["tool_calls"] = calls
    return message


def _delta(part: Part | Call, n_calls: int) -> dict[str, Any]:
    if isinstance(part, Call) and part.more:
        return {"tool_calls": [{"index": n_calls - 1, "function": {"arguments": part.arguments}}]}
    if isinstance(part, Call):
        return {"tool_calls": [{"index": n_calls, **part.in_openai()}]}
    return {"reasoning_content" if part.thought else "content": part.text}


def _reason(result: Result, called: bool) -> str:
    reason = finish_reason(result)
    return "tool_calls" if called and reason == "stop" else reason
