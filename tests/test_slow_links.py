"""Stages behind a real TCP proxy that is slow, stalls, or swallows everything."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_helpers import GREEDY, PROMPT, HandStage, free_port, hand_stages, local, text_of, until

from pipeinfer_cpp.cluster.plan import Plan
from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.net.messages import Stretch


class Proxy:
    """Passes bytes on to `port`, at most `rate` bytes a second towards it; `stalled`: nothing passes, either way."""

    def __init__(self, port: int, rate: float = 1e9) -> None:
        self.rate, self.stalled, self.passed = rate, threading.Event(), 0
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [near, far]
                for one, other, rate in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._pass, args=(one, other, rate), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, limited: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(8192):
                while self.stalled.is_set():
                    time.sleep(0.01)
                if limited:
                    self.passed += len(data)
                    time.sleep(len(data) / self.rate)
                other.sendall(data)

    def close(self) -> None:
        self.stalled.clear()
        for each in [self._listener, *self._sockets]:
            each.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[HandStage]]:
    with hand_stages(tmp_path_factory.mktemp("slow"), 2) as stages:
        yield stages
        assert all(s.process.poll() is None for s in stages), [s.said for s in stages]


@pytest.fixture
def proxy(pair: list[HandStage]) -> Iterator[Proxy]:
    proxy = Proxy(int(pair[1].address.rpartition(":")[2]))
    yield proxy
    proxy.close()


@contextlib.contextmanager
def between(pair: list[HandStage], proxy: Proxy, monkeypatch: pytest.MonkeyPatch, **options: object):  # type: ignore[no-untyped-def]
    """A pipeline whose hidden states go from stage 0 to stage 1 through the proxy; nothing else does."""
    orders = Plan.orders
    monkeypatch.setattr(Plan, "orders", lambda self, there, *rest: orders(self, [there[0], proxy.address], *rest))
    with local(stages=[stage.address for stage in pair], draft=None, **options) as p:
        yield p


LONG = PROMPT + " and then there was" * 12


def test_a_message_may_take_longer_than_any_heartbeat(
    pair: list[HandStage], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk's hidden states take longer than a run without any progress may: each piece of them is progress."""
    with between(pair, proxy, monkeypatch, patience=1.0) as p:
        expected = text_of(p, LONG, n=6)
        p.forget()
        before = proxy.passed
        proxy.rate = 12_000
        began = time.monotonic()
        assert p.generate(LONG, max_tokens=6, sampling=GREEDY).wait(60).text == expected
        print(f"{proxy.passed - before} bytes in {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began > 7  # six times the patience, and more


def test_a_stall_is_no_loss(pair: list[HandStage], proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with between(pair, proxy, monkeypatch, stretch=Stretch(0.01)) as p:
        expected = text_of(p, n=40)
        p.forget()
        generation = p.generate(PROMPT, max_tokens=40, sampling=GREEDY)
        next(generation)
        proxy.stalled.set()
        time.sleep(4.0)
        assert not generation.done
        proxy.stalled.clear()
        assert generation.wait(20).text == expected


def test_a_stage_that_is_cut_off_from_the_next_says_so(
    pair: list[HandStage], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bytes on their way, and no end of the connection that anyone could see."""
    with between(pair, proxy, monkeypatch, patience=2.0) as p:
        generation = p.generate(LONG, max_tokens=200, sampling=GREEDY)
        next(generation)
        proxy.stalled.set()
        cut = time.monotonic()
        with pytest.raises(PipeInferError, match=f"Stage 0 .*has heard nothing from the next stage, {proxy.address}"):
            generation.wait(20)
        assert time.monotonic() - cut < 6


def test_a_coordinator_that_stalls_is_kept(pair: list[HandStage], tmp_path: Path) -> None:
    """All that the coordinator and a stage say stops for 4 s: longer than its patience is too long, else nothing."""
    proxies = [Proxy(int(stage.address.rpartition(":")[2])) for stage in pair]
    try:
        with local(stages=[proxies[0].address, pair[1].address], draft=None, stretch=Stretch(0.01)) as p:
            told: list[str] = []
            p.on_notice = told.append
            expected = text_of(p, n=40)
            p.forget()
            generation = p.generate(PROMPT, max_tokens=40, sampling=GREEDY)
            next(generation)
            proxies[0].stalled.set()
            until(lambda: told, 3.0)
            time.sleep(2.0)
            assert "does not answer; it has 10 s" in told[0]
            proxies[0].stalled.clear()
            assert generation.wait(20).text == expected
            assert "answers again" in told[1]
        with local(stages=[proxies[0].address, pair[1].address], draft=None, patience=2.0) as p:
            proxies[0].stalled.set()
            with pytest.raises(PipeInferError, match=r"Stage 0 .*silent for 2 s .*patience"):
                p.generate(PROMPT, max_tokens=40, sampling=GREEDY).wait(20)
    finally:
        for each in proxies:
            each.close()


def test_what_listens_and_never_speaks(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        began = time.monotonic()
        with pytest.raises(PipeInferError, match="does not answer"):
            local(stages=[f"tcp://127.0.0.1:{listener.getsockname()[1]}"], draft=None)
        assert time.monotonic() - began < 8
