"""What one API key has asked changes nothing for another: neither what is computed, nor how long it takes, nor what
the server says of itself."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pipeline_helpers import until
from serving import Server, serving

ANN, BOB = "key-of-ann", "key-of-bob"
WORDS = ("little", "red", "fox", "bear", "tree", "house", "went", "said", "happy", "big", "old", "tiny", "river", "hat")
TOKENS = 260
"""Of a long prompt, about; a hit in a cache saves most of the time it takes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    small = "--stages", "2", "--ctx-size", "512", "--threads", "1", "--slots", "2"
    with serving(tmp_path_factory.mktemp("keys"), *small, "--api-key", ANN, "--api-key", BOB) as server:
        yield server


@pytest.fixture
def ann(server: Server) -> Iterator[httpx.Client]:
    with server.client(ANN) as client:
        yield client


@pytest.fixture
def bob(server: Server) -> Iterator[httpx.Client]:
    with server.client(BOB) as client:
        yield client


def system(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=TOKENS))


def ask(client: httpx.Client, seed: int, **more: Any) -> dict[str, Any]:
    """The answer to a question behind a long system prompt, and `seconds`: until its first token."""
    messages = [{"role": "system", "content": system(seed)}, {"role": "user", "content": "Who?"}]
    body = {"messages": messages, "max_tokens": 1, "temperature": 0, **more}
    began = time.monotonic()
    answer = client.post("/v1/chat/completions", json=body)
    seconds = time.monotonic() - began
    assert answer.status_code == 200, answer.text
    until(lambda: not any(slot["is_processing"] for slot in client.get("/slots").json()), 5)
    return {**answer.json(), "seconds": seconds}


def computed(answer: dict[str, Any]) -> tuple[int, int]:
    """(tokens of the prompt that were computed, tokens of the prompt)"""
    usage, timings = answer["usage"], answer["timings"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == timings["cache_n"]
    assert timings["cache_n"] + timings["prompt_n"] == usage["prompt_tokens"]
    return timings["prompt_n"], usage["prompt_tokens"]


def test_a_beginning_is_shared_within_a_key_only(ann: httpx.Client, bob: httpx.Client) -> None:
    n, whole = computed(ask(ann, 1))
    assert n == whole > 250
    again, _ = computed(ask(ann, 1))
    assert again <= 64  # all but the last chunk
    for seed, slot in ((1, 0), (2, -1)):  # slots that Ann has, one after the other, and any
        for own in (0, 1):
            ask(ann, seed, id_slot=own)
        n, whole = computed(ask(bob, seed, id_slot=slot))
        assert n == whole
        assert computed(ask(bob, seed))[0] <= 64  # his own now, whichever slot it is in
        assert computed(ask(ann, seed))[0] <= 64  # and hers still


def test_neither_protocol_says_more(ann: httpx.Client, bob: httpx.Client) -> None:
    usages = []
    for client in (ann, ann, bob):
        body = {"system": system(7), "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 1}
        usages.append(client.post("/v1/messages", json=body).json()["usage"])
        until(lambda: not any(slot["is_processing"] for slot in ann.get("/slots").json()), 5)
    assert [usage["cache_read_input_tokens"] > 0 for usage in usages] == [False, True, False]
    assert len({usage["cache_read_input_tokens"] + usage["input_tokens"] for usage in usages}) == 1
    body = {"instructions": system(7), "input": "Who?", "max_output_tokens": 1}
    assert bob.post("/v1/responses", json=body).json()["usage"]["input_tokens_details"]["cached_tokens"] > 0


def test_no_view_of_the_server_shows_a_text(ann: httpx.Client, bob: httpx.Client) -> None:
    ask(ann, 8, max_tokens=20)
    views = "".join(bob.get(path).text for path in ("/slots", "/pipeline", "/metrics", "/props", "/v1/models"))
    shown = {word for word in WORDS if word in views}
    assert not shown - {word for word in WORDS if word in bob.get("/props").text}, shown
    assert ANN not in views


def test_another_keys_prompt_takes_as_long_as_if_nobody_had_asked_it(ann: httpx.Client, bob: httpx.Client) -> None:
    """A hit would be told apart in nearly every pair; what is alike, in half of them."""
    others, fresh, hits = [], [], []
    for i in range(7):
        secret, new = 100 + 2 * i, 101 + 2 * i
        ask(ann, secret)
        hits.append(ask(ann, secret)["seconds"])
        order = [(secret, others), (new, fresh)]
        for seed, times in order if i % 2 else reversed(order):
            answer = ask(bob, seed)
            assert len(set(computed(answer))) == 1
            times.append(answer["seconds"])
    sooner = [sum(a < b for a, b in itertools.product(each, fresh)) / 49 for each in (others, hits)]
    assert sooner[1] > 0.92, (hits, fresh)  # the test can see a hit
    assert sooner[0] < 0.92, (others, fresh)
