"""Slices that are kept: nothing half-written, nothing stale, nothing cut twice."""

from __future__ import annotations

import hashlib
import json
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
from pipeinfer_cpp.gguf import Source, cached_slice, cached_slices, is_intact, slice_plan, write_slice
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
    assert calls[-1] == (source.size_bytes,) * 2 and {t for _, t in calls} == {source.size_bytes}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    calls.clear()
    cached_slice(source, 0, 2, progress=lambda done, total: calls.append((done, total)))
    assert not calls
    cached_slice(source, 2, 4, progress=lambda done, total: calls.append((done, total)))
    needed = slice_plan(source, 2, 4).data_bytes
    assert needed <= calls[-1][0] == calls[-1][1] < needed + 64 * 40  # its tensors and what lies between them


class _Reads:
    """Counts the bytes that are read of one file."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes, node, preadv = 0, path.stat().st_ino, os.preadv

        def counted(fd: int, buffers: list[memoryview], offset: int) -> int:
            n = preadv(fd, buffers, offset)
            self.bytes += n if os.fstat(fd).st_ino == node else 0
            return n

        monkeypatch.setattr(os, "preadv", counted)


def test_all_slices_and_the_hash_take_one_pass(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = _Reads(source.path, monkeypatch)
    said: dict[int, tuple[int, int]] = {}
    ranges = [(0, 1), (1, 3), (3, 4)]
    paths = cached_slices(source, ranges, each=lambda i, done, total: said.update({i: (done, total)}))
    assert reads.bytes == source.size_bytes
    assert source.sha256() == hashlib.sha256(source.path.read_bytes()).hexdigest() and reads.bytes == source.size_bytes
    assert said == {i: (slice_plan(source, *layers).data_bytes,) * 2 for i, layers in enumerate(ranges)}
    for layers, path in zip(ranges, paths, strict=True):
        alone = path.parent.parent / "alone.gguf"
        write_slice(slice_plan(source, *layers), alone, source_sha256=source.sha256())
        assert alone.read_bytes() == path.read_bytes()
    reads.bytes = 0
    assert cached_slices(source, [(1, 3), (0, 4), (0, 1)]) == [paths[1], source.path, paths[0]]
    assert reads.bytes == 0


def test_a_file_that_moved_is_not_read_again_where_its_node_stays(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cached_slice(source, 0, 2)
    (tmp_path / "other.gguf").symlink_to(source.path)
    reads = _Reads(source.path, monkeypatch)
    assert cached_slice(Source.open(tmp_path / "other.gguf"), 0, 2) == path and reads.bytes == 0


def test_a_copy_is_hashed_and_not_cut_again(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cached_slice(source, 0, 2)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(source.path.read_bytes())
    monkeypatch.setattr(cache_module, "write_slices", None)
    assert cached_slice(Source.open(copy), 0, 2) == path


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


def test_after_a_new_start_of_the_machine_every_byte_is_looked_at(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices are not forced to the disk: a crash may leave pages of zeros in a file of the right size and time."""
    path = cached_slice(source, 1, 3)
    good, stat = path.read_bytes(), path.stat()
    lost = len(good) * 2 // 3
    path.write_bytes(good[:lost] + bytes(64) + good[lost + 64 :])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.read_bytes() != good
    monkeypatch.setattr(cache_module, "_SAMPLES", 2)
    record = path.with_suffix(".json")
    samples = cache_module._quick_hashes(path, json.loads(record.read_text())["data_start"])[1]
    record.write_text(json.dumps({**json.loads(record.read_text()), "sample_sha256": samples}))
    assert is_intact(path, source.sha256(), (1, 3))
    monkeypatch.setattr(cache_module, "boot_id", lambda: "another")
    assert not is_intact(path, source.sha256(), (1, 3))
    assert cached_slice(source, 1, 3) == path and path.read_bytes() == good and is_intact(path, source.sha256(), (1, 3))


def test_an_interrupted_cut_leaves_nothing(source: Source, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
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
        os.utime(source.path)

    with pytest.raises(PipeInferError, match="changed while it was cut"):
        cached_slice(source, 0, 2, progress=touch)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_cache_folder_that_cannot_be_is_told(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set PIPEINFER_CACHE"):
        cached_slice(source, 0, 2)


def test_a_whole_model_needs_no_cache(tmp_path: Path) -> None:
    source = Source.open(build(tmp_path / "model.gguf", MODELS["llama-tied"]))
    assert cached_slices(source, [(0, 4)], cache_dir=source.path / "cache") == [source.path]
