"""Fetching models from a hub on this machine: whole, interrupted, refused."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub, left

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.models import ModelFile, pull

DATA = random.Random(1).randbytes(1_500_000)
FILE = ModelFile(repo="maker/toys", file="small/toy.gguf")
KEY = "maker/toys/small/toy.gguf"
PARTS = {f"maker/toys/big-{i:05d}-of-00003.gguf": DATA[i * 1000 : i * 9000] for i in (1, 2, 3)}
IN_PARTS = ModelFile(repo="maker/toys", file="big-00001-of-00003.gguf", parts=3)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub({KEY: DATA, **PARTS})
    yield hub
    hub.stop()


@pytest.fixture(autouse=True)
def home(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HF_HOME, for this process too: the hub's client has read its environment already."""
    from huggingface_hub import constants, file_download

    home = tmp_path / "hf"
    for name, value in hub.environment(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # between its retries
    return home


def nothing_passes_for_whole(home: Path, file: ModelFile = FILE) -> bool:
    return file.local() is None and not left(home, "*.gguf") and not [p for p in left(home, "blobs/*") if not p.suffix]


# ------------------------------------------------------------------------------------------------- whole


def test_fetch_with_progress(hub: Hub, home: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    assert FILE.local() is None
    path = pull(FILE, lambda *report: reports.append(report))
    assert path.read_bytes() == DATA and path == FILE.local() and path.name == "toy.gguf"
    assert {name for name, _, _ in reports} == {"small/toy.gguf"} and {total for *_, total in reports} == {len(DATA)}
    done = [n for _, n, _ in reports]
    assert done[0] == 0 and done[-1] == len(DATA) and done == sorted(done)
    assert not left(home, "*part")


def test_what_is_here_is_not_asked_for(hub: Hub) -> None:
    path = pull(FILE)
    asked = len(hub.requests)
    assert pull(FILE) == path and len(hub.requests) == asked


def test_parts(hub: Hub) -> None:
    assert pull(IN_PARTS).name == "big-00001-of-00003.gguf"
    first = IN_PARTS.local()
    assert first is not None
    for key, data in PARTS.items():
        assert (first.parent / key.split("/")[-1]).read_bytes() == data
    assert len(hub.gets) == 3


def test_a_missing_part(hub: Hub) -> None:
    del hub.files["maker/toys/big-00002-of-00003.gguf"]
    with pytest.raises(UserError, match=r"big-00002-of-00003\.gguf does not exist"):
        pull(IN_PARTS)
    assert IN_PARTS.local() is None


def test_parts_of_two_states_of_the_repository(hub: Hub) -> None:
    def new_commit(name: str, done: int, total: int) -> None:
        if "00002" in name:
            hub.commit = "f" * 40

    with pytest.raises(PipeInferError, match=r"was changed on Hugging Face while it was fetched\. Try again"):
        pull(IN_PARTS, new_commit)
    assert pull(IN_PARTS).is_file() and len(hub.gets) == 3  # the content was here


def test_the_token_stays_with_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(FILE)
    assert hub.requests[0].headers["authorization"] == "Bearer hf_secret"
    assert hub.gets and all("authorization" not in request.headers for request in hub.gets)


# ------------------------------------------------------------------------------------------- interrupted


def test_a_broken_connection_is_taken_up_again_at_once(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.breaks = [400_000, 200_000]
    assert pull(FILE).read_bytes() == DATA
    starts = [request.start or 0 for request in hub.gets]
    assert len(starts) == 3 and 0 < starts[1] <= 400_000 and starts[1] < starts[2] <= 600_000
    assert capfd.readouterr() == ("", "")


def test_the_second_pull_goes_on(hub: Hub, home: Path) -> None:
    hub.breaks = [700_000] + [0] * 5  # then nothing more, as often as the client tries
    said = r"toy\.gguf could not be fetched .* Try again: the download continues where it stopped\.$"
    with pytest.raises(PipeInferError, match=said):
        pull(FILE)
    assert nothing_passes_for_whole(home)
    [part] = left(home, "*part")
    kept = part.stat().st_size
    assert 0 < kept <= 700_000 and DATA.startswith(part.read_bytes())
    hub.requests.clear()
    reports: list[int] = []
    assert pull(FILE, lambda name, done, total: reports.append(done)).read_bytes() == DATA
    assert [request.start for request in hub.gets] == [kept] and reports[0] == kept and not left(home, "*part")


def test_interrupted_by_the_user(hub: Hub, home: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(FILE, stop)
    assert nothing_passes_for_whole(home)
    assert pull(FILE).read_bytes() == DATA


def test_a_server_without_ranges(hub: Hub, home: Path) -> None:
    hub.breaks = [700_000] + [0] * 5
    with pytest.raises(PipeInferError):
        pull(FILE)
    hub.no_ranges = True
    assert pull(FILE).read_bytes() == DATA and hub.gets[-1].start


@pytest.mark.parametrize("wrong", [b"x" * 1000, b"x" * len(DATA), b"x" * (len(DATA) + 1)], ids=["begin", "all", "more"])
def test_a_damaged_partial_file(hub: Hub, home: Path, wrong: bytes) -> None:
    blobs = home / "hub" / "models--maker--toys" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(DATA).hexdigest()}.pipeinfer-part").write_bytes(wrong)
    if len(wrong) <= len(DATA):
        with pytest.raises(
            PipeInferError, match=r"toy\.gguf arrived damaged and was thrown away\. Try again\."
        ):
            pull(FILE)
        assert nothing_passes_for_whole(home) and not left(home, "*part")
    assert pull(FILE).read_bytes() == DATA


# ----------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (ModelFile(repo="maker/toys", file="none.gguf"), r"maker/toys/none\.gguf does not exist on Hugging Face: "),
        (ModelFile(repo="maker/none", file="toy.gguf"), r"Hugging Face has no maker/none, or it is private: "),
        (
            ModelFile(repo="gated/toys", file="toy.gguf"),
            r"gated/toys wants you to accept its licence: .*`hf auth login`",
        ),
        (ModelFile(path=Path("/none/toy.gguf")), r"/none/toy\.gguf does not exist"),
    ],
    ids=["file", "repository", "gated", "path"],
)
def test_refused(hub: Hub, home: Path, file: ModelFile, said: str) -> None:
    hub.gated = {"gated/toys"}
    with pytest.raises(UserError, match=said) as caught:
        pull(file)
    assert "\n" not in str(caught.value) and nothing_passes_for_whole(home, file)


def test_server_down(hub: Hub, home: Path) -> None:
    hub.stop()
    said = r"toy\.gguf could not be fetched \(Hugging Face at 127\.0\.0\.1:\d+ refuses the connection\)"
    with pytest.raises(PipeInferError, match=said) as caught:
        pull(FILE)
    assert "\n" not in str(caught.value) and nothing_passes_for_whole(home)


def test_a_hub_that_is_not_found_is_said_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from pipeinfer_cpp.models.hub import find

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    said = r"^a/b could not be fetched \(Hugging Face at hub\.invalid cannot be found: "
    with pytest.raises(PipeInferError, match=said) as caught:
        find("a/b:c")
    assert "Errno" not in str(caught.value) and "pull" not in str(caught.value)


def test_server_goes_down_at_the_very_end(hub: Hub, home: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done == total:
            hub.down = True

    with pytest.raises(PipeInferError, match="could not be fetched") as caught:
        pull(FILE, stop)
    assert not isinstance(caught.value, UserError) and FILE.local() is None


def test_content_refused(hub: Hub, home: Path) -> None:
    hub.no_content = True
    with pytest.raises(PipeInferError, match=r"could not be fetched \(.*503"):
        pull(FILE)
    assert nothing_passes_for_whole(home)


def test_no_room(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(PipeInferError, match=r"toy\.gguf needs 0\.0 GB, and .* has 0\.0 GB left: .* set HF_HOME"):
        pull(FILE)
    assert not hub.gets
