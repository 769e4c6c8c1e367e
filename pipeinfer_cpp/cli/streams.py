"""The three standard streams, as a command finds them and leaves them."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def ready() -> None:
    """Whatever the caller did to them, they can be used: a closed one is /dev/null from now on (so that no socket
    gets its number), and a character that an encoding lacks becomes a `?` instead of an error."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if null != number:
                os.dup2(null, number, inheritable=True)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def drop_stdout() -> None:
    """Nobody reads any more, or nothing can be written: what is still buffered must not fail again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def write_bytes(data: bytes) -> None:
    """To stdout, as they are whatever its encoding: what programs read is UTF-8."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:  # replaced by whoever calls this as a function
        sys.stdout.write(data.decode())
    else:
        buffer.write(data)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """One JSON document and a line break: what every `--json` prints."""
    import msgspec

    write_bytes(msgspec.json.encode(value, enc_hook=str) + b"\n")
