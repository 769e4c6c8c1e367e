"""Text from the command line (and from `/set`) as values. Everything raises UserError with one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.messages import Stretch


def stages(text: str) -> int | list[str]:
    """`3`, or the addresses of stages that run already."""
    if re.fullmatch(r"\s*-?\d+\s*", text):
        return int(text)
    addresses = [part.strip() for part in text.split(",") if part.strip()]
    if not addresses or not all("://" in address for address in addresses):
        raise UserError(f"--stages {text!r} is neither a number nor a list of addresses like tcp://10.0.0.5:7711.")
    if len(set(addresses)) < len(addresses):
        raise UserError(f"--stages {text!r} names a stage twice: each stage can hold only one part of the layers.")
    return addresses


def stop_text(text: str) -> str:
    """What a typed stop string means: `\\n` is a line break."""
    return text.replace("\\n", "\n")


def logit_bias(texts: Sequence[str]) -> dict[int, float]:
    """`15043+1`, `29871-inf`: token id, sign, amount."""
    bias = {}
    for text in texts:
        match = re.fullmatch(r"\s*(\d+)\s*([+-]\s*(?:inf|\d+(?:\.\d*)?|\.\d+))\s*", text)
        if match is None:
            raise UserError(f"--logit-bias {text!r} must be ID+AMOUNT or ID-AMOUNT, such as 15043+1.")
        bias[int(match[1])] = float(match[2].replace(" ", ""))
    return bias


def stretch(text: str) -> Stretch | list[Stretch]:
    """`20`, `20:6` (milliseconds for a run of one row, and for each further one), or one for each stage."""
    parts = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)(?::(\d+(?:\.\d+)?))?\s*", part)
        if match is None:
            raise UserError(f"--stretch {text!r} is not milliseconds like 20 or 20:6, or one of them for each stage.")
        parts.append(Stretch(float(match[1]) / 1e3, float(match[2] or 0.0) / 1e3))
    return parts[0] if len(parts) == 1 else parts


def names(texts: Sequence[str]) -> tuple[str, ...]:
    """Of a repeatable option whose values may be comma separated."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def text_of(path: Path, option: str) -> str:
    """The file's text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be read: {error.strerror}.") from None
    return text_in(data, f"{option} {path}")


def text_in(data: bytes, what: str) -> str:
    """Text of a file or of stdin: UTF-8, without the mark at its beginning, its lines ended by a line feed."""
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise UserError(f"{what} is not UTF-8 text.") from None


def text_or_file(text: str | None, path: Path | None, option: str) -> str | None:
    """Of an option that has a twin `OPTION-file`."""
    if text is not None and path is not None:
        raise UserError(f"Give {option} or {option}-file, not both.")
    return text_of(path, f"{option}-file") if path is not None else text
