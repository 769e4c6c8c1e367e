"""Waiting on sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pipeinfer_cpp.net.sockets import ACTIVE_S, Network, Selector, Wakeup


@pytest.fixture
def wakeup() -> Iterator[Wakeup]:
    with Network() as network:
        wakeup = Wakeup(network.context, "test")
        yield wakeup
        wakeup.close()


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("seconds", [-1.0, -0.002, 0.0, 0.004])
def test_a_wait_ends(wakeup: Wakeup, active: bool, seconds: float) -> None:
    """A deadline that has passed is no wait at all; for ZeroMQ a negative time is for ever."""
    selector = Selector([wakeup])
    for _ in range(20):
        assert selector.wait(seconds, active) == []


@pytest.mark.parametrize("active", [True, False])
def test_what_comes_ends_a_wait(wakeup: Wakeup, active: bool) -> None:
    selector = Selector([wakeup])
    for _ in range(30):
        timer = threading.Timer(ACTIVE_S / 3, wakeup)
        timer.start()
        began = time.monotonic()
        assert selector.wait(5.0, active) == [wakeup]
        assert time.monotonic() - began < 1.0
        wakeup.drain()
        timer.join()
    wakeup()
    assert selector.wait(0.0, active) == [wakeup]
