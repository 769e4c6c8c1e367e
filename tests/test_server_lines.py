"""Who gets which seat, over a real pipeline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pipeline_helpers import GREEDY, local

from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.server.answers import Answers, Ask
from pipeinfer_cpp.server.ask import ApiError
from pipeinfer_cpp.server.lines import Lines

TOKENS = [5, 6, 7]


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with local(stages=1, draft=None, ctx=256, slots=2, threads=1) as p:
        yield p


class Client:
    """A request that keeps its seat until it is let go."""

    def __init__(self, lines: Lines, **more: Any) -> None:
        self.go, self.seated, self.refused = asyncio.Event(), asyncio.Event(), 0
        self.task = asyncio.create_task(self._run(lines, more))

    async def _run(self, lines: Lines, more: dict[str, Any]) -> None:
        owner, tokens = more.pop("owner", "me"), more.pop("tokens", TOKENS)
        try:
            async with lines.generation(owner, tokens, max_tokens=2, sampling=GREEDY, stop=(), **more):
                self.seated.set()
                await self.go.wait()
        except ApiError as error:
            self.refused = error.status

    async def leave(self) -> None:
        self.go.set()
        await self.task


async def until(what: Callable[[], bool]) -> None:
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("not within 5 s")


def busy(lines: Lines) -> list[bool]:
    return [slot["is_processing"] for slot in lines.state()]


def test_a_seat_is_kept_while_a_request_that_went_away_still_begins(pipeline: Pipeline) -> None:
    async def main() -> None:
        lines = Lines(pipeline, 4)
        with pipeline._board.lock:  # the thread that begins it stands before this
            client = Client(lines, slot=0)
            await until(lambda: busy(lines)[0])
            await asyncio.sleep(0.05)
            client.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await client.task
            await asyncio.sleep(0.05)
            assert busy(lines) == [True, False]
        await until(lambda: not any(busy(lines)))
        other = Client(lines, slot=0)
        await other.seated.wait()
        await other.leave()
        await lines.settle()

    asyncio.run(main())


def test_who_waits_longest_is_next_even_where_others_come_all_the_time(pipeline: Pipeline) -> None:
    async def main() -> None:
        lines = Lines(pipeline, 1)
        first, second = Client(lines), Client(lines)
        await first.seated.wait()
        await second.seated.wait()
        waiting = Client(lines)
        await until(lambda: lines.waiting == 1)
        others: list[Client] = []

        async def crowd() -> None:
            while not waiting.seated.is_set() and not waiting.refused:
                others.append(Client(lines))
                await asyncio.sleep(0)

        crowds = [asyncio.create_task(crowd()) for _ in range(3)]
        await first.leave()
        await asyncio.gather(*crowds)
        assert not waiting.refused and waiting.seated.is_set()
        assert not any(other.seated.is_set() for other in others)
        for client in (second, waiting, *others):
            client.task.cancel()
        await asyncio.gather(*(c.task for c in (second, waiting, *others)), return_exceptions=True)
        await lines.settle()
        assert busy(lines) == [False, False] and not lines.waiting

    asyncio.run(main())


def test_who_waits_for_one_slot_does_not_hold_up_the_others(pipeline: Pipeline) -> None:
    async def main() -> None:
        lines = Lines(pipeline, 4)
        first, second = Client(lines, slot=0), Client(lines, slot=1)
        await first.seated.wait()
        await second.seated.wait()
        picky = Client(lines, slot=0)
        await until(lambda: lines.waiting == 1)
        any_slot = Client(lines)
        await until(lambda: lines.waiting == 2)
        await second.leave()
        await any_slot.seated.wait()
        assert not picky.seated.is_set()
        await first.leave()
        await picky.seated.wait()
        for client in (picky, any_slot):
            await client.leave()
        await lines.settle()

    asyncio.run(main())


def test_a_request_that_was_let_in_gets_all_its_choices(pipeline: Pipeline) -> None:
    """No full queue ends it between two of them."""

    async def main() -> None:
        lines = Lines(pipeline, 0)
        other = Client(lines, slot=0)
        await other.seated.wait()
        answers = Answers(lines, Ask("me", TOKENS, GREEDY, max_tokens=2, choices=3))
        async for _ in answers.tokens():
            assert lines.waiting == 0
        assert [result.n_generated for result in answers.results] == [2, 2, 2]
        await other.leave()
        await lines.settle()

    asyncio.run(main())


def test_what_is_counted_as_cached_was_not_computed(pipeline: Pipeline) -> None:
    """Rows as the stages computed them: of another owner's text, as many as if nobody had asked it."""

    async def main() -> None:
        lines = Lines(pipeline, 4)
        prompt = [*range(5, 165)]
        said = []
        for owner, slot in (("me", 0), ("me", 0), ("you", 1), ("you", 0), ("me", 1), ("him", 0)):
            answers = Answers(lines, Ask(owner, prompt, GREEDY, max_tokens=1, slot=slot))
            async for _ in answers.tokens():
                pass
            await lines.settle()
            said.append((answers.n_cached, answers.results[0].runs.rows))
        kept = len(prompt) // 64 * 64
        assert said[0] == said[2] == said[5] == (0, len(prompt))
        assert said[1] == said[3] == (kept, len(prompt) - kept)
        assert said[4] == (0, len(prompt))  # none of her slots is left

    asyncio.run(main())


def test_a_conversation_goes_on_in_its_own_slot(pipeline: Pipeline) -> None:
    """The slot whose text begins alike, of the same owner only; else the one used longest ago."""

    async def main() -> None:
        lines = Lines(pipeline, 4)
        for owner, tokens in (("me", [5, 6, 7]), ("me", [8, 9, 10]), ("me", [5, 6, 7, 11]), ("you", [5, 6, 7, 11])):
            client = Client(lines, owner=owner, tokens=tokens)
            await client.seated.wait()
            await client.leave()
            await lines.settle()
        assert [slot["n_served"] for slot in lines.state()] == [2, 2]
        assert [seat.owner for seat in lines.seats] == ["me", "you"]

    asyncio.run(main())
