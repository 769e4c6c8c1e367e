"""One model file: where it lies, or how it is fetched."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.models.download import download
from pipeinfer_cpp.system.reports import StepReport

_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3}


def size_bytes(text: str) -> int | None:
    """The bytes of `1.2 GB`; None for text of another form."""
    number, _, unit = text.partition(" ")
    try:
        return round(float(number) * _UNITS[unit])
    except (ValueError, KeyError):
        return None


def size_text(n: float) -> str:
    """Decimal units, as disks and downloads have them: 1.2 GB, 340 MB, 12 kB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if n >= size:
            return f"{n / size:.1f} {unit}" if n < 10 * size or unit != "MB" else f"{n / size:.0f} {unit}"
    return f"{n / 1000:.0f} kB"


@dataclass(frozen=True)
class ModelFile:
    """Either `path`, or `repo` and `file` on Hugging Face. Of `parts` > 1, `file` is the first
    (its name ends in -00001-of-0000N.gguf). `size` is text for people."""

    path: Path | None = None
    repo: str | None = None
    file: str | None = None
    parts: int = 1
    size: str | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.path is not None else f"{self.repo}/{self.file}"

    @property
    def names(self) -> list[str]:
        """All parts' names in the repository."""
        assert self.file is not None
        if self.parts == 1:
            return [self.file]
        return [re.sub(r"-00001-of-", f"-{i:05d}-of-", self.file) for i in range(1, self.parts + 1)]

    @property
    def bytes(self) -> int | None:
        """Of all parts: of the files where they are here, else about what `size` says; None where that is not known."""
        here = self.local()
        if here is not None and self.path is not None:
            return here.stat().st_size
        if here is not None:
            folder = here.parents[len(Path(str(self.file)).parts) - 1]
            return sum((folder / name).stat().st_size for name in self.names)
        return size_bytes(self.size) if self.size is not None else None

    def local(self) -> Path | None:
        """The file on this machine (the first part, when all are there), without asking the network."""
        if self.path is not None:
            return self.path if self.path.exists() else None
        from huggingface_hub import try_to_load_from_cache

        found = [try_to_load_from_cache(str(self.repo), name) for name in self.names]
        return Path(found[0]) if all(isinstance(f, str) for f in found) and isinstance(found[0], str) else None


def pull(model: ModelFile, progress: StepReport | None = None) -> Path:
    """Fetch what is missing into the Hugging Face cache; an interrupted download goes on where it stopped.

    Returns the (first) file. Raises UserError for a file that does not exist there, PipeInferError
    when the network or the disk fails.
    """
    here = model.local()
    if here is not None:
        return here
    if model.path is not None:
        raise UserError(f"{model.path} does not exist, and models.toml gives no place to fetch it from.")
    for name in model.names:
        download(str(model.repo), name, progress)
    here = model.local()
    if here is None:  # its parts are of different states of the repository
        raise PipeInferError(f"{model.name} was changed on Hugging Face while it was fetched. Try again.")
    return here
