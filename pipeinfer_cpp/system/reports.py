"""How far something long has come: whoever does it calls one of these now and then, perhaps from another thread."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, str, int, int], None]
"""(worker, what it does, done, in all; 0 where that is not known)"""
StepReport = Callable[[str, int, int], None]
"""(what is done, done, in all)"""
CountReport = Callable[[int, int], None]
"""(done, in all): bytes, or whatever is counted."""
