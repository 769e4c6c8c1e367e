"""/v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.results import Token
from pipeinfer_cpp.server.answers import Answers, Ask, finish_reason
from pipeinfer_cpp.server.ask import ApiError, CompletionRequest
from pipeinfer_cpp.server.chat import checked_most
from pipeinfer_cpp.server.prompts import Prompts


def ask_of(request: CompletionRequest, prompts: Prompts, owner: str) -> Ask:
    """Raises ApiError for what cannot be."""
    for name, value in (("suffix", request.suffix), ("best_of", request.best_of)):
        if value not in (None, "", 1):
            raise ApiError(400, f"{name} is not served.", param=name)
    top = request.logprobs or 0
    if not 0 <= top <= 20:
        raise ApiError(400, "logprobs must be between 0 and 20.", param="logprobs")
    sampling = request.sampling()
    return Ask(
        owner,
        _tokens(request, prompts),
        msgspec.structs.replace(sampling, top_logprobs=top),
        request.stops,
        checked_most(16 if request.max_tokens is None else request.max_tokens),
        request.choices,
        request.id_slot,
        request.cache_prompt,
    )


def _tokens(request: CompletionRequest, prompts: Prompts) -> list[int]:
    prompt: str | Sequence[Any] = request.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompts.text(prompt)
    tokens = [token for token in prompt if isinstance(token, int)]
    if len(tokens) < len(prompt):
        raise ApiError(400, "Give one prompt in a request: a text, or a list of token ids.", param="prompt")
    return prompts.fitting(prompts.known(tokens, "prompt"))


class CompletionForm:
    """What a completion looks like, in one piece or in chunks."""

    ends = b"data: [DONE]\n\n"

    def __init__(self, request: CompletionRequest, vocabulary: Vocabulary, model: str, id: str) -> None:
        self._request, self._vocabulary = request, vocabulary
        self._head = {"id": f"cmpl-{id}", "object": "text_completion", "created": int(time.time()), "model": model}

    def error(self, error: ApiError) -> dict[str, Any]:
        return error.body()

    async def whole(self, answers: Answers) -> dict[str, Any]:
        tokens: list[list[Token]] = [[] for _ in range(answers.ask.choices)]
        async for choice, token in answers.tokens():
            if token.id >= 0:
                tokens[choice].append(token)
        echo = self._echo(answers)
        choices = [
            {
                "index": i,
                "text": echo + result.text,
                "logprobs": self._logprobs(tokens[i][: result.n_generated], len(echo)),
                "finish_reason": finish_reason(result),
            }
            for i, result in enumerate(answers.results)
        ]
        return {**self._head, "choices": choices, "usage": answers.usage(), "timings": answers.timings()}

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        ended = at = 0
        echo = self._echo(answers)
        async for choice, token in answers.tokens():
            for i in range(ended, choice):
                yield self._chunk(i, "", None, finish_reason(answers.results[i]))
            if choice > ended:
                ended, at, echo = choice, 0, self._echo(answers)
            text, echo = echo + token.text, ""
            probs = self._logprobs([token], at) if token.id >= 0 else None
            at += len(text)
            if text or probs:
                yield self._chunk(choice, text, probs)
        for i in range(ended, len(answers.results)):
            yield self._chunk(i, "", None, finish_reason(answers.results[i]))
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield {**self._head, "choices": [], "usage": answers.usage(), "timings": answers.timings()}

    def _echo(self, answers: Answers) -> str:
        if not self._request.echo:
            return ""
        return b"".join(self._vocabulary.piece(t) for t in answers.ask.tokens).decode("utf-8", "replace")

    def _logprobs(self, tokens: list[Token], at: int) -> dict[str, Any] | None:
        if self._request.logprobs is None:
            return None
        offsets = []
        for token in tokens:
            offsets.append(at)
            at += len(token.text)
        return {
            "tokens": [self._name(t.id) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{self._name(other): value for other, value in t.top} for t in tokens],
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        return self._vocabulary.piece(token).decode("utf-8", "replace")

    def _chunk(
        self, choice: int, text: str, probs: dict[str, Any] | None, reason: str | None = None
    ) -> dict[str, Any]:
        return {
            **self._head,
            "choices": [{"index": choice, "text": text, "logprobs": probs, "finish_reason": reason}],
        }
