"""The steps of a slice plan: one for each key and each tensor."""

from __future__ import annotations

from dataclasses import dataclass

from pipeinfer_cpp.gguf.header import Key, Tensor

COPIED, REWRITTEN, LEFT_OUT, ADDED = "copied", "rewritten", "left out", "added"


@dataclass(frozen=True)
class KeyStep:
    """What happens to one key. `key` is the source's (None when added); `data` its new type and
    value (None when copied or left out)."""

    name: str
    action: str
    reason: str
    key: Key | None = None
    data: bytes | None = None

    def encoded(self) -> bytes:
        """Type and value for the slice."""
        if self.data is not None:
            return self.data
        assert self.key is not None
        return self.key.raw()


@dataclass(frozen=True)
class Stripe:
    """A part of a tensor's data: of each piece of `row_bytes` the bytes `[start, start + size)`."""

    row_bytes: int
    start: int
    size: int


@dataclass(frozen=True)
class TensorStep:
    """What happens to one tensor. `target` is its name in the slice (None when left out).

    Its bytes come from `origin` (a `stripe` of them where only a part is taken), or where it is rewritten in
    value from `data`; an added placeholder has neither: it is a hole in the file, read as zeros.
    """

    name: str
    action: str
    reason: str
    target: str | None = None
    shape: tuple[int, ...] = ()
    kind: int = 0
    n_bytes: int = 0
    origin: Tensor | None = None
    data: bytes | None = None
    stripe: Stripe | None = None

    @property
    def is_hole(self) -> bool:
        return self.target is not None and self.origin is None and self.data is None
