"""A short storm of requests over a live server."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator

import pytest
from pipeline_helpers import GREEDY, ROOT, free_port, local, until

from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.server.app import Server, Settings
from pipeinfer_cpp.server.prompts import Prompts

CTX = 512


@contextlib.contextmanager
def serving(pipeline: Pipeline) -> Iterator[str]:
    """The pipeline's server in a thread of this process. Gives its address."""
    import uvicorn

    port = free_port()
    app = Server(pipeline, Settings(), Prompts(pipeline)).app
    web = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=3))
    thread = threading.Thread(target=web.run)
    thread.start()
    try:
        until(lambda: web.started, 20)
        yield f"http://127.0.0.1:{port}"
    finally:
        web.should_exit = True
        thread.join(20)


def test_nothing_is_wrong_in_a_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No 5xx, no text that differs from `generate`'s, and nothing left behind: every stage holds the conversations of
    the slots, and no more."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from storm import PROMPTS, Storm

    with local(stages=2, ctx=CTX, threads=1, slots=3) as p:
        with serving(p) as url:
            storm = Storm(url, tokens=12, rng=random.Random(2))
            asyncio.run(storm.run(60, 6))
            look_at_clients(url)
        assert not storm.wrong, str(storm)
        assert storm.compared > 20 and storm.statuses[400] and len(storm.asked) == 7, str(storm)
        for prompt in PROMPTS:
            p.forget()
            assert p.generate(prompt, max_tokens=12, sampling=GREEDY).wait().text == storm.expected[prompt]
        engine = p.driver.engine
        assert not engine.pool.taken and not engine.pipe.in_flight and not engine.pipe.ops
        own = tuple(len(slot.cached) - 1 for slot in engine.slots)
        assert len(p.driver.held) == 2
        for held in p.driver.held.values():
            assert held == own


def look_at_clients(url: str) -> None:
    """scripts/clients.py: figures of streams that came to their end, and of those for which there was no time."""
    from clients import PROMPTS, measure

    speed, share, texts, whole = measure(url, 4, 6, time.monotonic() + 60)
    assert speed > 0 and share >= 1 and whole and sorted(texts) == list(range(len(PROMPTS))) and all(texts.values())
    speed, _, texts, whole = measure(url, 4, 300, time.monotonic() + 0.5)
    assert speed >= 0 and not whole and not texts
