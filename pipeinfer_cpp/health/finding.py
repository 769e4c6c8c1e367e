"""One thing that was looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

OK, WARNING, FAILED = "ok", "warning", "failed"


class Finding(msgspec.Struct, frozen=True):
    """`mark`: ok, warning or failed. `advice`: what to do, where it is not ok."""

    name: str
    mark: str
    text: str
    advice: str = ""


Check = Callable[[], Iterator[Finding]]


def run(name: str, check: Check) -> Iterator[Finding]:
    """The check's findings; one that says what happened where it breaks down."""
    try:
        yield from check()
    except Exception as error:  # whatever is broken, the other checks go on
        said = " ".join(str(error).split()) or type(error).__name__
        yield Finding(name, FAILED, said, "Reinstall with `pip install --force-reinstall .` if this is not clear.")
