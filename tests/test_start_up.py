"""From the command to the first token: what goes on at the same time, what is told, and what is told of failures."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from pipeline_helpers import GREEDY, PROMPT, local, worker_pids

from pipeinfer_cpp.cluster.peer import WorkerDied
from pipeinfer_cpp.net.messages import Stretch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "cache"))


def test_every_worker_tells_what_it_does_and_the_second_start_finds_all() -> None:
    said: list[tuple[str, str]] = []

    def report(worker: str, what: str, _done: int, _total: int) -> None:
        if (worker, what) not in said:
            said.append((worker, what))

    def of(name: str) -> list[str]:
        return [what for worker, what in said if worker.startswith(name)]

    began = time.monotonic()
    with local(stages=2, report=report):
        first = time.monotonic() - began
    for stage in ("Stage 0", "Stage 1"):
        assert of(stage)[:2] == ["starting", "cutting the slice"] and of(stage)[-1] == "ready"
        assert "loading the layers" in of(stage)
    # Samples of the model are gone before the slice takes its memory.
    assert of("Stage 1").index("testing exactness") < of("Stage 1").index("loading the layers")
    assert of("The draft worker") == ["starting", "loading", "ready"]
    said.clear()
    began = time.monotonic()
    with local(stages=2, report=report):
        second = time.monotonic() - began
    whats = {what for worker, what in said if worker.startswith(("Stage", "The draft"))}
    assert whats == {"starting", "loading", "loading the layers", "ready"}
    print(f"first start {first:.2f} s, second {second:.2f} s")


def test_a_pipeline_of_one_stage_reads_no_hash(tmp_path: Path) -> None:
    with local(stages=1, draft=None) as p:
        assert p.generate(PROMPT, max_tokens=2, sampling=GREEDY).wait().n_generated == 2
    assert not list((tmp_path / "cache").glob("hashes/*.json"))


def _kill(stage: int) -> None:
    for pid in worker_pids():
        if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").endswith(f"/s{stage}".encode()):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("while_it", ["starting", "loading the layers"])
def test_a_worker_that_dies_while_loading_is_named_at_once(stage: int, while_it: str) -> None:
    """Also the second stage, while the first one still loads."""
    killed = 0.0

    def report(worker: str, what: str, _done: int, _total: int) -> None:
        nonlocal killed
        if not killed and worker.startswith(f"Stage {stage}") and what == while_it:
            killed = time.monotonic()
            _kill(stage)

    with pytest.raises(WorkerDied, match=f"Stage {stage} .*killed by signal 9"):
        local(stages=2, report=report)
    assert time.monotonic() - killed < 2
    assert not worker_pids()


def test_giving_up_while_cutting_leaves_nothing(tmp_path: Path) -> None:
    def report(_worker: str, what: str, _done: int, _total: int) -> None:
        if what == "loading":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local(stages=2, report=report)
    assert not worker_pids() and not list((tmp_path / "cache").rglob("*.part"))


def test_a_long_prompt_tells_how_much_of_it_is_read() -> None:
    said: list[tuple[int, int]] = []
    with local(stages=2, draft=None, ctx=1024, stretch=Stretch(0.1)) as p:
        n = len(p.vocabulary.tokenize(PROMPT * 60, begin=True))
        generation = p.generate(PROMPT * 60, max_tokens=3, sampling=GREEDY, reading=lambda *now: said.append(now))
        for _ in generation:
            assert said[-1] == (n, n)
            count = len(said)
        assert len(said) == count
    reads = [done for done, _ in said]
    assert {total for _, total in said} == {n} and reads == sorted(reads)
    assert len(set(reads)) > 4 and any(done and done % 64 == 0 for done in reads[:-1])
