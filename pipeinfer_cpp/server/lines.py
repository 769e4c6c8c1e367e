"""Where a request runs: on a line of its owner, after those that came before it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from pipeinfer_cpp.engine.cached import common_length
from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.generation import Generation
from pipeinfer_cpp.line import Line
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.server.ask import ApiError, in_fields


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


@dataclass(eq=False)
class Waiter:
    """A request without a seat."""

    owner: str
    tokens: Sequence[int]
    slot: int
    seat: asyncio.Future[Seat] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


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
        self._waiting: list[Waiter] = []
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
        begun: bool = False,
    ) -> AsyncIterator[Generation]:
        """A generation, ended with the block however that ends. Raises ApiError where it cannot be.
        `begun`: a further one of a request that was let in already, which no full queue refuses."""
        seat = await self._take(owner, tokens, slot, begun)
        # A thread goes on when this task is cancelled: whoever frees the seat waits for it first.
        starting = asyncio.ensure_future(
            run_in_threadpool(
                self._start, seat, owner, tokens, cache, max_tokens=max_tokens, sampling=sampling, stop=list(stop)
            )
        )
        try:
            try:
                generation = await asyncio.shield(starting)
            except (UserError, TypeError) as error:
                form = "response_format" if str(error).startswith("invalid JSON schema") else None
                raise ApiError(400, in_fields(error), param=form) from None
            except PipeInferError as error:
                raise ApiError(503, str(error)) from None
            yield generation
        finally:
            # What is under way is cancelled at once; the seat is free when every stage has dropped it.
            ending = asyncio.create_task(self._end(seat, starting, tokens))
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

    async def _take(self, owner: str, tokens: Sequence[int], slot: int, begun: bool) -> Seat:
        if not -1 <= slot < len(self.seats):
            raise ApiError(400, f"id_slot must be between 0 and {len(self.seats) - 1}, or -1 for any.", param="id_slot")
        self.check()
        waiter = Waiter(owner, tokens, slot)
        if (seat := self._occupied(waiter)) is not None:
            return seat
        if not begun and len(self._waiting) >= self._queue:
            raise ApiError(429, f"All slots are busy, and {len(self._waiting)} requests wait already: try again later.",
                           code="queue_full", retry_after=1 + len(self._waiting))  # fmt: skip
        self._waiting.append(waiter)
        try:
            return await waiter.seat
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.seat.cancelled():
                self._leave(waiter.seat.result())  # it was this one's turn, and nobody is there any more
            raise

    def _occupied(self, waiter: Waiter) -> Seat | None:
        """The seat that suits best of those that are free."""
        free = [seat for seat in self.seats if not seat.busy and waiter.slot in (-1, seat.number)]
        if not free:
            return None
        own = waiter.owner
        seat = max(free, key=lambda s: (s.owner == own and common_length(s.tokens, waiter.tokens), -s.used))
        self._count += 1
        seat.busy, seat.used, seat.served = True, self._count, seat.served + 1
        return seat

    def _leave(self, seat: Seat) -> None:
        """It goes to who waits longest of those whom it suits, before anybody new can take it."""
        seat.busy = False
        for waiter in list(self._waiting):
            if not waiter.seat.done() and (found := self._occupied(waiter)) is not None:
                self._waiting.remove(waiter)
                waiter.seat.set_result(found)

    def _start(
        self, seat: Seat, owner: str, tokens: Sequence[int], cache: bool, **asked: Any
    ) -> Generation:
        if seat.line is None or seat.owner != owner:
            if seat.line is not None:
                seat.line.close()  # with all that was said to another owner
            seat.line, seat.owner = self.pipeline.conversation(owner), owner
        elif not cache:
            seat.line.forget()
        seat.tokens = ()
        return seat.line.generate(list(tokens), **asked)

    async def _end(self, seat: Seat, starting: asyncio.Future[Generation], tokens: Sequence[int]) -> None:
        try:
            with contextlib.suppress(Exception):  # its reader was told
                generation = await starting
                await run_in_threadpool(generation.close)
                self._book(seat, generation, tokens)
        finally:
            self._leave(seat)

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
