"""Models by their name on Hugging Face, as `llama-cli -hf` takes them: OWNER/REPO, OWNER/REPO:QUANT or
OWNER/REPO:PATH.gguf."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.models.download import asking
from pipeinfer_cpp.models.files import ModelFile, size_text

_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<which>[\w./-]+))?")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_COMPANIONS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""In names of files that go with a model and are none."""
_UNASKED = ("Q4_K_M", "Q8_0")
"""Taken, in this order, where no quantisation is named; else the first file. As llama.cpp does."""


def is_hub_name(text: str | Path) -> bool:
    """Whether it is a name of this kind, and not one of a file that is there."""
    name = str(text)
    match = _NAME.fullmatch(name)
    if match is None or name.startswith((".", "~", "/")):
        return False
    return not (name.endswith(".gguf") and match["which"] is None) and not Path(name).exists()


def here(name: str) -> ModelFile | None:
    """The model of that name among what was fetched, without asking the network; None where it is not here."""
    repo, which = _parse(name)
    names = _fetched(repo)
    try:
        model = _choose(repo, which, names)
    except UserError:
        return None
    return model if model.local() is not None else None


def find(name: str) -> ModelFile:
    """The model of that name: what was fetched earlier, else as the hub lists it, all its parts together.

    Raises UserError, with what there is, for a name that fits no file or several models, and PipeInferError
    when the hub cannot be asked.
    """
    return here(name) or _choose(*_parse(name), _listed(_parse(name)[0]))


@dataclass(frozen=True)
class _Model:
    """A file, or parts that are one model."""

    first: str
    parts: int
    stem: str
    """Path without number of parts and ending."""

    def is_called(self, which: str) -> bool:
        stem, which = self.stem.lower(), which.lower()
        return stem == which or stem.endswith(("-" + which, "." + which, "/" + which))


def _parse(name: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} is not a name on Hugging Face: write OWNER/REPO or OWNER/REPO:QUANT.")
    return match["repo"], match["which"]


def _choose(repo: str, which: str | None, sizes: Mapping[str, int]) -> ModelFile:
    """Of the repository's files, with their sizes (0 where not known)."""
    models = _models(sizes)
    if not models:
        raise UserError(f"{repo} holds no GGUF model: look for a repository whose name ends in GGUF.")
    if which is not None:
        name = which.removesuffix(".gguf")
        found = [m for m in models if m.stem == name or m.first == which] or [m for m in models if m.is_called(name)]
    else:
        found = next(filter(None, ([m for m in models if m.is_called(kind)] for kind in _UNASKED)), models[:1])
    if not found:
        raise UserError(f"{repo} has no model {which}: it has {_list(models)}.")
    if len(found) > 1:
        raise UserError(f"{repo} has several models {which or _UNASKED[0]}: choose one of {_list(found, whole=True)}.")
    model = found[0]
    match = _PART.match(model.first.removesuffix(".gguf"))
    names = [model.first] if match is None else [
        f"{match['stem']}-{i:05d}-of-{match['count']}.gguf" for i in range(1, model.parts + 1)
    ]  # fmt: skip
    missing = [name for name in names if name not in sizes]
    if missing:
        raise UserError(f"{repo} lacks {missing[0]}, a part of {model.first}: choose another file.")
    size = sum(sizes[name] for name in names)
    return ModelFile(repo=repo, file=model.first, parts=model.parts, size=size_text(size) if size else None)


def _models(names: Mapping[str, int]) -> list[_Model]:
    models: dict[str, _Model] = {}
    for name in sorted(names):
        base = name.rpartition("/")[2]
        if not base.endswith(".gguf") or any(word in base for word in _COMPANIONS):
            continue
        stem, match = name.removesuffix(".gguf"), _PART.match(name.removesuffix(".gguf"))
        if match is not None:
            stem = match["stem"]
            name = f"{stem}-00001-of-{match['count']}.gguf"
        models.setdefault(stem, _Model(name, int(match["count"]) if match is not None else 1, stem))
    return list(models.values())


def _list(models: list[_Model], *, whole: bool = False) -> str:
    """Their quantisations, or their paths."""
    names = [m.first if whole else re.split(r"[-./](?=[^-./]*$)", m.stem)[-1] for m in models]
    if len(set(names)) < len(names):
        names = [m.first for m in models]
    return ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


def _listed(repo: str) -> dict[str, int]:
    """Names and sizes of the repository's files, from the hub."""
    with asking(repo):
        from huggingface_hub import HfApi
        from huggingface_hub.constants import ENDPOINT

        info = HfApi(endpoint=ENDPOINT).model_info(repo, files_metadata=True)
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _fetched(repo: str) -> dict[str, int]:
    """Names and sizes of those of its files that are here."""
    folder = snapshot(repo)
    if folder is None:
        return {}
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*.gguf") if p.exists()}


def snapshot(repo: str) -> Path | None:
    """The folder in the hub's cache with the repository's files that were fetched last."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    base = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    try:
        folder = base / "snapshots" / (base / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return folder if folder.is_dir() else None


def counterpart(path: str) -> Path | None:
    """What was fetched here of the file that lies at `path`, in the hub's cache of another machine."""
    match = re.search(r"/models--(?P<repo>[^/]+)/snapshots/[^/]+/(?P<file>.+\.gguf)$", path)
    folder = snapshot(match["repo"].replace("--", "/", 1)) if match is not None else None
    file = folder / match["file"] if folder is not None and match is not None else None
    return file if file is not None and file.exists() else None


def fetched_models() -> list[ModelFile]:
    """All models in the hub's cache, those with all their parts."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = []
    for base in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        repo = base.name.removeprefix("models--").replace("--", "/", 1)
        sizes = _fetched(repo)
        for model in _models(sizes):
            with contextlib.suppress(UserError):
                found.append(_choose(repo, model.first, sizes))
    return found


def name_of(model: ModelFile) -> str:
    """As it can be given to --target."""
    stem = str(model.file).removesuffix(".gguf")
    match = _PART.match(stem)
    kind = re.split(r"[-./](?=[^-./]*$)", match["stem"] if match is not None else stem)[-1]
    try:
        short = here(f"{model.repo}:{kind}")
    except UserError:
        short = None
    return f"{model.repo}:{kind}" if short is not None and short.file == model.file else f"{model.repo}:{model.file}"


def model_path(given: str | Path) -> Path:
    """The path itself, or the (first) file of a name on Hugging Face that was fetched earlier. Raises UserError
    for one that was not."""
    if not is_hub_name(given):
        return Path(given)
    model = here(str(given))
    path = model.local() if model is not None else None
    if path is None:
        raise UserError(f"{given} is not on this machine: `pipeinfer models pull {given}` gets it.")
    return path
