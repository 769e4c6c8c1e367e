"""Ctrl-C and the signals that end a process, made to end things in order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block with SystemExit(128 + n), so that everything is closed on the way.

    A signal that is ignored (`nohup`) stays so. Behind the block all of them are ignored: what follows
    is the interpreter's own end.
    """

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    wanted = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, end) for number in wanted}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No signal that can be ignored interrupts the block, which must be short (closing what is open)."""
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *ENDING)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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
