"""Workers that die, hang or refuse, and coordinators that are killed: one clear error, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from cli_helpers import COMMAND, ENV, left_by
from pipeline_helpers import DRAFT, GREEDY, PROMPT, ROOT, TARGET, alive, local, text_of, until, worker_pids

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.net.messages import Stretch
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling

SLOW = Stretch(0.03)


def folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"pipeinfer-{os.getpid()}-*"))


def of_role(role: str) -> list[int]:
    return [pid for pid, what in sorted(worker_pids().items()) if what == role]


def stage_pid(pipeline: Pipeline, index: int) -> int:
    process = pipeline.driver._stages[index].process
    assert process is not None
    return process.pid


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("mode", ["off", "async"])
def test_a_stage_that_is_killed_is_started_again_and_the_text_goes_on(index: int, mode: str) -> None:
    sampling = Sampling(temp=0.9, seed=5, repeat_penalty=1.1)
    with local(stages=2, stretch=Stretch(0.01), mode=mode) as p:
        expected = [(t.id, t.logprob) for t in p.generate(PROMPT, max_tokens=60, sampling=sampling)]
        p.forget()
        told: list[str] = []
        p.on_notice = told.append
        before = stage_pid(p, index)
        generation = p.generate(PROMPT, max_tokens=60, sampling=sampling)
        tokens = []
        for n, token in enumerate(generation):
            tokens.append((token.id, token.logprob))
            if n in (10, 40):
                os.kill(stage_pid(p, index), signal.SIGKILL)
        result = generation.result
        assert result is not None and tokens == expected  # bit for bit: computed in the same batches
        name = f"Stage {index} (layers {6 * index}-{6 * index + 5})"
        assert told == 2 * [
            f"{name} was killed by signal 9 and said nothing. Starting it again.",
            f"{name} is back, and the text goes on.",
        ]
        assert result.warnings == told[1::2]
        assert stage_pid(p, index) != before and len(p.processes) == len(worker_pids()) == 3 - (mode == "off")
        p.forget()
        assert p.generate(PROMPT, max_tokens=60, sampling=sampling).wait().token_ids == result.token_ids
    assert not worker_pids() and not folders()


def test_stages_that_die_together_at_rest_and_in_a_prompt_come_back() -> None:
    with local(stages=3, stretch=Stretch(0.005)) as p:
        long = PROMPT * 30
        first = text_of(p)
        expected = p.generate(long, max_tokens=8, sampling=GREEDY).wait().text
        p.forget()
        for index in (0, 2):
            os.kill(stage_pid(p, index), signal.SIGKILL)
        assert text_of(p) == first
        generation = p.generate(long, max_tokens=8, sampling=GREEDY)
        time.sleep(0.05)
        for index in (0, 1, 2):
            os.kill(stage_pid(p, index), signal.SIGKILL)
        assert generation.wait(30).text == expected


def test_a_stage_that_dies_again_and_again_ends_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    with local(stages=2, stretch=SLOW) as p:
        pids = worker_pids()
        restart = p._session.restart
        monkeypatch.setattr(
            p._session, "restart", lambda *given: (restart(*given), os.kill(stage_pid(p, 1), signal.SIGKILL))
        )
        generation = iter(p.generate(PROMPT, max_tokens=200, sampling=GREEDY))
        next(generation)
        os.kill(stage_pid(p, 1), signal.SIGKILL)
        with pytest.raises(PipeInferError, match=r"Stage 1 \(layers 6-11\) was killed by signal 9") as caught:
            list(generation)
        assert not isinstance(caught.value, UserError)
        with pytest.raises(PipeInferError, match="has ended: Stage"):
            p.generate(PROMPT)
        with pytest.raises(PipeInferError, match="Stage"):
            p.configure(mode="off")
        pids |= worker_pids()
    assert not any(alive(pid) for pid in pids)
    assert not folders()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (signal.SIGABRT, "was killed by signal 6; its last output: GGML_ASSERT(rows > 0) failed."),
        (signal.SIGBUS, "was killed by signal 7: a file that it reads became shorter, or the file system of the cache"),
    ],
)
def test_the_last_output_of_a_dead_stage_is_shown(how: signal.Signals, said: str) -> None:
    with local(stages=1, draft=None) as p:
        process = p.driver._stages[0].process
        assert process is not None
        with process._log.open("a") as log:
            log.write("GGML_ASSERT(rows > 0) failed\n" + "".join(f"#{n} 0x7f in frame ()\n" for n in range(9)))
        told: list[str] = []
        p.on_notice = told.append
        expected = text_of(p, n=24)
        p.forget()
        generation = p.generate(PROMPT, max_tokens=24, sampling=GREEDY)
        os.kill(process.pid, how)
        assert generation.wait(60).text == expected
        assert said in told[0]


def test_a_stage_that_is_frozen_is_told_and_goes_on_where_it_was() -> None:
    """Silence is not death: a process of ours lives as long as its pid does."""
    with local(stages=2, draft=None, stretch=Stretch(0.01)) as p:
        expected = text_of(p, n=60)
        told: list[tuple[float, str]] = []
        p.on_notice = lambda text: told.append((time.monotonic(), text))
        generation = p.generate(PROMPT, max_tokens=60, sampling=GREEDY)
        next(generation)
        pid = stage_pid(p, 1)
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: told, 3.0)
        assert f"Stage 1 (layers 6-11) is suspended: wake it with kill -CONT {pid}." == told[0][1]
        time.sleep(max(0.0, stopped + 4.0 - time.monotonic()))
        assert not generation.done and len(told) == 1
        os.kill(pid, signal.SIGCONT)
        assert generation.wait(20).text == expected
        assert told[1][1] == "Stage 1 (layers 6-11) answers again."


def test_a_pipeline_with_a_frozen_stage_can_be_closed() -> None:
    with local(stages=2, draft=None, stretch=SLOW) as p:
        pids = list(worker_pids())
        generation = iter(p.generate(PROMPT, max_tokens=200, sampling=GREEDY))
        next(generation)
        os.kill(stage_pid(p, 1), signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert not any(alive(pid) for pid in pids)


def test_a_run_that_goes_nowhere_has_a_deadline() -> None:
    """A stage that answers and returns no run."""
    with local(stages=2, draft=None, patience=1.0) as p:
        link = p.driver._stages[0].runs
        send, link.send = link.send, lambda *_: 0  # type: ignore[method-assign]
        began = time.monotonic()
        with pytest.raises(PipeInferError, match=r"Stage 0 .* answers, but run 1 has not come from it for 6 s"):
            p.generate(PROMPT, max_tokens=20, sampling=GREEDY).wait(20)
        assert 5 < time.monotonic() - began < 9
        link.send = send  # type: ignore[method-assign]


def test_a_stage_that_is_frozen_while_it_starts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeinfer_cpp.cluster.launch import Process

    def start(self: Process, *given: object) -> None:
        original(self, *given)  # type: ignore[arg-type]
        os.kill(self.pid, signal.SIGSTOP)

    original = Process.__init__
    monkeypatch.setattr(Process, "__init__", start)
    began = time.monotonic()
    with pytest.raises(PipeInferError, match=r"Stage 0 \(layers 0-11\) was suspended before it was ready"):
        local(stages=1, draft=None)
    assert time.monotonic() - began < 5
    assert not worker_pids()


@pytest.mark.parametrize(
    ("mode", "how"), [("async", signal.SIGKILL), ("sync", signal.SIGKILL), ("sync", signal.SIGSTOP)]
)
def test_without_its_draft_worker_a_generation_goes_on(mode: str, how: signal.Signals) -> None:
    with local(stages=2, stretch=Stretch(0.01), mode=mode) as p:
        (draft,) = of_role("draft")
        generation = p.generate(PROMPT, max_tokens=24, sampling=GREEDY)
        for n, _ in enumerate(generation, 1):
            if n == 5:
                os.kill(draft, how)
        first = generation.result
        assert first is not None
        assert first.n_generated == 24
        assert len(first.warnings) == 1
        assert "draft worker" in first.warnings[0] and "without speculation" in first.warnings[0]
        again = p.generate(PROMPT, max_tokens=24, sampling=GREEDY).wait()
        assert again.text == first.text and again.warnings == first.warnings
        p.configure(mode="off")
        assert text_of(p, n=24) == again.text
    assert not alive(draft)


def test_a_draft_worker_that_answers_again_is_taken_up_again() -> None:
    with local(stages=2, stretch=Stretch(0.01), mode="sync") as p:
        first = p.generate(PROMPT, max_tokens=24, sampling=GREEDY).wait()
        (draft,) = of_role("draft")
        os.kill(draft, signal.SIGSTOP)
        without = p.generate(PROMPT, max_tokens=24, sampling=GREEDY).wait()
        assert without.warnings and not without.draft.accepted
        p.configure(mode="off")  # it stays given up through other settings
        p.configure(mode="sync")
        os.kill(draft, signal.SIGCONT)
        until(lambda: not p.driver._draft_watch.quiet, 5)
        again = p.generate(PROMPT, max_tokens=24, sampling=GREEDY).wait()
        assert not again.warnings and again.draft.accepted == first.draft.accepted > 0
        assert first.text == without.text == again.text
        os.kill(draft, signal.SIGKILL)
        gone = p.generate(PROMPT, max_tokens=24, sampling=GREEDY).wait()
        assert gone.text == first.text and "without speculation" in gone.warnings[0]


def test_a_draft_worker_that_dies_at_rest_is_noticed() -> None:
    with local(stages=1) as p:
        first = text_of(p)
        (draft,) = of_role("draft")
        os.kill(draft, signal.SIGKILL)
        for mode in ("off", "async", "sync"):
            p.configure(mode=mode)
            result = p.generate(PROMPT, max_tokens=24, sampling=GREEDY).wait()
            assert result.text == first and result.draft.accepted == 0


COORDINATOR = f"""
import sys, time
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.net.messages import Stretch

with Pipeline.local(target={str(TARGET)!r}, draft={str(DRAFT)!r}, stages=2, stretch=Stretch(0.03)) as p:
    for token in p.generate({PROMPT!r}, max_tokens=int(sys.argv[1]), sampling=Sampling(temp=0)):
        print(token.id, flush=True)
"""


def start_coordinator(n_tokens: int = 200) -> subprocess.Popen[str]:
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", COORDINATOR, str(n_tokens)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_coordinator(how: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    process = start_coordinator()
    assert process.stdout is not None
    process.stdout.readline()
    workers = worker_pids(process.pid)
    assert sorted(workers.values()) == ["draft", "stage", "stage"]
    process.send_signal(how)
    took = until(lambda: not any(alive(pid) for pid in workers), 2)
    process.wait(5)
    until(lambda: not left_by(process.pid), 2)  # its folder too
    process.stdout.close()
    capfd.readouterr()
    print(f"{how.name}: workers gone after {1000 * took:.0f} ms")


def test_a_suspended_coordinator_goes_on_where_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-Z, then fg: local stages wait."""
    process = start_coordinator(30)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.0)  # longer than a heartbeat may take
    process.send_signal(signal.SIGCONT)
    count = sum(1 for _ in process.stdout)
    process.stdout.close()
    assert process.wait(30) == 0, capfd.readouterr().err
    assert count == 29


def test_two_pipelines_at_once_in_two_processes() -> None:
    other = start_coordinator()
    assert other.stdout is not None
    with local(stages=2) as p:
        first = text_of(p)
        other.stdout.readline()
        theirs = worker_pids(other.pid)
        assert not theirs.keys() & worker_pids().keys()
        assert text_of(p) == first
    assert all(alive(pid) for pid in theirs)  # closing ours left them alone
    other.kill()
    other.wait()
    other.stdout.close()


def test_a_pipeline_that_cannot_open_leaves_nothing(tmp_path: Path) -> None:
    threads = threading.active_count()
    files = len(os.listdir("/proc/self/fd"))
    bad = tmp_path / "draft.gguf"
    bad.write_bytes(DRAFT.read_bytes()[:200_000])
    with pytest.raises(UserError, match=r"draft\.gguf"):
        local(stages=2, draft=bad)
    with pytest.raises(UserError, match="stage"):
        local(stages=13)
    # The headers are fine and llama.cpp itself refuses, when all processes run already.
    with pytest.raises(UserError, match=r"draft\.gguf|draft worker") as caught:
        broken = bytearray(DRAFT.read_bytes())
        at = broken.index(b"attention.head_count\0"[:-1]) + len(b"attention.head_count") + 4
        broken[at : at + 4] = (7).to_bytes(4, "little")
        bad.write_bytes(bytes(broken))
        local(stages=2, draft=bad)
    assert "ipc:" not in str(caught.value) and "refuses" in str(caught.value)
    assert not worker_pids()
    assert not folders()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= files + 1


def test_settings_cannot_change_within_a_generation() -> None:
    with local(stages=1, stretch=SLOW) as p:
        generation = iter(p.generate(PROMPT, max_tokens=30, sampling=GREEDY))
        next(generation)
        with pytest.raises(PipeInferError, match="between generations"):
            p.configure(mode="off")
        with pytest.raises(PipeInferError, match="under way"):
            p.generate(PROMPT)
        assert len(list(generation)) >= 28  # and it goes on


def test_closing_within_a_generation_ends_whoever_waits() -> None:
    p = local(stages=2, stretch=SLOW)
    generation = p.generate(PROMPT, max_tokens=300, sampling=GREEDY)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            generation.wait()
        except PipeInferError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    began = time.monotonic()
    p.close()
    thread.join(2)
    assert not thread.is_alive() and "closed" in str(caught[0])
    assert time.monotonic() - began < 2
    assert not worker_pids()
    p.close()  # twice is once
    with pytest.raises(PipeInferError):
        p.generate(PROMPT)
    with pytest.raises(PipeInferError):
        p.configure(mode="off")


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_a_command_whose_stage_is_frozen(presses: int, tmp_path: Path) -> None:
    what = ["generate", "--pair", "demo", "--stages", "2", "--mode", "off", "-n", "900", PROMPT]
    log = tmp_path / "said"
    with log.open("wb") as output:
        process = subprocess.Popen([*COMMAND, *what], stdout=subprocess.PIPE, stderr=output, env=ENV)
    assert process.stdout is not None
    try:
        process.stdout.read(5)
        os.kill(max(worker_pids(process.pid)), signal.SIGSTOP)
        for _ in range(presses):
            time.sleep(0.5)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
        assert time.monotonic() - began < 1.5
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert "Traceback" not in log.read_text() and not left_by(process.pid)
