"""Who waits for the interpreter does not wait long while a generation is under way.

The driver's thread sleeps in a socket and wakes for every run. Beside a thread that computes in Python it gets the
interpreter back only after `sys.getswitchinterval()`, 5 ms by default: about two of these a token.
"""

from __future__ import annotations

import sys
import threading

QUICK = 0.0001
"""Seconds. On 16 cores a busy thread beside two stages then cost a token 5% instead of 80%: scripts/busy_thread.py."""

_lock = threading.Lock()
_users = 0
_before = 0.0


def enter() -> None:
    """A driver has work. Counted over all pipelines of the process."""
    global _users, _before
    with _lock:
        _users += 1
        if _users == 1:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(QUICK, _before))


def leave() -> None:
    """It has none any more: the interval is what it was, unless somebody else has changed it meanwhile."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0 and abs(sys.getswitchinterval() - min(QUICK, _before)) < 1e-7:
            sys.setswitchinterval(_before)
