"""Where a request runs: on a line of its owner, after those that came before it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.generation import Generation
from pipeinfer_cpp.line import Line
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.server.ask import ApiError


@dataclass(eq=False)
class Seat:
    """A slot of the pipeline, the line that has it, and what stands in its cache."""

    number: int
    line: Line | None = None
    owner: str = ""
    tokens: Sequence[int] = ()
    used: int = 0
    busy: bool = False
    served: int = 0
    """Requests so far."""


@dataclass
class Counts:
    """What the server did so far."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    """By finish reason."""


def owner_of(key: str) -> str:
    """Whose cells a request may use: those of requests with the same API key."""
    return hashlib.sha256(key.encode()).hexdigest()[:16] if key else "anyone"


class Lines:
    """As many requests at once as the pipeline has slots; further ones wait in a queue, up to `queue` of them."""

    def __init__(self, pipeline: Pipeline, queue: int) -> None:
        self.pipeline = pipeline
        self.seats = [Seat(i) for i in range(pipeline.settings.slots)]
        self.counts = Counts()
        self._queue = queue
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._count = 0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def generation(
        self,
        owner: str,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        stop: Sequence[str],
        slot: int = -1,
        cache: bool = True,
    ) -> AsyncIterator[Generation]:
        """A generation, ended with the block however that ends. Raises ApiError where it cannot be."""
        seat = await self._take(owner, tokens, slot)
        generation: Generation | None = None
        try:
            line = seat.line
            if line is None or seat.owner != owner:
                await run_in_threadpool(self._hand_over, seat, owner)
                line = seat.line
            assert line is not None
            if not cache:
                await run_in_threadpool(line.forget)
            seat.tokens = ()
            try:
                generation = await run_in_threadpool(
                    line.generate, list(tokens), max_tokens=max_tokens, sampling=sampling, stop=list(stop)
                )
            except (UserError, TypeError) as error:
                raise ApiError(400, str(error)) from None
            except PipeInferError as error:
                raise ApiError(503, str(error)) from None
            yield generation
        finally:
            # What is under way is cancelled at once; the seat is free when every stage has dropped it.
            ending = asyncio.create_task(self._end(seat, generation, tokens))
            self._closing.add(ending)
            ending.add_done_callback(self._closing.discard)

    def check(self) -> None:
        """Raise ApiError when the pipeline is gone."""
        if self.pipeline.driver.failure is not None:
            raise ApiError(503, f"The pipeline has ended: {self.pipeline.driver.failure}", code="pipeline_ended")

    async def settle(self) -> None:
        """Wait for what is being ended."""
        while self._closing:
            await asyncio.wait(set(self._closing), timeout=5)

    async def _take(self, owner: str, tokens: Sequence[int], slot: int) -> Seat:
        self.check()
        while not (free := self._free(slot)):
            if len(self._waiting) >= self._queue:
                raise ApiError(429, f"{len(self._waiting)} requests wait already: try again later.",
                               code="queue_full", retry_after=1 + len(self._waiting))  # fmt: skip
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                raise
            self.check()
        seat = max(free, key=lambda s: (s.owner == owner and _alike(s.tokens, tokens), -s.used))
        self._count += 1
        seat.busy, seat.used, seat.served = True, self._count, seat.served + 1
        return seat

    def _free(self, slot: int) -> list[Seat]:
        if slot >= len(self.seats):
            raise ApiError(400, f"id_slot must be below {len(self.seats)}.", param="id_slot")
        return [s for s in self.seats if not s.busy and slot in (-1, s.number)]

    def _hand_over(self, seat: Seat, owner: str) -> None:
        """Another owner's line ends, with all that it said."""
        if seat.line is not None:
            seat.line.close()
        seat.line, seat.owner, seat.tokens = self.pipeline.conversation(owner), owner, ()

    async def _end(self, seat: Seat, generation: Generation | None, tokens: Sequence[int]) -> None:
        try:
            if generation is not None:
                await run_in_threadpool(generation.close)
                self._book(seat, generation, tokens)
        finally:
            seat.busy = False
            self._next()

    def _next(self) -> None:
        """All who wait look for a seat, the longest first; those that find none wait on in their order."""
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)

    def _book(self, seat: Seat, generation: Generation, tokens: Sequence[int]) -> None:
        result = generation.result
        if result is None:
            return
        seat.tokens = [*tokens, *result.token_ids]
        counts = self.counts
        counts.prompt_tokens += result.n_prompt
        counts.generated_tokens += result.n_generated
        counts.drafted += result.draft.proposed
        counts.accepted += result.draft.accepted
        counts.ended[result.finish_reason] = counts.ended.get(result.finish_reason, 0) + 1

    def state(self) -> list[dict[str, Any]]:
        """Of each slot, as llama-server says it; nothing of anybody's text."""
        n_ctx = self.pipeline.settings.n_ctx
        return [
            {"id": s.number, "n_ctx": n_ctx, "is_processing": s.busy, "n_cached": len(s.tokens), "n_served": s.served}
            for s in self.seats
        ]


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
