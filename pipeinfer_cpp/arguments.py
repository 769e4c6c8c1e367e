"""What the Python API is given, made plain before any of it goes to another thread or process."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.sampling import Sampling

Kind = Callable[[str, Any], Any] | type
"""(the argument's name, a value) -> the value made plain; or the type that it must have"""


def token_ids(prompt: Any, n_vocab: int) -> tuple[int, ...]:
    """Token ids of a prompt given as such: any sequence of whole numbers, numpy's too."""
    if isinstance(prompt, Mapping) or (isinstance(prompt, Sequence) and any(isinstance(p, Mapping) for p in prompt)):
        raise TypeError("prompt: messages are for chat(); give text or token ids here")
    if isinstance(prompt, bytes | bytearray):
        raise TypeError("prompt: text or token ids are needed, not bytes")
    try:
        ids = tuple(operator.index(token) for token in prompt)
    except TypeError:
        raise TypeError(f"prompt: text or token ids are needed, not {type(prompt).__name__}") from None
    if not all(0 <= token < n_vocab for token in ids):
        raise UserError(f"The prompt has token ids outside of the vocabulary (0 to {n_vocab - 1}).")
    return ids


def whole(name: str, value: Any) -> int:
    """A whole number, of numpy's kinds too."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: a whole number is needed, not {value!r}") from None


def number(name: str, value: Any) -> float:
    """A number, of numpy's kinds too; not one written as text."""
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"{name}: a number is needed, not {value!r}")


def truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):  # the latter are numpy's
        raise TypeError(f"{name}: True or False is needed, not {value!r}")
    return bool(value)


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: text is needed, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code, at = ord(value[error.start]), error.start
        if 0xDC80 <= code <= 0xDCFF:  # Python's way to keep a byte of a command line, or of a file's name
            raise UserError(f"{name}: the text is not UTF-8 (byte 0x{code - 0xDC00:02X} at position {at}).") from None
        half = f"{value[error.start]!a} at position {at}"
        raise UserError(f"{name}: the text holds half a character ({half}): leave it out.") from None
    return value


def path(name: str, value: Any) -> str | Path:
    if not isinstance(value, str | Path):
        raise TypeError(f"{name}: a path is needed, not {value!r}")
    if not str(value):
        raise UserError(f"{name} is empty: give the path of a file.")
    return value


def maybe(kind: Kind) -> Kind:
    """The same, or None."""

    def given(name: str, value: Any) -> Any:
        return None if value is None else _as(kind, name, value)

    return given


def several(kind: Kind, *, one: bool = False) -> Kind:
    """A sequence of them, as a tuple; with `one` a single one too, as it is. A text is one text."""

    def given(name: str, value: Any) -> Any:
        if one and (isinstance(value, str) or (isinstance(kind, type) and isinstance(value, kind))):
            return value
        if isinstance(value, str):
            value = (value,)
        if isinstance(value, Mapping | bytes) or not isinstance(value, Iterable):
            raise TypeError(f"{name}: a list is needed, not {value!r}")
        return tuple(_as(kind, name, part) for part in value)

    return given


def _as(kind: Kind, name: str, value: Any) -> Any:
    if not isinstance(kind, type):
        return kind(name, value)
    if not isinstance(value, kind):
        raise TypeError(f"{name}: {kind.__name__} is needed, not {value!r}")
    return value


def stage_list(name: str, value: Any) -> int | tuple[str, ...]:
    """A number of stages, or the addresses of running ones: a list, or one text with commas."""
    if not isinstance(value, str | Iterable):
        return whole(name, value)
    parts = value.split(",") if isinstance(value, str) else several(text)(name, value)
    found = tuple(part.strip() for part in parts)
    wrong = next((part for part in found if not re.fullmatch(r"\w+://.+", part)), None)
    if wrong is not None or not found:
        raise UserError(f"{name}: {wrong or value!r} is not an address: write tcp://HOST:PORT, or a number of stages.")
    if len(set(found)) < len(found):
        raise UserError(f"{name}: {value!r} names a stage twice; each one holds one part of the layers.")
    return found


def stop_strings(stop: Any) -> tuple[str, ...]:
    """One stop string, or several."""
    if not isinstance(stop, Iterable):
        raise TypeError(f"stop: text or a list of texts is needed, not {stop!r}")
    found: tuple[str, ...] = several(text)("stop", stop)
    return found


def sampling_of(value: Any) -> Sampling:
    """Sampling settings, or a mapping of them, with plain numbers in range."""
    if value is None:
        return Sampling()
    if isinstance(value, Sampling):
        value = msgspec.structs.asdict(value)
    if not isinstance(value, Mapping):
        raise TypeError(f"sampling: a Sampling or a mapping of its settings is needed, not {type(value).__name__}")
    plain: dict[str, Any] = {}
    kinds = {field.name: field.type for field in msgspec.structs.fields(Sampling)}
    for name, given in value.items():
        if name not in kinds:
            raise TypeError(f"sampling: there is no setting {name!r} (there are {', '.join(kinds)})")
        if kinds[name] is int:
            plain[name] = whole(f"sampling, {name}", given)
        elif kinds[name] is float:
            plain[name] = number(f"sampling, {name}", given)
        elif name == "logit_bias":
            what = "sampling, logit_bias"
            if not isinstance(given, Mapping):
                raise TypeError(f"{what}: token ids with amounts are needed, not {given!r}")
            plain[name] = {whole(what, token): number(what, bias) for token, bias in given.items()}
        elif name == "json_schema":
            plain[name] = given
        else:
            plain[name] = maybe(text)(f"sampling, {name}", given)
    sampling = Sampling(**plain)
    sampling.check()
    return sampling
