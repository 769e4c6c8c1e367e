"""models.toml: named pairs of target and draft, and where their files are."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.models.files import ModelFile
from pipeinfer_cpp.system.files import config_dir
from pipeinfer_cpp.system.formats import read_toml

HERE = Path(__file__).resolve().parent
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Speculation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Speculation settings of a pair; None leaves the default. See engine.settings.Settings."""

    mode: Literal["async", "sync", "off"] | None = None
    branches: Annotated[int, msgspec.Meta(ge=1, le=16)] | None = None
    cutoff: Fraction | None = None
    recovery: Fraction | None = None
    decay: Fraction | None = None
    split: Fraction | None = None
    draft_max: Annotated[int, msgspec.Meta(ge=1, le=63)] | None = None
    max_ahead: Annotated[int, msgspec.Meta(ge=1, le=512)] | None = None
    max_rows: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file on this machine (`path`, relative to the models.toml that names it), or one to fetch:
    a Hugging Face `repo` and `file` (the first part of a multi-part model stands for all: `parts`)."""

    path: str | None = None
    repo: str | None = None
    file: str | None = None
    parts: int = 1
    size: str | None = None


class PairEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pair as it is written. `supported = false` with a `reason` lists a pair that cannot be run."""

    target: FileEntry | None = None
    draft: FileEntry | None = None
    description: str | None = None
    chat_template: str | None = None
    supported: bool | None = None
    reason: str | None = None
    speculation: dict[str, Any] = {}


class _Registry(msgspec.Struct, forbid_unknown_fields=True):
    pair: dict[str, Any] = {}


@dataclass(frozen=True)
class Pair:
    """A target and, mostly, a draft that shares its vocabulary."""

    name: str
    target: ModelFile
    draft: ModelFile | None = None
    description: str = ""
    chat_template: str | None = None
    supported: bool = True
    reason: str = ""
    speculation: Speculation = field(default_factory=Speculation)

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """Of the target, then of the draft where there is one."""
        return (self.target,) if self.draft is None else (self.target, self.draft)

    def path(self, part: Literal["target", "draft"]) -> Path:
        """The file of its target or draft. Raises UserError when that is not on this machine."""
        model = self.target if part == "target" else self.draft
        if model is None:
            raise UserError(f"The pair {self.name} has no {part}.")
        here = model.local()
        if here is None and model.path is not None:
            raise UserError(
                f"The {part} of {self.name}, {model.path}, does not exist: correct its path in models.toml."
            )
        if here is None:
            raise UserError(
                f"The {part} of {self.name} is not on this machine: run `pipeinfer models pull {self.name}`."
            )
        return here


class Registry:
    """All known pairs, by name."""

    def __init__(self, pairs: dict[str, Pair]) -> None:
        self.pairs = pairs

    def pair(self, name: str) -> Pair:
        """Raises UserError for an unknown name, or a pair that is listed as not supported."""
        pair = self.pairs.get(name)
        if pair is None:
            near = difflib.get_close_matches(name, self.pairs, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"There is no pair named {name!r}.{hint} `pipeinfer models list` shows all.")
        if not pair.supported:
            raise UserError(f"The pair {name} cannot be run: {pair.reason}")
        return pair


def bundled_toml() -> Path:
    """models.toml: inside the installed package, or at the top of a checkout."""
    inside = HERE / "models.toml"
    return inside if inside.exists() else HERE.parent.parent / "models.toml"


def user_toml() -> Path:
    """The user's own file, which may not exist."""
    return config_dir() / "models.toml"


def load_registry(extra: Path | None = None) -> Registry:
    """The bundled pairs, then the user's own file, then `extra`: later ones add pairs and override fields.

    Raises UserError, naming file and key, when one is malformed or `extra` is missing.
    """
    files = [(bundled_toml(), HERE), (user_toml(), user_toml().parent)]
    files = [(path, base) for path, base in files if path.exists()]
    if extra is not None:
        if not extra.exists():
            raise UserError(f"{extra} does not exist: --models takes the path of a models.toml.")
        files.append((extra, extra.resolve().parent))
    pairs: dict[str, Pair] = {}
    for path, base in files:
        for name, entry in _read(path).items():
            pairs[name] = _merge(path, base, name, entry, pairs.get(name))
    return Registry(pairs)


def _read(path: Path) -> dict[str, PairEntry]:
    data = read_toml(path)
    where = ""
    try:
        entries = {}
        for name, entry in msgspec.convert(data, _Registry).pair.items():
            where = f", pair {name!r}"
            entries[name] = msgspec.convert(entry, PairEntry)
        return entries
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is not a valid models.toml{where}: {error}.") from error


def _merge(path: Path, base: Path, name: str, entry: PairEntry, old: Pair | None) -> Pair:
    """The entry over what an earlier file said of the same pair, field by field."""
    target = _file(path, base, name, "target", entry.target) or (old.target if old else None)
    if target is None:
        raise UserError(f"{path}: pair {name!r} has no target.")
    known = {k: v for k, v in msgspec.structs.asdict(old.speculation).items() if v is not None} if old else {}
    try:
        speculation = msgspec.convert({**known, **entry.speculation}, Speculation)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: pair {name!r}, speculation: {error}.") from error

    def chosen(new: Any, kept: Any) -> Any:
        return kept if new is None else new

    return Pair(
        name,
        target,
        _file(path, base, name, "draft", entry.draft) or (old.draft if old else None),
        chosen(entry.description, old.description if old else ""),
        chosen(entry.chat_template, old.chat_template if old else None),
        chosen(entry.supported, old.supported if old else True),
        chosen(entry.reason, old.reason if old else ""),
        speculation,
    )


def _file(path: Path, base: Path, name: str, part: str, entry: FileEntry | None) -> ModelFile | None:
    if entry is None:
        return None
    where = f"{path}: {part} of pair {name!r}"
    if "" in (entry.path, entry.repo, entry.file):
        raise UserError(f"{where} has an empty path, repo or file.")
    if entry.path is not None and entry.repo is None and entry.file is None:
        given = Path(os.path.expanduser(entry.path))
        return ModelFile(path=given if given.is_absolute() else base / given, size=entry.size)
    if entry.repo is not None and entry.file is not None and entry.path is None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repo):
            raise UserError(f"{where}: repo = {entry.repo!r} is not of the form OWNER/REPO.")
        if entry.file.startswith("/") or ".." in entry.file.split("/"):
            raise UserError(f"{where}: file = {entry.file!r} is not a path inside the repository.")
        if entry.parts < 1:
            raise UserError(f"{where}: parts = {entry.parts} is below 1.")
        if entry.parts > 1 and not entry.file.endswith(f"-00001-of-{entry.parts:05d}.gguf"):
            raise UserError(
                f"{where} has parts = {entry.parts}, and its file does not end in -00001-of-{entry.parts:05d}.gguf."
            )
        return ModelFile(repo=entry.repo, file=entry.file, parts=entry.parts, size=entry.size)
    raise UserError(f"{where} needs either path, or repo and file.")
