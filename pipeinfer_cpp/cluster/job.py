"""One generation, shared by the driver's thread and whoever reads it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from pipeinfer_cpp.results import Result, Token
from pipeinfer_cpp.sampling import Sampling


class Job:
    """What was asked for, the tokens so far, and how it ended: once, with a result or an error.

    The driver's thread calls `put` and `end`; everything else may be called by any thread, as often as it likes.
    """

    def __init__(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        sampling: Sampling,
        stops: Sequence[str] = (),
        goes_on: bool = False,
        stop_tokens: frozenset[int] = frozenset(),
        owner: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        """`notes`: what the result shall warn of."""
        self.prompt, self.max_tokens, self.sampling, self.stops = prompt, max_tokens, sampling, stops
        self.goes_on, self.stop_tokens, self.owner = goes_on, stop_tokens, owner
        self.notes = notes
        self.slot = 0
        self.tokens: list[Token] = []
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.read = 0
        """Tokens of the prompt that all stages know."""
        self.cached = 0
        """Tokens of the prompt that the stages held already, or copied: no run computed them."""
        self.stopping = False
        """It was told to stop, and will end by itself."""
        self._news = threading.Condition()
        self._watchers: list[Callable[[], None]] = []

    @property
    def over(self) -> bool:
        return self.result is not None or self.error is not None

    def put(self, token: Token) -> None:
        with self._news:
            self.tokens.append(token)
            self._tell()

    def end(self, how: Result | BaseException) -> None:
        """Only the first end counts."""
        with self._news:
            if self.over:
                return
            if isinstance(how, Result):
                self.result = how
            else:
                self.error = how
            self._tell()

    def wait(self, n: int | None = None, timeout: float | None = None) -> bool:
        """Until there are more than `n` tokens (None: all), or it is over. False when `timeout` seconds went by."""
        with self._news:
            return self._news.wait_for(lambda: self.over or (n is not None and len(self.tokens) > n), timeout)

    def watch(self, what: Callable[[], None]) -> Callable[[], None]:
        """Call `what`, in the driver's thread, whenever there is something new. Returns what ends that."""
        with self._news:
            self._watchers.append(what)

        def forget() -> None:
            with self._news:
                if what in self._watchers:
                    self._watchers.remove(what)

        return forget

    def _tell(self) -> None:
        self._news.notify_all()
        for what in list(self._watchers):
            try:
                what()
            except RuntimeError:  # the event loop that asked is closed
                self._watchers.remove(what)
