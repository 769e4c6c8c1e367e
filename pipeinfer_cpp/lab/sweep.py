"""A grid of pipelines to measure, and the file that remembers which cells are done."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.lab.bench import Comparison
from pipeinfer_cpp.lab.receipt import digest
from pipeinfer_cpp.net.messages import WIRES
from pipeinfer_cpp.net.transit import LinkSpeed
from pipeinfer_cpp.system.formats import read_records, write_records

KEYS = ("stages", "draft", "wire", "link", "branches", "threads", "cluster")


class Cell(NamedTuple):
    """One point of the grid: (key, value) as they were typed."""

    values: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values) or "as given"


def parse_sweep(text: str) -> list[Cell]:
    """`stages=1,2 wire=f16,q8`: every combination, the last key changing fastest. Raises UserError."""
    axes: dict[str, list[str]] = {}
    for part in text.split():
        key, sign, values = part.partition("=")
        found = [value for value in values.split(",") if value]
        if not sign or not found:
            raise UserError(f"--sweep {part!r} is not KEY=VALUE,...")
        if key not in KEYS:
            raise UserError(f"--sweep {key!r} is not one of {', '.join(KEYS)}.")
        if key in axes:
            raise UserError(f"--sweep gives {key} twice.")
        for value in found:
            _check(key, value)
        axes[key] = list(dict.fromkeys(found))
    return [Cell(tuple(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def parse_link(text: str) -> LinkSpeed:
    """`1gbit`, `100mbit`, with a latency of 0.1 ms; `10mbit/5ms` says another. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([gm])bit(?:/(\d+(?:\.\d+)?)ms)?", text)
    if match is None or not float(match[1]):
        raise UserError(f"link {text!r} is not a speed: write 1gbit, 100mbit or 10mbit/5ms.")
    return LinkSpeed(float(match[1]) * (1000 if match[2] == "g" else 1), float(match[3] or 0.1))


def _check(key: str, value: str) -> None:
    if key in ("stages", "branches", "threads") and not (value.isdigit() and int(value) > 0):
        raise UserError(f"--sweep {key}={value}: that is not a number of 1 or more.")
    if key == "wire" and value not in WIRES:
        raise UserError(f"--sweep wire={value} is not one of {', '.join(WIRES)}.")
    if key == "link":
        parse_link(value)


class Done(msgspec.Struct, frozen=True):
    """A finished cell."""

    cell: str
    key: str
    comparison: Comparison


class Notebook:
    """Finished cells in a JSON file, written anew after each: an interruption loses none."""

    def __init__(self, path: Path | None, fresh: bool = False) -> None:
        self.path = path
        self.done: dict[str, Done] = {}
        if path is not None and path.exists() and not fresh:
            self.done = {d.key: d for d in read_cells(path)}

    @staticmethod
    def key(cell: Cell, configuration: object) -> str:
        """What makes two cells the same."""
        return digest([str(cell), configuration])

    def add(self, cell: Cell, key: str, comparison: Comparison) -> None:
        self.done[key] = Done(str(cell), key, comparison)
        if self.path is None:
            return
        write_records(self.path, list(self.done.values()))

    def missing(self, cells: list[Cell], configuration: object) -> Iterator[tuple[Cell, str]]:
        for cell in cells:
            key = self.key(cell, configuration)
            if key not in self.done:
                yield cell, key


def read_cells(path: Path) -> list[Done]:
    """Raises UserError where the file is no result of a bench."""
    return read_records(path, Done, "is not a result of `pipeinfer bench`")
