"""The header of one GGUF file: its keys and its tensor table, read without the tensor data."""

from __future__ import annotations

import mmap
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.encoding import ARRAY, SCALARS, STRING, U32, U64, pad, tensor_bytes

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class Key:
    """One metadata entry: where its type and value lie in `path`, `[start, end)`.

    Scalars and strings are in `value`; arrays stay in the file until `read` is called. For arrays
    `item_kind` and `count` tell the type and number of items.
    """

    name: str
    kind: int
    path: Path
    start: int
    end: int
    value: Any = None
    item_kind: int | None = None
    count: int = 0

    @property
    def is_array(self) -> bool:
        return self.kind == ARRAY

    def raw(self) -> bytes:
        """Type and value as they stand in the file, for a copy that changes nothing."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.end - self.start)

    def read(self) -> Any:
        """The value: a number, bool or str, or a list of them."""
        if not self.is_array:
            return self.value
        raw, at = self.raw(), 4 + 4 + 8
        if self.item_kind == STRING:
            items = []
            for _ in range(self.count):
                (size,) = U64.unpack_from(raw, at)
                items.append(raw[at + 8 : at + 8 + size].decode("utf-8", "replace"))
                at += 8 + size
            return items
        assert self.item_kind in SCALARS
        return list(struct.unpack_from(f"<{self.count}{SCALARS[self.item_kind]}", raw, at))


@dataclass(frozen=True)
class Tensor:
    """One tensor: `shape` as in ggml (the row length first), `kind` its ggml type, and where its
    `n_bytes` lie in `path`."""

    name: str
    shape: tuple[int, ...]
    kind: int
    n_bytes: int
    path: Path
    offset: int


@dataclass(frozen=True)
class Header:
    """What one file says of itself. `size_bytes` is the file's size on disk."""

    path: Path
    keys: dict[str, Key]
    tensors: dict[str, Tensor]
    size_bytes: int


def read_header(path: Path) -> Header:
    """Read one file. Raises UserError when it is missing, no GGUF, damaged or truncated."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for whoever writes to it
            raise UserError(f"{path} is a pipe, a socket or a device: give the .gguf file of a model.")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            magic = file.read(8)
            if magic[:4] != MAGIC:
                raise UserError(f"{path} is not a GGUF file: give the .gguf file of a model.")
            _check_version(path, magic)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data, size).header()
    except FileNotFoundError:
        raise UserError(f"There is no file {path}: check the path of the model.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give the .gguf file in it.") from None
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror or error}.") from None


def _check_version(path: Path, start: bytes) -> None:
    if len(start) < 8:
        raise _truncated(path, len(start))
    (version,) = U32.unpack_from(start, 4)
    if version & 0xFFFF == 0:
        raise UserError(f"{path} is a big-endian GGUF file, which llama.cpp does not load on this machine.")
    if not 2 <= version <= VERSION:
        raise UserError(f"{path} has GGUF version {version}; versions 2 and 3 are read: convert the model anew.")


def _truncated(path: Path, size: int, need: int | None = None) -> UserError:
    rest = f"it holds {size:,} of {need:,} bytes" if need else f"its header does not end within its {size:,} bytes"
    return UserError(f"{path} is truncated or damaged: {rest}; fetch it again.")


class _Reader:
    """A cursor over a mapped file that never leaves it."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self._path, self._data, self._size, self._at = path, data, size, 4

    def header(self) -> Header:
        self._number("I")
        n_tensors, n_keys = self._number("Q"), self._number("Q")
        keys: dict[str, Key] = {}
        for _ in range(n_keys):
            key = self._key()
            keys[key.name] = key
        table = [self._tensor_info() for _ in range(n_tensors)]
        alignment = keys["general.alignment"].value if "general.alignment" in keys else DEFAULT_ALIGNMENT
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged("its alignment is not a positive number")
        start = pad(self._at, alignment)
        tensors: dict[str, Tensor] = {}
        for name, shape, kind, offset in table:
            tensors[name] = Tensor(name, shape, kind, self._bytes_of(name, shape, kind), self._path, start + offset)
        if len(tensors) != n_tensors:
            raise self._damaged("two of its tensors have the same name")
        need = max((t.offset + t.n_bytes for t in tensors.values()), default=0)
        if need > self._size:
            raise _truncated(self._path, self._size, need)
        return Header(self._path, keys, tensors, self._size)

    def _key(self) -> Key:
        name = self._string()
        start = self._at
        kind = self._number("I")
        if kind != ARRAY:
            value = self._value(kind)
            return Key(name, kind, self._path, start, self._at, value)
        item_kind, count = self._number("I"), self._number("Q")
        self._skip_items(item_kind, count)
        return Key(name, kind, self._path, start, self._at, None, item_kind, count)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        n_dims = self._number("I")
        if not 0 < n_dims <= _MAX_DIMENSIONS:
            raise self._damaged(f"the tensor {name!r} has {n_dims} dimensions")
        shape = tuple(self._number("Q") for _ in range(n_dims))
        return name, shape, self._number("I"), self._number("Q")

    def _bytes_of(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        try:
            return tensor_bytes(shape, kind)
        except KeyError:
            text = f"{self._path}: the tensor {name} has type {kind}, which this version does not know"
            raise UserError(f"{text}: use a model in another quantisation.") from None
        except ValueError as error:
            raise self._damaged(f"the tensor {name} has {error}") from None

    def _value(self, kind: int) -> Any:
        return self._string() if kind == STRING else self._number(self._code(kind))

    def _skip_items(self, kind: int, count: int) -> None:
        if kind == STRING:
            at, data, limit, unpack = self._at, self._data, self._size - 8, U64.unpack_from
            for _ in range(count):
                if at > limit:
                    raise _truncated(self._path, self._size)
                at += 8 + unpack(data, at)[0]
            self._at = at
            self._take(0)
        else:
            self._take(count * struct.calcsize(self._code(kind)))

    def _code(self, kind: int) -> str:
        if kind not in SCALARS:
            raise self._damaged(f"it holds a value of the unknown type {kind}")
        return SCALARS[kind]

    def _number(self, code: str) -> Any:
        at = self._take(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self._data, at)[0]

    def _string(self) -> str:
        size = self._number("Q")
        at = self._take(size)
        return self._data[at : at + size].decode("utf-8", "replace")

    def _take(self, n: int) -> int:
        at = self._at
        if at + n > self._size:
            raise _truncated(self._path, self._size)
        self._at = at + n
        return at

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self._path} is damaged: {what}; fetch it again.")
