"""What was counted, printed as Markdown tables."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeinfer_cpp.llama.library import library_build
from pipeinfer_cpp.system.versions import package_version


def machine() -> str:
    """The CPU by its name, where that can be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        return f"{name}, {os.cpu_count()} cores"
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> str:
    python = f"Python {platform.python_version()}, {platform.system()}"
    return f"pipeinfer_cpp {package_version()}, llama-cpp-python {library_build()}, {python}"


@dataclass
class Work:
    """How much speculation there was, so that equal texts say something."""

    tokens: int = 0
    runs: int = 0
    rows: int = 0
    cancelled: int = 0
    aborted: int = 0
    accepted: int = 0


@dataclass
class Report:
    """Equal and all texts for each row and column; what was different."""

    cells: dict[tuple[str, ...], dict[str, list[int]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: [0, 0]))
    )
    work: dict[str, Work] = field(default_factory=lambda: defaultdict(Work))
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, row: tuple[str, ...], column: str, same: bool) -> None:
        cell = self.cells[row][column]
        cell[0] += same
        cell[1] += 1

    def worked(self, mode: str, result: Any) -> None:
        work, runs = self.work[mode], result.runs
        work.tokens += result.n_generated
        work.runs += runs.sent
        work.rows += runs.rows
        work.cancelled += runs.cancelled
        work.aborted += runs.aborted
        work.accepted += result.draft.accepted

    def differs(
        self, row: tuple[str, ...], mode: str, case: str, n_prompt: int, expected: list[int], result: Any
    ) -> None:
        ids = result.token_ids
        at = parting(expected, ids)
        here = f"{expected[at : at + 1]} became {ids[at : at + 1]}"
        said = f"{here} at token {at}, position {n_prompt + at}" if at >= 0 else f"the text differs: {result.text!r}"
        self.differences.append(f"{', '.join(row)}, {mode}: {case}: {said}; {result.runs}; exact {result.exact}")

    def tables(self) -> str:
        """All that was counted."""
        out = []
        for columns, rows in self._grouped().items():
            heads = ["part", "draft", "stages", "drawn", *columns]
            out += ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
            for row, cells in rows.items():
                shown = [f"{cells[c][0]} / {cells[c][1]}" if c in cells else "" for c in columns]
                out.append("| " + " | ".join([*row, *shown]) + " |")
            out.append("")
        if self.work:
            heads = [
                "mode",
                "tokens",
                "runs",
                "rows (prompts too)",
                "runs cancelled",
                "aborted in a decode",
                "drafts accepted",
            ]
            out += ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
            for mode, w in self.work.items():
                figures = [w.tokens, w.runs, w.rows, w.cancelled, w.aborted, w.accepted]
                out.append(f"| {mode} | " + " | ".join(f"{n:,}" for n in figures) + " |")
            out.append("")
        return "\n".join([*out, *self.notes])

    def _grouped(self) -> dict[tuple[str, ...], dict[tuple[str, ...], dict[str, list[int]]]]:
        """Rows that have the same columns."""
        groups: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, list[int]]]] = {}
        order = list(dict.fromkeys(row[0] for row in self.cells))
        for row, cells in sorted(self.cells.items(), key=lambda item: order.index(item[0][0])):
            groups.setdefault(tuple(cells), {})[row] = cells
        return groups


def parting(a: list[int], b: list[int]) -> int:
    """The first place where two texts differ, -1 for none."""
    if a == b:
        return -1
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
