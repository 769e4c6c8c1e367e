"""What the Python API is given, made plain before any of it goes to another thread or process."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.sampling import Sampling


def token_ids(prompt: Any, n_vocab: int) -> tuple[int, ...]:
    """Token ids of a prompt given as such: any sequence of whole numbers, numpy's too."""
    if isinstance(prompt, Mapping) or (isinstance(prompt, Sequence) and any(isinstance(p, Mapping) for p in prompt)):
        raise TypeError("prompt: messages are for chat(); give text or token ids here")
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


def stop_strings(stop: Any) -> tuple[str, ...]:
    """One stop string, or several."""
    found = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(s, str) for s in found):
        raise TypeError(f"stop: text or a list of texts is needed, not {stop!r}")
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
            plain[name] = _number(f"sampling, {name}", given)
        elif name == "logit_bias":
            what = "sampling, logit_bias"
            plain[name] = {whole(what, token): _number(what, bias) for token, bias in given.items()}
        else:
            plain[name] = given
    sampling = Sampling(**plain)
    sampling.check()
    return sampling


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: a number is needed, not {value!r}") from None
