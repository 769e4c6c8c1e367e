"""One model file: where it lies, or how it is fetched."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeinfer_cpp.errors import PipeInferError, UserError

Progress = Callable[[str, int, int], None]
"""(file name, bytes done, bytes in all)"""


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

    def local(self) -> Path | None:
        """The file on this machine (the first part, when all are there), without asking the network."""
        if self.path is not None:
            return self.path if self.path.exists() else None
        from huggingface_hub import try_to_load_from_cache

        found = [try_to_load_from_cache(str(self.repo), name) for name in self.names]
        return Path(found[0]) if all(isinstance(f, str) for f in found) and isinstance(found[0], str) else None


def pull(model: ModelFile, progress: Progress | None = None) -> Path:
    """Fetch what is missing into the Hugging Face cache; an interrupted download goes on where it stopped.

    Returns the (first) file. Raises UserError for a file that does not exist there, PipeInferError
    when the network or the disk fails.
    """
    here = model.local()
    if here is not None:
        return here
    if model.path is not None:
        raise UserError(f"{model.path} does not exist, and models.toml names no place to fetch it from.")
    first: Path | None = None
    for name in model.names:
        path = _fetch(str(model.repo), name, progress)
        first = first or path
    assert first is not None
    return first


def _fetch(repo: str, name: str, progress: Progress | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(repo, name, tqdm_class=_bar(name, progress)))
    except GatedRepoError as error:
        raise UserError(
            f"{repo} wants you to accept its licence: do so on its page, then log in with `hf auth login`."
        ) from error
    except LocalEntryNotFoundError as error:
        raise PipeInferError(f"{repo}/{name} cannot be fetched: no connection to Hugging Face. Try again.") from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise UserError(f"{repo}/{name} does not exist on Hugging Face: check repo and file in models.toml.") from error
    except OSError as error:
        raise PipeInferError(f"{repo}/{name} could not be stored or fetched: {error}. Run the pull again.") from error
    except Exception as error:  # the hub's client raises its transport's own errors
        raise PipeInferError(f"{repo}/{name} could not be fetched: {error}. Run the pull again to go on.") from error


def _bar(name: str, progress: Progress | None) -> Any:
    """huggingface_hub reports through a tqdm class; this one calls us instead of drawing."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = progress is None
            kwargs.pop("name", None)
            super().__init__(*args, **kwargs)

        def display(self, *args: Any, **kwargs: Any) -> bool:
            if progress is not None:
                progress(name, int(self.n), int(self.total or 0))
            return True

        def clear(self, *args: Any, **kwargs: Any) -> None:
            pass

        def close(self) -> None:
            if progress is not None:
                progress(name, int(self.n), int(self.total or 0))

    return Bar
