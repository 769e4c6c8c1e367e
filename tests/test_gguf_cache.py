"""Slices that are kept: nothing half-written, nothing stale, nothing cut twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import MODELS, Tiny, build

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf import Source, cached_slice, slice_plan
from pipeinfer_cpp.gguf import cache as cache_module


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source.open(build(tmp_path / "model.gguf", MODELS["llama-untied"]))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".part")]


def test_memory_stays_small(tmp_path: Path) -> None:
    path = build(tmp_path / "big.gguf", Tiny(n_layers=2, n_embd=256, n_head=8, n_ff=40_000))
    tracemalloc.start()
    try:
        source = Source.open(path)
        cached_slice(source, 0, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    largest = max(t.n_bytes for t in source.tensors.values())
    assert largest > 19e6 and peak < 12e6


def test_progress_counts_every_byte_once(source: Source) -> None:
    calls: list[tuple[int, int]] = []
    cached_slice(source, 0, 2, progress=lambda done, total: calls.append((done, total)))
    total = source.size_bytes + slice_plan(source, 0, 2).data_bytes
    assert calls[-1] == (total, total) and {t for _, t in calls} == {total}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    calls.clear()
    cached_slice(source, 0, 2, progress=lambda done, total: calls.append((done, total)))
    assert not calls


def test_slices_are_kept_by_content(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cached_slice(source, 0, 2)
    before = path.stat()
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(source.path.read_bytes())
    assert cached_slice(Source.open(copy), 0, 2) == path and path.stat().st_ino == before.st_ino
    assert cached_slice(source, 2, 4) != path
    other = Source.open(build(tmp_path / "other.gguf", Tiny(tied=False, seed=2)))
    assert cached_slice(other, 0, 2) != path
    monkeypatch.setattr(cache_module, "SLICER_VERSION", cache_module.SLICER_VERSION + 1)
    assert cached_slice(source, 0, 2) != path


def test_the_whole_model_is_its_own_slice(source: Source) -> None:
    assert cached_slice(source, 0, source.n_layers) == source.path


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def _break_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


def _lose_record(path: Path) -> None:
    path.with_suffix(".json").unlink()


def _break_record(path: Path) -> None:
    path.with_suffix(".json").write_text("{}")


def _lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_flip, _truncate, _break_header, _lose_record, _break_record, _lose])
def test_a_damaged_entry_is_cut_again(source: Source, damage: Callable[[Path], None]) -> None:
    path = cached_slice(source, 1, 3)
    good = path.read_bytes()
    damage(path)
    copied: list[int] = []
    assert cached_slice(source, 1, 3, progress=lambda done, _: copied.append(done)) == path
    assert copied and path.read_bytes() == good
    copied.clear()
    cached_slice(source, 1, 3, progress=lambda done, _: copied.append(done))
    assert not copied


def test_an_entry_that_was_only_touched_is_kept(source: Source) -> None:
    path = cached_slice(source, 1, 3)
    node = path.stat().st_ino
    os.utime(path)
    assert cached_slice(source, 1, 3) == path and path.stat().st_ino == node


def test_an_interrupted_cut_leaves_nothing(source: Source, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done > source.size_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_slice(source, 0, 2, progress=interrupt)
    assert not leftovers(tmp_path) and not list((tmp_path / "cache").rglob("*.gguf"))
    assert cached_slice(source, 0, 2).exists()


def _script(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """Another process that opens the model and runs `body`; its cache is the test's."""
    code = "import sys, time\nfrom pipeinfer_cpp.gguf import Source, cached_slice\n" + textwrap.dedent(body)
    command = [sys.executable, "-c", code, str(tmp_path / "model.gguf")]
    root = Path(cache_module.__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def test_a_killed_cut_leaves_nothing_that_is_used_and_is_cleaned_up(source: Source, tmp_path: Path) -> None:
    process = _script(
        tmp_path,
        """
        source = Source.open(sys.argv[1])
        def progress(done, total):
            if done > source.size_bytes:
                print("cutting", flush=True)
                time.sleep(60)
        cached_slice(source, 0, 2, progress=progress)
        """,
    )
    assert process.stdout and process.stdout.readline() == "cutting\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(leftovers(tmp_path)) == 1 and not list((tmp_path / "cache").rglob("*.gguf"))
    cached_slice(source, 2, 4)  # another slice: the next cut of any kind cleans up
    assert not leftovers(tmp_path)
    assert cached_slice(source, 0, 2).exists()


def test_processes_that_want_one_slice_cut_it_once(source: Source, tmp_path: Path) -> None:
    source.sha256()
    body = """
        source, calls = Source.open(sys.argv[1]), []
        def progress(done, total):
            calls.append(done)
            time.sleep(0.01)
        path = cached_slice(source, 0, 2, progress=progress)
        print(len(calls) > 0, path)
        """
    started = time.monotonic()
    processes = [_script(tmp_path, body) for _ in range(3)]
    answers = [process.communicate(timeout=30)[0].split() for process in processes]
    assert sorted(cut for cut, _ in answers) == ["False", "False", "True"]
    assert len({path for _, path in answers}) == 1 and not leftovers(tmp_path)
    assert cached_slice(source, 0, 2) == Path(answers[0][1])
    assert time.monotonic() - started < 20


def test_a_source_that_changes_during_the_cut_gives_no_slice(source: Source, tmp_path: Path) -> None:
    def touch(done: int, _total: int) -> None:
        if done > source.size_bytes:
            os.utime(source.path)

    with pytest.raises(PipeInferError, match="changed while it was cut"):
        cached_slice(source, 0, 2, progress=touch)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_cache_folder_that_cannot_be_is_told(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set PIPEINFER_CACHE"):
        cached_slice(source, 0, 2)
