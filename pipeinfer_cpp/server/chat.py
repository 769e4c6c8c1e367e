"""/v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.server.answers import Answers, Ask, finish_reason, logprob
from pipeinfer_cpp.server.ask import ApiError, ChatRequest
from pipeinfer_cpp.server.prompts import Prompts


def ask_of(request: ChatRequest, prompts: Prompts, owner: str) -> Ask:
    """Raises ApiError for what cannot be."""
    most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    top = request.top_logprobs or 0
    if not 0 <= top <= 20:
        raise ApiError(400, "top_logprobs must be 0 to 20.", param="top_logprobs")
    if top and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
    if request.tools and request.tool_choice not in (None, "none", "auto"):
        raise ApiError(400, "This tool_choice is not served.", param="tool_choice")
    sampling = request.sampling()
    return Ask(
        owner,
        prompts.chat(request.messages),
        msgspec.structs.replace(sampling, top_logprobs=top),
        request.stops,
        checked_most(most),
        request.choices,
        request.id_slot,
        request.cache_prompt,
    )


def checked_most(most: int | None) -> int:
    """`max_tokens`; -1: as many as fit."""
    if most is None or most == -1:
        return -1
    if most < 1:
        raise ApiError(400, "max_tokens must be at least 1.", param="max_tokens")
    return most


class ChatForm:
    """What a chat's answer looks like, in one piece or in chunks."""

    def __init__(self, request: ChatRequest, vocabulary: Vocabulary, model: str, id: str) -> None:
        self._request, self._vocabulary = request, vocabulary
        self._head = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}

    async def whole(self, answers: Answers) -> dict[str, Any]:
        n = answers.ask.choices
        texts: list[list[str]] = [[] for _ in range(n)]
        probs: list[list[dict[str, Any]]] = [[] for _ in range(n)]
        async for choice, token in answers.tokens():
            texts[choice].append(token.text)
            if self._request.logprobs and token.id >= 0:
                probs[choice].append(logprob(self._vocabulary, token))
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": result.text},
                "logprobs": {"content": probs[i][: result.n_generated]} if self._request.logprobs else None,
                "finish_reason": finish_reason(result),
            }
            for i, result in enumerate(answers.results)
        ]
        more = {"choices": choices, "usage": answers.usage(), "timings": answers.timings()}
        return {**self._head, "object": "chat.completion", **more}

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        begun: set[int] = set()
        ended = 0
        async for choice, token in answers.tokens():
            for i in range(ended, choice):
                yield self._chunk(i, {}, finish_reason(answers.results[i]))
            ended = choice
            if choice not in begun:
                begun.add(choice)
                yield self._chunk(choice, {"role": "assistant", "content": ""})
            probs = [logprob(self._vocabulary, token)] if self._request.logprobs and token.id >= 0 else []
            if token.text or probs:
                yield self._chunk(choice, {"content": token.text}, probs=probs)
        for i in range(ended, len(answers.results)):
            if i not in begun:
                yield self._chunk(i, {"role": "assistant", "content": ""})
            yield self._chunk(i, {}, finish_reason(answers.results[i]))
        options = self._request.stream_options
        usage = {"usage": answers.usage()} if options is not None and options.include_usage else {}
        if usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], **usage,
                   "timings": answers.timings()}  # fmt: skip

    def _chunk(
        self, choice: int, delta: dict[str, Any], reason: str | None = None, probs: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        content = {"logprobs": {"content": probs}} if probs else {}
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [{"index": choice, "delta": delta, "finish_reason": reason, **content}],
        }
