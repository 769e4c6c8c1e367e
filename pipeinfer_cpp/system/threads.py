"""Where the system allows no further thread: known before a library ends the process over it."""

from __future__ import annotations

import threading

from pipeinfer_cpp.errors import PipeInferError

NO_MORE = "No further process or thread can be started here. Allow more with `ulimit -u`, or end some programs."


def check_room(n: int) -> None:
    """Raise PipeInferError unless `n` more threads can be started (a moment ago they could)."""
    over = threading.Event()
    started = []
    try:
        for _ in range(n):
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise PipeInferError(NO_MORE) from None
    finally:
        over.set()
        for thread in started:
            thread.join()


def refused(error: BaseException) -> bool:
    """Whether it is what Python raises where a thread cannot be started."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)
