"""A generation and its readers: threads, event loops, the garbage collector, and arguments of all kinds."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import GREEDY, PROMPT, alive, local, until, worker_pids

from pipeinfer_cpp import Generation, PipeInferError, Pipeline, Sampling, UserError
from pipeinfer_cpp.net.messages import Stretch

N = 16


@pytest.fixture(scope="module")
def p() -> Iterator[Pipeline]:
    with local(stages=2, draft=None, stretch=Stretch(0.01)) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def text(p: Pipeline) -> str:
    return p.generate(PROMPT, max_tokens=N, sampling=GREEDY).wait().text


def begin(p: Pipeline, n: int = N) -> Generation:
    return p.generate(PROMPT, max_tokens=n, sampling=GREEDY)


def works(p: Pipeline, text: str) -> None:
    """It generates as ever, and soon."""
    began = time.monotonic()
    assert begin(p).wait(10).text == text
    assert time.monotonic() - began < 5


def within(seconds: float, what: Callable[[], Any]) -> Any:
    """What it returns or raises, in a thread of its own, in time."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(what())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"not within {seconds} s"
    return out[0]


def test_every_way_to_read(p: Pipeline, text: str) -> None:
    assert "".join(token.text for token in begin(p)) == text
    generation = begin(p)
    assert [next(generation).text for _ in range(3)] == [token.text for token in islice(begin_again(generation), 3)]
    generation.close()

    async def read() -> str:
        return "".join([token.text async for token in begin(p)])

    assert asyncio.run(read()) == text
    generation = begin(p)
    assert generation.result is None and not generation.done
    first, second = (within(5, lambda: "".join(t.text for t in generation)) for _ in range(2))
    assert first == second == text and generation.done and generation.result is not None
    works(p, text)


def begin_again(generation: Generation) -> Iterator[Any]:
    return iter(generation)


def test_a_second_one_is_refused_at_once_while_the_first_runs(p: Pipeline, text: str) -> None:
    generation = begin(p)
    next(generation)
    with pytest.raises(PipeInferError, match="under way"):
        begin(p)
    with pytest.raises(PipeInferError, match="under way"):
        p.configure(draft_max=2)
    assert generation.wait().text == text


def test_leaving_early(p: Pipeline, text: str) -> None:
    for _ in range(2):
        for n, _token in enumerate(begin(p, 200)):
            if n == 3:
                break
        works(p, text)
    with pytest.raises(ZeroDivisionError):
        for _token in begin(p, 200):
            raise ZeroDivisionError
    works(p, text)
    generation = begin(p, 200)
    next(generation)
    generation.close()
    generation.close()
    assert generation.done and generation.result is not None and generation.result.finish_reason == "cancelled"
    works(p, text)

    async def some() -> int:
        n = 0
        async for _token in begin(p, 200):
            n += 1
            if n == 3:
                break
        return n

    assert asyncio.run(some()) == 3
    works(p, text)


def test_what_nobody_reads_is_cancelled_when_it_is_dropped(p: Pipeline, text: str) -> None:
    dropped = weakref.ref(begin(p, 900))
    assert dropped() is None
    works(p, text)
    kept = begin(p, 900)
    assert kept
    del kept
    works(p, text)


def test_another_thread_cancels(p: Pipeline, text: str) -> None:
    generation = begin(p, 900)
    reader: list[int] = []
    thread = threading.Thread(target=lambda: reader.append(sum(1 for _ in generation)))
    thread.start()
    time.sleep(0.2)
    within(3, generation.cancel)
    thread.join(3)
    assert not thread.is_alive() and 0 < reader[0] < 900
    works(p, text)


def test_the_driver_s_thread_may_collect_a_half_read_one(p: Pipeline, text: str) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self
            self.reader = iter(begin(p, 900))
            next(self.reader)

    gc.disable()
    try:
        Cycle()
        p.driver._command(gc.collect)
        turn = p._line.job
        assert turn is not None and until(lambda: turn.stopping, 5) < 5
    finally:
        gc.enable()
    works(p, text)


def test_a_pipeline_that_is_collected_there_ends() -> None:
    before = set(worker_pids())
    pipeline = local(stages=1, draft=None)
    driver = pipeline.driver
    (own,) = set(worker_pids()) - before
    cycle: list[Any] = [pipeline]
    cycle.append(cycle)
    gc.disable()
    try:
        del pipeline, cycle
        driver._command(gc.collect)
        until(lambda: own not in worker_pids(), 5)
    finally:
        gc.enable()


def test_a_closed_pipeline_refuses_and_nothing_aborts() -> None:
    pipeline = local(stages=1, draft=None)
    generation = begin(pipeline, 900)
    pipeline.close()
    with pytest.raises(PipeInferError, match="closed"):
        generation.wait()
    generation.close()
    vocabulary = pipeline.vocabulary
    for use in (lambda: vocabulary.tokenize("a"), lambda: vocabulary.name(1)):
        with pytest.raises(PipeInferError):
            use()
    with pytest.raises(PipeInferError, match=r"^This pipeline has ended: This pipeline was closed\.$"):
        begin(pipeline)


@pytest.mark.parametrize("prompt", [np.array([40, 41, 42]), np.array([40, 41], np.uint8), (40, 41), range(40, 43)])
def test_prompts_of_every_kind(p: Pipeline, prompt: Any) -> None:
    result = p.generate(prompt, max_tokens=2, sampling=GREEDY).wait()
    assert result.n_prompt == len(prompt)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temp": np.float32(0.5), "top_k": np.int64(5)},
        {"temp": 1e-38},
        {"seed": 2**64 - 1},
        Sampling(temp=np.float32(0.7), logit_bias={np.int32(5): np.float32(1)}),  # type: ignore[arg-type,dict-item]
    ],
)
def test_numbers_of_every_kind(p: Pipeline, text: str, sampling: Any) -> None:
    assert p.generate(PROMPT, max_tokens=4, sampling=sampling).wait().n_generated
    works(p, text)


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"sampling": {"seed": 2**64}}, UserError, "seed"),
        ({"sampling": {"seed": -2}}, UserError, "seed"),
        ({"sampling": {"top_k": 2**70}}, UserError, "top_k"),
        ({"sampling": {"temp": float("nan")}}, UserError, "temp"),
        ({"sampling": {"temp": "hot"}}, TypeError, "temp"),
        ({"sampling": {"warmth": 1}}, TypeError, "warmth"),
        ({"sampling": 3}, TypeError, "sampling"),
        ({"max_tokens": 2.5}, TypeError, "max_tokens"),
        ({"stop": [3]}, TypeError, "stop"),
        ({"stop": 5}, TypeError, "^stop: text or a list of texts is needed, not 5$"),
        ({"prompt": "a\ud800b"}, UserError, "^prompt: the text holds half a character"),
        ({"prompt": [{"role": "user", "content": "Hello"}]}, TypeError, "prompt"),
        ({"prompt": ["a"]}, TypeError, "prompt"),
        ({"prompt": [1 << 40]}, UserError, "vocabulary"),
    ],
)
def test_what_cannot_be_is_refused_and_harms_nothing(
    p: Pipeline, text: str, options: dict[str, Any], kind: type[Exception], match: str
) -> None:
    with pytest.raises(kind, match=match):
        p.generate(**{"prompt": PROMPT, **options})
    works(p, text)


@pytest.mark.parametrize(
    "changes", [{"branches": 4}, {"n_ctx": 100_000}, {"max_rows": 100}, {"mode": "fast"}, {"foo": 1}]
)
def test_settings_that_the_stages_were_not_opened_for(p: Pipeline, text: str, changes: dict[str, Any]) -> None:
    before = p.settings
    with pytest.raises(UserError, match="|".join([*changes, "mode"])) as error:
        p.configure(**changes)
    assert "__init__" not in str(error.value)
    assert p.settings == before
    works(p, text)


def test_one_stop_string(p: Pipeline, text: str) -> None:
    word = text.split()[2]
    result = p.generate(PROMPT, max_tokens=N, sampling=GREEDY, stop=word).wait()
    assert result.text == text[: text.index(word)] and result.finish_reason == "stop"


def test_a_stop_string_that_is_a_control_token(p: Pipeline) -> None:
    (control,) = p.vocabulary.tokenize("<|im_start|>")
    sampling = Sampling(temp=0, logit_bias={control: 100.0})
    result = p.generate(PROMPT, max_tokens=N, sampling=sampling, stop="<|im_start|>").wait()
    assert (result.token_ids, result.text, result.finish_reason) == ([control], "", "stop")
    assert p.generate(PROMPT, max_tokens=3, sampling=sampling, stop="im_start").wait().n_generated == 3


def test_a_stop_string_that_the_last_token_completes(p: Pipeline, text: str) -> None:
    tokens = [token.text for token in begin(p, 5)]
    result = p.generate(PROMPT, max_tokens=5, sampling=GREEDY, stop=tokens[-1].strip()).wait()
    assert result.n_generated == 5 and result.finish_reason == "stop"


def test_a_forked_child_leaves_its_parent_s_pipeline_alone(text: str) -> None:
    before = set(worker_pids())
    with local(stages=1, draft=None) as pipeline:
        child = os.fork()
        if child == 0:
            try:
                pipeline.close()
                time.sleep(5)
            finally:
                os._exit(0)
        try:
            assert begin(pipeline).wait(10).text == text
            (own,) = set(worker_pids()) - before
            os.kill(own, 0)
            pipeline.processes[0]._process.stdin.close()  # as if this process had ended
            until(lambda: own not in worker_pids() or not alive(own), 4)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_task_that_is_cancelled_or_out_of_time_ends_its_generation(p: Pipeline, text: str) -> None:
    begun: list[Generation] = []

    async def read() -> None:
        begun.append(begin(p, 900))
        async for _token in begun[-1]:
            pass

    async def cancelled() -> None:
        task = asyncio.create_task(read())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(read(), 0.3)

    asyncio.run(cancelled())
    for generation in begun:
        assert generation.wait(3).finish_reason == "cancelled" and generation.wait().n_generated
    works(p, text)


def test_many_threads_begin_and_one_gets_it(p: Pipeline, text: str) -> None:
    def one() -> str:
        try:
            return begin(p).wait().text
        except PipeInferError as error:
            return str(error)

    out: list[str] = []
    threads = [threading.Thread(target=lambda: out.append(one())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert out.count(text) >= 1 and all(said == text or "under way" in said for said in out) and len(out) == 8
    works(p, text)


def test_an_interpreter_that_ends_without_close_leaves_nothing() -> None:
    """In the middle of a generation, with a reader in another thread."""
    code = (
        "import contextlib, threading; from pipeline_helpers import *; from pipeinfer_cpp import PipeInferError\n"
        "p = local(stages=2, draft=None); g = p.generate(PROMPT, max_tokens=900)\n"
        "def read():\n    with contextlib.suppress(PipeInferError):\n        list(iter(g))\n"
        "threading.Thread(target=read, daemon=True).start()\n"
        "next(g); print(*worker_pids())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    until(lambda: not any(alive(pid) for pid in pids), 5)


def test_a_busy_thread_costs_little_and_the_switch_interval_comes_back(p: Pipeline) -> None:
    """`scripts/busy_thread.py` measures it."""
    before = sys.getswitchinterval()
    within = [sys.getswitchinterval() for _ in p.generate(PROMPT, max_tokens=8, sampling=GREEDY)]
    assert min(within) < 0.001
    p.forget()  # behind the driver's last word on that turn
    assert sys.getswitchinterval() == pytest.approx(before)
    sys.setswitchinterval(0.02)
    try:
        p.generate(PROMPT, max_tokens=2, sampling=GREEDY).wait()
        p.forget()
        assert sys.getswitchinterval() == pytest.approx(0.02)
    finally:
        sys.setswitchinterval(before)
