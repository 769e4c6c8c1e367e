"""Drafts for a target among the models on this machine. Only headers are read, and each pair's verdict is kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source, check_pair, slice_plan
from pipeinfer_cpp.models.hub import fetched_models
from pipeinfer_cpp.models.registry import Registry
from pipeinfer_cpp.system.files import appearing, cache_folder

SMALLER, BEST = 4, 12
"""A draft has at most so small a part of the target's bytes; one of about the second part is preferred."""


@dataclass(frozen=True)
class Draft:
    path: Path
    size: int


def find_draft(target: Source, registry: Registry) -> Draft | None:
    """The best draft for the target among the files of the pairs, what was fetched from the hub, and the models
    beside the target; None when there is none."""
    verdicts = _Verdicts()
    most = target.size_bytes // SMALLER
    wanted = target.size_bytes / BEST
    candidates = [d for d in _candidates(target, registry) if d.size <= most]
    candidates.sort(key=lambda d: max(d.size / wanted, wanted / d.size))
    found = next((d for d in candidates if verdicts.fits(target, d)), None)
    verdicts.keep()
    return found


def _candidates(target: Source, registry: Registry) -> Iterator[Draft]:
    paths = [model.local() for pair in registry.pairs.values() for model in (pair.draft, pair.target) if model]
    paths += [model.local() for model in fetched_models()]
    with contextlib.suppress(OSError):
        paths += sorted(target.path.parent.glob("*.gguf"))
    seen = {part.resolve() for part in target.parts}
    for path in paths:
        if path is None or path.resolve() in seen or "-of-" in path.name:  # a draft in parts is none
            continue
        seen.add(path.resolve())
        with contextlib.suppress(OSError):
            if size := path.stat().st_size:
                yield Draft(path, size)


class _Verdicts:
    """Which drafts fit which targets, by what the files were when it was found out. A cache that cannot be used
    only costs time."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._changed = False
        self._known: dict[str, bool] = {}
        with contextlib.suppress(OSError, ValueError, UserError):
            self._path = cache_folder("pairs") / "drafts.json"
            self._known = json.loads(self._path.read_text())

    def fits(self, target: Source, draft: Draft) -> bool:
        key = f"{_stamp(target.path)}|{_stamp(draft.path)}"
        if key not in self._known:
            self._changed = True
            try:
                source = Source.open(draft.path)
                slice_plan(source, 0, source.n_layers)  # all its tensors are there
                check_pair(target, source)
                self._known[key] = True
            except UserError:
                self._known[key] = False
        return self._known[key]

    def keep(self) -> None:
        if self._changed and self._path is not None:
            with contextlib.suppress(OSError, UserError), appearing(self._path) as file:
                file.write(json.dumps(dict(list(self._known.items())[-1000:])).encode())


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
