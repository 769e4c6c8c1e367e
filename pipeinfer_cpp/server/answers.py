"""Generations of one request as they come: tokens of each choice, and what is said at the end."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeinfer_cpp.cluster.job import Job
from pipeinfer_cpp.errors import FormLost, PipeInferError
from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.results import Result, Token
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.server.ask import ApiError
from pipeinfer_cpp.server.lines import Lines


@dataclass
class Ask:
    """What a request comes down to."""

    owner: str
    tokens: list[int]
    sampling: Sampling
    stop: Sequence[str] = ()
    max_tokens: int = -1
    choices: int = 1
    slot: int = -1
    cache: bool = True


@dataclass
class Answers:
    """The choices of one request, one after the other. `results` are there when `tokens` has ended."""

    lines: Lines
    ask: Ask
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    results: list[Result] = field(default_factory=list)
    _job: Job | None = None
    n_thought: int = 0
    """Tokens of thoughts, as far as whoever reads the tokens tells them apart."""

    async def tokens(self) -> AsyncGenerator[tuple[int, Token], None]:
        """(choice, token). Raises ApiError where the pipeline fails."""
        ask = self.ask
        for choice in range(ask.choices):
            sampling = ask.sampling
            if choice and sampling.seed >= 0:
                sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + choice) % (1 << 64))
            async with self.lines.generation(
                ask.owner,
                ask.tokens,
                max_tokens=ask.max_tokens,
                sampling=sampling,
                stop=ask.stop,
                slot=ask.slot,
                cache=ask.cache,
                begun=choice > 0,
            ) as generation:
                self._job = self._job or generation.job
                try:
                    async for token in generation:
                        self.first = self.first or time.monotonic()
                        yield choice, token
                except FormLost as error:
                    raise ApiError(422, str(error), code="form_lost") from None
                except PipeInferError as error:
                    raise ApiError(503, f"The pipeline has ended: {error}", code="pipeline_ended") from None
                if generation.result is None:
                    raise ApiError(500, "The generation ended without a result.")
                self.results.append(generation.result)

    def usage(self) -> dict[str, Any]:
        n_prompt, n = len(self.ask.tokens), sum(result.n_generated for result in self.results)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n,
            "total_tokens": n_prompt + n,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
            "completion_tokens_details": {"reasoning_tokens": self.n_thought},
        }

    @property
    def n_cached(self) -> int:
        """Tokens of the prompt that needed no computing when the first choice began."""
        return self._job.cached if self._job is not None else 0

    def timings(self) -> dict[str, Any]:
        """As llama-server has them. Drafts: guesses that the model judged, and those of them that came true."""
        now, first = time.monotonic(), self.first
        n = sum(result.n_generated for result in self.results)
        read = (first or now) - self.began
        wrote = now - (first or now)
        judged = sum(result.draft.accepted + result.draft.rejected for result in self.results)
        accepted = sum(result.draft.accepted for result in self.results)
        return {
            "cache_n": self.n_cached,
            "prompt_n": len(self.ask.tokens) - self.n_cached,
            "prompt_ms": round(1000 * read, 2),
            "predicted_n": n,
            "predicted_ms": round(1000 * wrote, 2),
            "predicted_per_second": round((n - 1) / wrote, 2) if n > 1 and wrote > 0 else None,
            "draft_n": judged,
            "draft_n_accepted": accepted,
        }


def finish_reason(result: Result) -> str:
    """In OpenAI's words."""
    return "length" if result.finish_reason == "length" else "stop"


def logprob(vocabulary: Vocabulary, token: Token) -> dict[str, Any]:
    """One token of `logprobs.content`."""
    own = _entry(vocabulary, token.id, token.logprob)
    return {**own, "top_logprobs": [_entry(vocabulary, other, value) for other, value in token.top]}


def _entry(vocabulary: Vocabulary, token: int, value: float) -> dict[str, Any]:
    piece = vocabulary.piece(token)
    return {"token": piece.decode("utf-8", "replace"), "logprob": value, "bytes": list(piece)}
