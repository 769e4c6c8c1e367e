"""Files that users write and see: TOML, and lists of typed records in JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.system.files import appearing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """Its content. Raises UserError for a file that cannot be read or is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from None


T = TypeVar("T")


def read_records(path: Path, kind: type[T], wrong: str) -> list[T]:
    """Raises UserError for a file that cannot be read, or holds anything else: it says that the file `wrong`, such as
    "is no recording"."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[kind])  # type: ignore[valid-type]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{path} {wrong}: {error}.") from None


def write_records(path: Path, records: Sequence[object], *, lines: bool = True) -> None:
    """The file appears whole or stays as it was; one field a `lines`. Raises UserError where it cannot be written."""
    text = msgspec.json.encode(list(records))
    try:
        with appearing(path) as out:
            out.write((msgspec.json.format(text) if lines else text) + b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
