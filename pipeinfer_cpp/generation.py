"""A generation as its reader sees it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

from pipeinfer_cpp.cluster.job import Job
from pipeinfer_cpp.results import Result, Token

Reading = Callable[[int, int], None]
"""(tokens read, tokens of the prompt)"""


class Generation:
    """One generation. Iterate over its tokens, with `for`, `async for` or `next`; `result` is there at the end.

    Any thread may read, wait, cancel and look, several at once too: each loop gets every token. Leaving a loop early,
    an exception in it, `close()`, or dropping the object ends the generation and keeps the conversation.
    """

    def __init__(self, job: Job, stop: Callable[[Job], None], reading: Reading | None = None) -> None:
        """`stop` asks for the turn's end and returns at once: it is called by finalisers, in any thread."""
        self.job = job
        """Shared with the pipeline; not for users."""
        self._reading = reading
        self._stop = partial(_stop, job, stop)
        self._position = 0
        weakref.finalize(self, self._stop).atexit = False

    @property
    def result(self) -> Result | None:
        """None until it has ended well."""
        return self.job.result

    @property
    def done(self) -> bool:
        """It has ended, well or not."""
        return self.job.over

    def __iter__(self) -> Iterator[Token]:
        n = 0
        try:
            while (token := self._next(n)) is not None:
                n += 1
                yield token
        finally:
            self._stop()

    def __next__(self) -> Token:
        token = self._next(self._position)
        if token is None:
            raise StopIteration
        self._position += 1
        return token

    async def __aiter__(self) -> AsyncIterator[Token]:
        job, n, news = self.job, 0, asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(news.set)

        forget = job.watch(tell)
        try:
            while True:
                news.clear()
                over = job.over  # before the tokens: none comes behind the end
                for token in job.tokens[n:]:
                    n += 1
                    yield token
                if over:
                    break
                await news.wait()
            if job.error is not None:
                raise job.error
        finally:
            forget()
            self._stop()

    def cancel(self, timeout: float | None = None) -> None:
        """End it now; returns when every stage has dropped it. Raises what the generation failed with, and TimeoutError
        after `timeout` seconds."""
        self._stop()
        self.wait(timeout)

    def close(self) -> None:
        """End it now, however it stands; returns when every stage has dropped it."""
        self._stop()
        self.job.wait()

    def wait(self, timeout: float | None = None) -> Result:
        """Let it run to its end. Raises what it failed with, and TimeoutError after `timeout` seconds."""
        job = self.job
        while self._reading is not None and not job.tokens and not job.wait(0, 0.1):
            self._tell()
        self._told()
        if not job.wait(timeout=timeout):
            raise TimeoutError(f"the generation goes on after {timeout} s")
        if job.error is not None:
            raise job.error
        assert job.result is not None
        return job.result

    def _next(self, n: int) -> Token | None:
        """Token number n, None at the end. Raises what the generation failed with."""
        job = self.job
        while not job.wait(n, 0.1 if self._reading is not None else None):
            self._tell()
        self._told()
        if len(job.tokens) > n:
            return job.tokens[n]
        if job.error is not None:
            raise job.error
        return None

    def _tell(self) -> None:
        n_prompt = len(self.job.prompt)
        if self._reading is not None:
            self._reading(min(self.job.read, n_prompt - 1), n_prompt)

    def _told(self) -> None:
        """The first token is here: all of the prompt is read."""
        if self._reading is not None:
            self._reading(len(self.job.prompt), len(self.job.prompt))
            self._reading = None


def _stop(job: Job, stop: Callable[[Job], None]) -> None:
    if not job.over:
        job.stopping = True
        stop(job)
