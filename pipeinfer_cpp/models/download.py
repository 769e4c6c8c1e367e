"""Files from Hugging Face, into its own cache, so that an interrupted download goes on where it stopped.

huggingface_hub throws a partial file away when a download fails or is interrupted. So the content is fetched here,
next to the place where the hub's cache keeps it (`blobs/ETAG`), and hf_hub_download then finds it there.
"""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.system.files import locked
from pipeinfer_cpp.system.reports import StepReport

SHA256_DIGITS = 64
LARGEST = 50 * 1000**3
"""The hub does not serve larger files over plain HTTP."""


def download(repo: str, name: str, progress: StepReport | None = None) -> Path:
    """The file in the hub's cache, fetched when it is not there.

    Raises UserError for what does not exist or is not open to this user, PipeInferError when the network or the disk
    fails: what has arrived by then is kept, and the next call fetches the rest.
    """
    with asking(repo, name), _quiet():
        return _download(repo, name, progress)


@contextmanager
def asking(repo: str, name: str | None = None) -> Iterator[None]:
    """Whatever the hub's client raises becomes one sentence about the repository, or a file of it."""
    from huggingface_hub import utils as hub

    full = f"{repo}/{name}" if name is not None else repo
    try:
        yield
    except hub.GatedRepoError as error:
        raise UserError(
            f"{repo} wants you to accept its licence: do so on its page, then log in with `hf auth login`."
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(
            f"Hugging Face has no {repo}, or it is private: check the name, or log in with `hf auth login`."
        ) from error
    except hub.LocalEntryNotFoundError as error:  # an EntryNotFoundError too; the hub went away meanwhile
        raise PipeInferError(f"{full} could not be fetched (no connection). {_AGAIN}") from error
    except hub.EntryNotFoundError as error:
        raise UserError(f"{full} does not exist on Hugging Face: check the name of the file.") from error
    except (PipeInferError, UserError):
        raise
    except Exception as error:  # the hub's client raises its transport's own errors
        raise PipeInferError(f"{full} could not be fetched ({_reason(error)}). {_AGAIN}") from error


_AGAIN = "Try again: the download continues where it stopped."


def _reason(error: BaseException) -> str:
    """In plain words where no server answers: the transport's error has the system's at its root."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    host = f"Hugging Face at {_endpoint()}"
    for one in causes:
        if isinstance(one, socket.gaierror):
            return f"{host} cannot be found: is this machine online?"
        if isinstance(one, ConnectionRefusedError):
            return f"{host} refuses the connection"
        if isinstance(one, TimeoutError) or "Timeout" in type(one).__name__:
            return f"{host} does not answer"
        if isinstance(one, OSError) and one.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return f"{host} cannot be reached: is this machine online?"
        if isinstance(one, OSError) and one.errno == errno.ENOSPC:
            return "the disk is full"
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def _endpoint() -> str:
    from huggingface_hub.constants import ENDPOINT

    return _host(ENDPOINT)


def _download(repo: str, name: str, progress: StepReport | None) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    url, headers = hf_hub_url(repo, name), build_hf_headers()
    about = get_hf_file_metadata(url, token=None)
    if about.etag is None or about.size is None or about.size > LARGEST:
        return Path(hf_hub_download(repo, name))  # not the hub itself, or only by its own protocol: without resume
    blob = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs" / about.etag
    if not blob.exists():
        if about.location != url and _host(about.location) != _host(url):
            headers.pop("authorization", None)  # a signed address elsewhere: our token is not for them
        lock = Path(HF_HUB_CACHE) / ".locks" / blob.parent.parent.name / f"{blob.name}.pipeinfer.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, wait=False) as held:  # the partial file is one process's at a time
            if held is None:
                raise PipeInferError(f"{name} is being fetched by another process: wait for it.")
            _fetch(about.location, headers, blob, name, about.size, progress)
    return Path(hf_hub_download(repo, name))  # finds the blob, and gives it its name


def _fetch(url: str, headers: dict[str, str], blob: Path, name: str, size: int, progress: StepReport | None) -> None:
    """Append to the partial file what it lacks of `size` bytes; once whole, it becomes `blob`."""
    from huggingface_hub.file_download import http_get

    if blob.exists():  # another process was faster
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(blob.name + ".pipeinfer-part")
    done = part.stat().st_size if part.exists() else 0
    if done > size:
        part.unlink()
        done = 0
    free = shutil.disk_usage(part.parent).free
    if free < size - done:
        raise PipeInferError(
            f"{name} needs {(size - done) / 1e9:.1f} GB, and {part.parent} has {free / 1e9:.1f} GB left: "
            "free some space, or set HF_HOME to a folder on another disk."
        )

    def report(n: int) -> None:
        if progress is not None:
            progress(name, n, size)

    report(done)
    with _Counted(part, report) as file:
        http_get(url, file, resume_size=done, headers=headers, expected_size=size)
    report(size)
    _check(part, blob.name, name)
    part.replace(blob)


class _Counted(io.BufferedWriter):
    """A file that is appended to, and says how long it is after each write."""

    def __init__(self, path: Path, report: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path, "a"))
        self.report = report

    def write(self, data: Any) -> int:
        n = super().write(data)
        self.report(self.tell())
        return n


def _check(part: Path, etag: str, name: str) -> None:
    """Large files are named by the SHA-256 of their content; a file of several sittings may be a wrong mix."""
    if len(etag) != SHA256_DIGITS:
        return
    digest = hashlib.sha256()
    with part.open("rb") as file:
        for block in iter(lambda: file.read(1 << 22), b""):
            digest.update(block)
    if digest.hexdigest() != etag:
        part.unlink()
        raise PipeInferError(f"{name} arrived damaged and was thrown away. Try again.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the hub's own bars and warnings: we have ours."""
    from huggingface_hub import utils as hub

    level, bars = hub.logging.get_verbosity(), not hub.are_progress_bars_disabled()
    hub.logging.set_verbosity(hub.logging.ERROR)
    if bars:
        hub.disable_progress_bars()
    try:
        yield
    finally:
        hub.logging.set_verbosity(level)
        if bars:
            hub.enable_progress_bars()


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).netloc
