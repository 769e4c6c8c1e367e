"""Ctrl-C and the signals that end a process, made to end things in order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn

Handler = Callable[[int, FrameType | None], object] | signal.Handlers
ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def handling(numbers: Iterable[int], handler: Handler) -> Iterator[None]:
    """Within the block `handler` gets these signals; behind it who got them before."""
    old = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def heeded(*numbers: int) -> list[int]:
    """Those that are not ignored (as `nohup` ignores SIGHUP)."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block with SystemExit(128 + n), so that everything is closed on the way.

    A signal that is ignored (`nohup`) stays so.
    """

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    with handling(heeded(*ENDING), end):
        yield


def ignore_all() -> None:
    """From now on: what follows is the interpreter's own end, and how the command ended is known."""
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No signal that can be ignored interrupts the block, which must be short (closing what is open)."""
    with handling((signal.SIGINT, *ENDING), signal.SIG_IGN):
        yield


class OneInterrupt:
    """Within the block the first Ctrl-C raises KeyboardInterrupt, which asks for an orderly end; the second raises it
    again, wherever that stands, and each further one too."""

    def __init__(self) -> None:
        self.presses = 0
        self._old: object = None

    def __enter__(self) -> OneInterrupt:
        self._old = signal.getsignal(signal.SIGINT)
        if self._old is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._old)  # type: ignore[arg-type]

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.presses += 1
        raise KeyboardInterrupt
