"""Stages started by hand, used by address: who may use them, when they are free again, what they refuse."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_helpers import (
    DRAFT,
    GREEDY,
    PROMPT,
    ROOT,
    TARGET,
    HandStage,
    Knock,
    alive,
    free_port,
    hand_stages,
    local,
    text_of,
    until,
    welcomed,
    worker_pids,
)

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf import Source, slice_plan, write_slice
from pipeinfer_cpp.net.messages import PROTOCOL, Cancel, Refuse, RunHeader, Stretch, Welcome
from pipeinfer_cpp.system.machine import Share, cores


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[HandStage]]:
    """Two stages that serve one coordinator after another; every test leaves them free."""
    with hand_stages(tmp_path_factory.mktemp("stages"), 2) as stages:
        yield stages
        assert all(s.process.poll() is None for s in stages), [s.said for s in stages]


def addresses(stages: list[HandStage]) -> list[str]:
    return [stage.address for stage in stages]


def is_free(stage: HandStage) -> bool:
    """A coordinator that comes now is welcome."""
    with Knock(stage.address) as knock:
        return welcomed(knock)


def test_one_coordinator_after_another(pair: list[HandStage]) -> None:
    with local(stages=2) as p:
        expected = text_of(p), text_of(p, PROMPT + " lived in")
    for mode in ("async", "off"):
        with local(stages=addresses(pair), mode=mode) as p:
            assert len(worker_pids()) == (mode != "off")  # the draft worker is ours, where there is any
            first = p.generate(PROMPT, max_tokens=24, sampling=GREEDY).wait()
            assert (first.text, text_of(p, PROMPT + " lived in")) == expected
            assert set(first.memory_mb) >= {"stage-0", "stage-1"}
            assert p.driver.held == {f"stage-{i}": (len(p.driver.engine.slots[0].cached) - 1, -1) for i in (0, 1)}
    assert pair[0].said.count("a coordinator has connected") >= 2
    assert all(s.process.poll() is None for s in pair)


def test_stages_by_hand_share_the_cores_of_one_machine(pair: list[HandStage], tmp_path: Path) -> None:
    """Two processes that each take all cores spin against each other: a hundred times slower."""
    with local(stages=addresses(pair)) as p:
        assert p.plan.share == Share(cores(), 3)
        said = threads_said(Share(cores(), 3).threads)
        assert until(lambda: all(said in s.said for s in pair), 3) < 3
    with local(stages=addresses(pair), draft=None, threads=2, exact=False):
        assert until(lambda: all(threads_said(2) in s.said for s in pair), 3) < 3
    own = HandStage(tmp_path / "own.log", more=("--threads", "1")).listen()
    try:
        with local(stages=[own.address], draft=None, threads=2, exact=False) as p:
            assert until(lambda: threads_said(1) in own.said, 3) < 3
            assert p.threads == [1]
    finally:
        own.close()


def threads_said(n: int) -> str:
    return f"computes with {n} thread{'s' if n > 1 else ''}\n"


def test_a_second_coordinator_is_refused_while_the_first_works(pair: list[HandStage]) -> None:
    with local(stages=addresses(pair), draft=None, stretch=Stretch(0.01)) as p:
        tokens = iter(p.generate(PROMPT, max_tokens=30, sampling=GREEDY))
        next(tokens)
        with pytest.raises(UserError, match="working for another coordinator") as caught:
            local(stages=addresses(pair), draft=None)
        assert pair[0].address in str(caught.value)
        assert len(list(tokens)) == 29  # undisturbed
    assert until(lambda: is_free(pair[0]), 3) < 3


def test_what_a_stranger_says_disturbs_nobody(pair: list[HandStage]) -> None:
    with local(stages=2, draft=None) as p:
        expected = text_of(p)
    with local(stages=addresses(pair), draft=None, stretch=Stretch(0.01)) as p:
        tokens = iter(p.generate(PROMPT, max_tokens=24, sampling=GREEDY))
        text = next(tokens).text
        with Knock(pair[1].address) as knock:
            answer = knock.hello("stage", session="guessed")
            assert isinstance(answer, Refuse) and "session" in answer.reason
            knock.link.send(RunHeader(2, "decode", (), (), ()))
            knock.link.send(Cancel(tuple(range(1, 500))))
            knock.link._socket.send(b"\xc1 no message")
            assert isinstance(knock.next(), Refuse)
            knock.link._socket.send_multipart([b"", b"\xff" * 1000, b"more", b"parts"])
        assert text + "".join(t.text for t in tokens) == expected


def test_garbage_on_the_port_does_not_end_a_stage(pair: list[HandStage]) -> None:
    rng = random.Random(1)
    host, port = pair[0].address.removeprefix("tcp://").split(":")
    for head in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff\0\0\0\0\0\0\0\x01\x7f", b"", b"\0" * 64):
        with socket.create_connection((host, int(port)), 2) as s:
            s.sendall(head + rng.randbytes(5000))
    assert pair[0].process.poll() is None
    with local(stages=addresses(pair), draft=None) as p:
        assert text_of(p, n=4)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"protocol": PROTOCOL + 1}, f"protocol {PROTOCOL + 1} there, {PROTOCOL} here"),
        ({"package": "9.9.9"}, "pipeinfer_cpp 9.9.9 there"),
        ({"llama": "0.1.0"}, "llama-cpp-python 0.1.0 there"),
    ],
)
def test_another_version_is_refused_with_one_sentence(
    pair: list[HandStage], changed: dict[str, object], sentence: str
) -> None:
    for role in ("coordinator", "stage"):
        with Knock(pair[0].address) as knock:
            answer = knock.hello(role, **changed)
            assert isinstance(answer, Refuse) and answer.user
            assert sentence in answer.reason and "install the same version on both machines" in answer.reason
    assert is_free(pair[0])


def test_another_version_there_is_the_users_to_mend(pair: list[HandStage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeinfer_cpp.cluster.peer.llama_version", lambda: "0.0.1")
    with pytest.raises(UserError, match=r"Stage 0 .*tcp://.* refuses: llama-cpp-python 0\.0\.1 there"):
        local(stages=addresses(pair), draft=None)
    assert not worker_pids()


def test_a_stage_with_another_model_refuses(tmp_path: Path) -> None:
    with hand_stages(tmp_path, 1, own=DRAFT) as (stage,):
        with pytest.raises(UserError, match=r"no copy of demo-target-q8_0\.gguf .*another model") as caught:
            local(stages=[stage.address], draft=None)
        assert stage.address in str(caught.value) and "\n" not in str(caught.value)
        assert until(lambda: is_free(stage), 3) < 3


def test_nothing_there_is_said_within_some_seconds() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(UserError, match=f"{address} does not answer"):
        local(stages=[address], draft=None)
    assert time.monotonic() - began < 7


def test_something_else_there_is_said_too() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
        with pytest.raises(UserError, match=address):
            local(stages=[address], draft=None)


@pytest.mark.parametrize(
    "address", ["10.0.0.5:7711", "tcp://host", "tcp://host:0", "tcp://:7711", "ipc://" + "x" * 120]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match="is not an address"):
        local(stages=[address], draft=None)
    assert not worker_pids()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_stages_with_addresses_of_ipv6(tmp_path: Path) -> None:
    with hand_stages(tmp_path, 2, host="[::1]") as stages:
        assert all("waiting for a coordinator at tcp://[::1]:" in stage.said for stage in stages)
        with local(stages=[stage.address for stage in stages], draft=None) as pipeline:
            here = text_of(pipeline, n=8)
    with local(stages=2, draft=None) as pipeline:
        assert text_of(pipeline, n=8) == here


def test_a_port_in_use(pair: list[HandStage], tmp_path: Path) -> None:
    second = HandStage(tmp_path / "log", port=int(pair[0].address.rpartition(":")[2]))
    assert second.process.wait(20) == 2
    assert "is in use" in second.said and len(second.said.strip().splitlines()) <= 3


def test_a_stage_elsewhere_that_is_started_again_in_time_is_used_again(tmp_path: Path) -> None:
    with hand_stages(tmp_path, 2) as stages:
        with local(stages=addresses(stages), stretch=Stretch(0.02), patience=20.0) as p:
            expected = text_of(p, n=40)
            p.forget()
            told: list[str] = []
            p.on_notice = told.append
            generation = p.generate(PROMPT, max_tokens=40, sampling=GREEDY)
            tokens = iter(generation)
            next(tokens)
            port = int(stages[1].address.rpartition(":")[2])
            stages[1].close()
            until(lambda: told, 2)
            time.sleep(0.5)
            again = HandStage(tmp_path / "again.log", port=port)
            try:
                assert generation.wait(60).text == expected
            finally:
                again.close()
        assert told[0].endswith("is gone: see what it printed on its machine. Waiting for it to come back.")
        assert told[1] == "Stage 1 (layers 6-11) is back, and the text goes on."


def test_a_stage_that_is_killed_elsewhere_is_named_within_2_s_and_given_up_with_patience(tmp_path: Path) -> None:
    with hand_stages(tmp_path, 2) as stages:
        with local(stages=addresses(stages), stretch=Stretch(0.02), patience=1.0) as p:
            told: list[float] = []
            p.on_notice = lambda text: told.append(time.monotonic())
            tokens = iter(p.generate(PROMPT, max_tokens=200, sampling=GREEDY))
            next(tokens)
            stages[1].process.kill()
            killed = time.monotonic()
            with pytest.raises(PipeInferError, match=f"Stage 1 .*{stages[1].address} is gone"):
                list(tokens)
            took = told[0] - killed
            assert took < 2 and time.monotonic() - killed < 5
        assert until(lambda: is_free(stages[0]), 3) < 3  # the other one is free again
    assert not worker_pids()
    print(f"death of a remote stage noticed after {1000 * took:.0f} ms")


COORDINATOR = """
import sys
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling
with Pipeline.local(target=sys.argv[1], stages=sys.argv[2].split(","), patience=2.0) as p:
    for token in p.generate(sys.argv[3], max_tokens=800, sampling=Sampling(temp=0)):
        print(token.id, flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_coordinator_that_vanishes_frees_its_stages(pair: list[HandStage], how: signal.Signals) -> None:
    """Killed: its connection closes. Stopped stands for a machine that was switched off: it falls silent."""
    process = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, str(TARGET), ",".join(addresses(pair)), PROMPT],
        stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert not is_free(pair[0])
    process.send_signal(how)
    try:
        limit = 3.0 if how == signal.SIGKILL else 3.0 + 2.0
        took = until(lambda: is_free(pair[0]) and is_free(pair[1]), limit)
        print(f"{how.name}: stages free after {took:.1f} s")
        with local(stages=addresses(pair), draft=None) as p:
            assert text_of(p, n=4)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_stage_that_cannot_reach_the_next_says_so(pair: list[HandStage], tmp_path: Path) -> None:
    """The next stage's address must hold on the machine of the one before it."""
    with Knock(pair[0].address) as knock:
        assert welcomed(knock)
        nowhere = f"tcp://127.0.0.1:{free_port()}"
        with pytest.MonkeyPatch.context() as patch:
            from pipeinfer_cpp.cluster.plan import Plan

            orders = Plan.orders
            patch.setattr(Plan, "orders", lambda self, there, *rest: orders(self, [there[0], nowhere], *rest))
            knock.link.close()
            until(lambda: is_free(pair[0]), 3)
            with pytest.raises(UserError, match=f"cannot reach the next stage at {nowhere}"):
                local(stages=addresses(pair), draft=None)
        knock.link = Knock(pair[0].address).link
    assert until(lambda: is_free(pair[0]), 3) < 3


def test_a_new_session_hears_nothing_of_the_old_one(pair: list[HandStage]) -> None:
    """Run numbers begin anew, so a cancellation of the old session must not skip a run of the new one."""
    with local(stages=2) as p:
        expected = text_of(p)
    for _ in range(3):
        with local(stages=addresses(pair), stretch=Stretch(0.005)) as p:
            generation = iter(p.generate("The old king", max_tokens=100, sampling=GREEDY))
            for _ in range(5):
                next(generation)
            # closed in the middle: runs are under way, cancelled ones among them
        with local(stages=addresses(pair)) as p:
            assert text_of(p) == expected


def test_ctrl_c_ends_a_stage_and_its_coordinator_hears_of_it(tmp_path: Path) -> None:
    with hand_stages(tmp_path, 1) as (stage,):
        with local(stages=[stage.address], draft=None, stretch=Stretch(0.02)) as p:
            tokens = iter(p.generate(PROMPT, max_tokens=200, sampling=GREEDY))
            next(tokens)
            stage.process.send_signal(signal.SIGINT)
            with pytest.raises(PipeInferError, match="is gone"):
                list(tokens)
        stage.process.wait(5)
        assert not alive(stage.process.pid) and "Traceback" not in stage.said


def test_a_stage_welcomes_once(pair: list[HandStage]) -> None:
    with Knock(pair[0].address) as first, Knock(pair[0].address) as second:
        assert isinstance(first.hello(session="a"), Welcome)
        assert isinstance(first.hello(session="a"), Welcome)  # said twice by the same one: no harm
        assert isinstance(second.hello(session="b"), Refuse)
    assert until(lambda: is_free(pair[0]), 3) < 3


def test_a_stage_whose_reader_went_away_serves_on() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "pipeinfer_cpp", "stage", "--listen", address, "--target", str(TARGET)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    try:
        assert process.stdout is not None and b"waiting" in process.stdout.readline()
        process.stdout.close()
        for _ in range(2):
            with local(stages=[address], draft=None) as p:
                assert text_of(p, n=4)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_an_address_of_runs_where_nobody_listens() -> None:
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as folder:
        address = f"ipc://{folder}/s"
        command = [sys.executable, "-m", "pipeinfer_cpp", "stage", "--listen", address, "--target", str(TARGET)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ, PYTHONPATH=str(ROOT)))
        try:
            until(lambda: Path(folder, "sr").exists(), 20)
            with local(stages=[address], draft=None) as p:  # as it should be
                text_of(p, n=2)
            os.unlink(f"{folder}/sr")
            with pytest.raises(UserError, match=rf"Stage 0 .*{folder}/s is ready, but nothing answers .*{folder}/sr"):
                local(stages=[address], draft=None)
        finally:
            process.kill()
            process.wait()


def test_stages_that_have_only_their_slices(tmp_path: Path) -> None:
    """The text is that of stages with the whole model, and a slice of other layers or another model is refused."""
    source = Source.open(TARGET)
    slices = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for path, layers in zip(slices, [(0, 6), (6, 12)], strict=True):
        write_slice(slice_plan(source, *layers), path, source_sha256=source.sha256())
    other = Source.open(DRAFT)
    write_slice(slice_plan(other, 0, 2), tmp_path / "other.gguf", source_sha256=other.sha256())
    with local(stages=2, draft=None) as p:
        expected = text_of(p)
    cache = str(tmp_path / "cache")
    given = [*slices, tmp_path / "other.gguf"]
    stages = [HandStage(tmp_path / f"{path.stem}.log", path, PIPEINFER_CACHE=cache) for path in given]
    try:
        a, b, c = (stage.listen().address for stage in stages)
        with local(stages=[a, b], draft=None) as p:
            assert text_of(p) == expected
        assert not list(Path(cache).glob("slices/*"))
        assert until(lambda: is_free(stages[0]) and is_free(stages[1]), 3) < 3
        with pytest.raises(UserError, match=r"\.gguf has layers .*, but this stage is asked for .*: .*the layers"):
            local(stages=[b, a], draft=None)
        assert until(lambda: is_free(stages[1]), 3) < 3
        with pytest.raises(UserError, match=r"other\.gguf \(a slice of another model"):
            local(stages=[c, b], draft=None)
    finally:
        for stage in stages:
            stage.close()
