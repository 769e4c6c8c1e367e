"""A short storm of requests over a live server."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from pipeline_helpers import GREEDY, ROOT, local
from serving import CTX, SMALL, serving


def test_nothing_is_wrong_in_a_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No 5xx, no text that differs from `generate`'s, nothing left behind."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from storm import PROMPTS, Storm

    with serving(tmp_path, *SMALL, "--slots", "3") as server:
        storm = Storm(server.url, tokens=12, rng=random.Random(2))
        asyncio.run(storm.run(60, 6))
    assert not storm.wrong, str(storm)
    assert storm.compared > 20 and storm.statuses[400] and len(storm.asked) == 7, str(storm)
    with local(stages=2, ctx=CTX, threads=1) as p:
        for prompt in PROMPTS:
            p.forget()
            assert p.generate(prompt, max_tokens=12, sampling=GREEDY).wait().text == storm.expected[prompt]
