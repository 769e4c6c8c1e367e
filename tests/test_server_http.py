"""The server by bare HTTP: refusals, keys, other origins, the queue, people who go away, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_helpers import pipeinfer
from pipeline_helpers import DRAFT, PROMPT, TARGET, until
from serving import SMALL, Server, serving

KEY, OTHER = "first-key-for-tests", "second-key-for-tests"
ORIGIN = "https://example.org"
JSON = {"Content-Type": "application/json"}
LONG = {"prompt": PROMPT, "max_tokens": 400, "temperature": 0, "logit_bias": {}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One slot, one place in the queue, two keys, one other origin."""
    more = (*SMALL, "--slots", "1", "--queue", "1", "--api-key", KEY, "--api-key", OTHER, "--cors", ORIGIN)
    with serving(tmp_path_factory.mktemp("server"), *more, key=KEY) as server:
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        idle(client)
        yield client


def idle(client: httpx.Client) -> None:
    until(lambda: not any(slot["is_processing"] for slot in client.get("/slots").json()), 10)


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    said: dict[str, Any] = answer.json()["error"]
    assert said.keys() == {"message", "type", "param", "code"} and said["message"].endswith(".")
    assert "--" not in said["message"]  # fields of a request, not options of the command
    return said


# ------------------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"prompt": "\\ud800"}'])
def test_bodies_that_are_none(http: httpx.Client, path: str, body: bytes) -> None:
    assert error(http.post(path, content=body, headers=JSON), 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "many"),
        ("temperature", "hot"),
        ("seed", 1.5),
        ("n", [1]),
        ("stop", 5),
        ("stream", "yes"),
        ("logit_bias", [1]),
        ("prompt", {"text": "a"}),
        ("stream_options", True),
        ("response_format", "json"),
    ],
)
def test_a_value_of_another_kind_is_named(http: httpx.Client, field: str, value: Any) -> None:
    said = error(http.post("/v1/completions", json={"prompt": "a", field: value}), 400)
    assert said["param"] == field and field in said["message"]


@pytest.mark.parametrize(
    "more",
    [
        {"top_p": 7},
        {"top_p": 0},
        {"min_p": -1},
        {"typical_p": 2},
        {"seed": -5},
        {"seed": 1 << 70},
        {"top_k": 1 << 40},
        {"repeat_penalty": 0},
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"n": 0},
        {"n": 1000},
        {"logprobs": 50},
        {"id_slot": 99},
        {"id_slot": -7},
        {"logit_bias": {"fox": 1}},
        {"logit_bias": {"1000000000": 1}},
        {"logit_bias": {"-1": 1}},
        {"grammar": "root ::= ("},
        {"grammar": 'root ::= "a"', "json_schema": {}},
        {"prompt": []},
        {"prompt": ""},
        {"prompt": [-1]},
        {"prompt": [1 << 40]},
        {"prompt": ["one", "two"]},
        {"prompt": "word " * 2000},
        {"suffix": "end"},
    ],
)
def test_values_that_cannot_be(http: httpx.Client, more: dict[str, Any]) -> None:
    for stream in (False, True):
        body = {"prompt": "a", "max_tokens": 4, "stream": stream, **more}
        error(http.post("/v1/completions", json=body), 400)


def test_the_seed_behind_the_last_one_is_the_first(http: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 8, "seed": (1 << 64) - 1, "n": 2}
    two = [choice["text"] for choice in http.post("/v1/completions", json=body).json()["choices"]]
    again = http.post("/v1/completions", json={**body, "seed": 0, "n": 1}).json()["choices"][0]["text"]
    assert two[1] == again


def test_unknown_fields_are_passed_over(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "user": "me", "metadata": {"a": 1}})
    assert answer.status_code == 200


def test_a_body_that_is_too_large(http: httpx.Client) -> None:
    error(http.post("/v1/completions", content=b" " * (17 << 20), headers=JSON), 413)

    def pieces() -> Iterator[bytes]:  # and one that does not say its length
        for _ in range(17):
            yield b" " * (1 << 20)

    error(http.post("/v1/completions", content=pieces(), headers=JSON), 413)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("GET", "/v1/models/nothing", 404)],
)
def test_addresses_that_are_none(http: httpx.Client, method: str, path: str, status: int) -> None:
    error(http.request(method, path), status)


def test_what_is_said_never_becomes_a_control_token(http: httpx.Client) -> None:
    """A user cannot end his message and begin one of the system's."""
    props = http.get("/props").json()
    template = props["chat_template"]
    names = [name for name in ("<|im_start|>", "<|im_end|>", "<|user|>", "<|end|>", "<s>", "</s>") if name in template]
    tokens = http.post("/tokenize", json={"content": "<|endoftext|>"}).json()["tokens"]
    names += ["<|endoftext|>"] if len(tokens) == 1 else []

    def n_prompt(text: str) -> int:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0}
        return int(http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"])

    assert names
    for name in names:
        assert n_prompt(f"hello {name} you") > n_prompt("hello you") + 2  # several tokens: plain text


# ------------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize("path", ["/v1/models", "/slots", "/props", "/metrics", "/pipeline"])
def test_without_a_key_nothing_is_told(server: Server, path: str) -> None:
    for key in ("", "wrong", KEY + "x", KEY[:-1]):
        with server.client(key) as client:
            said = error(client.get(path), 401)
            assert said["code"] == "invalid_api_key" and KEY not in said["message"]
    for key in (KEY, OTHER):
        with server.client(key) as client:
            assert client.get(path).status_code == 200


def test_without_a_key_nothing_is_asked(server: Server) -> None:
    with server.client("") as client:
        error(client.post("/v1/completions", json=LONG), 401)
        assert client.get("/health").json()["status"] == "ok"  # for what watches the server
    headers = {"x-api-key": OTHER}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


def test_only_the_named_origin_may_ask(server: Server, http: httpx.Client) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with server.client("") as client:
        allowed = client.options("/v1/chat/completions", headers={"Origin": ORIGIN, **asks})
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == ORIGIN
        refused = client.options("/v1/chat/completions", headers={"Origin": "https://evil.example", **asks})
        assert "access-control-allow-origin" not in refused.headers
    assert http.get("/v1/models", headers={"Origin": ORIGIN}).headers["access-control-allow-origin"] == ORIGIN


def test_forms_of_other_pages_are_refused(http: httpx.Client) -> None:
    body = json.dumps(LONG)
    error(http.post("/v1/completions", content=body, headers={"Content-Type": "text/plain"}), 415)


# ------------------------------------------------------------------------------- the queue, and who goes away


def test_a_full_queue_says_when_to_come_again(server: Server, http: httpx.Client) -> None:
    ended: list[int] = []

    def ask() -> None:
        with server.client() as client:
            ended.append(client.post("/v1/completions", json={**LONG, "max_tokens": 100}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    answers = []
    while any(thread.is_alive() for thread in threads) and 429 not in answers:
        answer = http.post("/v1/completions", json={**LONG, "max_tokens": 1})
        answers.append(answer.status_code)
        if answer.status_code == 429:
            assert error(answer, 429)["code"] == "queue_full" and int(answer.headers["Retry-After"]) >= 1
    for thread in threads:
        thread.join()
    assert set(ended) <= {200, 429} and 200 in ended and 429 in [*ended, *answers]


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_is_computed_for_no_longer(server: Server, http: httpx.Client, stream: bool) -> None:
    body = json.dumps({**LONG, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        until(lambda: http.get("/slots").json()[0]["is_processing"], 5)
        time.sleep(0.2)
        assert http.get("/slots").json()[0]["is_processing"]
    took = until(lambda: not http.get("/slots").json()[0]["is_processing"], 5)
    assert took < 2 and not http.get("/pipeline").json()["runs_in_flight"]
    assert http.post("/v1/completions", json={**LONG, "max_tokens": 4}).status_code == 200


def test_who_goes_away_while_waiting_leaves_the_queue(server: Server, http: httpx.Client) -> None:
    with server.client() as first, first.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as held:
        next(held.iter_lines())
        with pytest.raises(httpx.TimeoutException):
            http.post("/v1/completions", json=LONG, timeout=0.3)
        waiting = "pipeinfer_requests_waiting "
        until(lambda: waiting + "0.0" in http.get("/metrics").text, 5)
    assert http.post("/v1/completions", json={**LONG, "max_tokens": 4}).status_code == 200


def test_nobody_reads_another_keys_text(server: Server, http: httpx.Client) -> None:
    """The second key asks for the same: it gets the same, and no word of the first's is told anywhere."""
    secret = {"prompt": f"{PROMPT} lived in a house. " * 8, "max_tokens": 2, "temperature": 0}
    http.post("/v1/completions", json=secret)
    idle(http)
    before = http.get("/slots").json()[0]
    with server.client(OTHER) as other:
        said = other.post("/v1/completions", json=secret).json()["choices"][0]["text"]
        idle(other)
        text = other.get("/slots").text + other.get("/pipeline").text + other.get("/metrics").text
    assert before["n_cached"] > 32 and "house" not in text and KEY not in text
    assert http.post("/v1/completions", json=secret).json()["choices"][0]["text"] == said


def test_a_request_ends_when_its_time_is_over(tmp_path: Path) -> None:
    slow = *SMALL, "--request-timeout", "0.4", "--emulate", "10mbit"
    with serving(tmp_path, *slow) as server, server.client() as client:
        assert error(client.post("/v1/completions", json=LONG), 504)["code"] == "timeout"
        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as streamed:
            events = [line for line in streamed.iter_lines() if line]
        assert len(events) > 1 and json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        until(lambda: not any(slot["is_processing"] for slot in client.get("/slots").json()), 5)
        assert not client.get("/pipeline").json()["runs_in_flight"]


def test_the_time_in_the_queue_is_a_part_of_it(tmp_path: Path) -> None:
    """The second request waits for the first one's end, and has what is left of its time."""
    long = {**LONG, "max_tokens": 900, "logit_bias": {"2": -1000}, "stream": True}
    slow = "--stages", "2", "--ctx-size", "1024", "--threads", "1", "--slots", "1", "--emulate", "10mbit"
    with serving(tmp_path, *slow, "--request-timeout", "2") as server, server.client() as client:
        took: list[float] = []

        def ask() -> None:
            began = time.monotonic()
            with server.client() as one, one.stream("POST", "/v1/completions", json=long) as streamed:
                said = [line for line in streamed.iter_lines() if line]
            took.append(time.monotonic() - began)
            assert '"timeout"' in said[-1] and len(said) > 1

        first = threading.Thread(target=ask)
        first.start()
        until(lambda: client.get("/slots").json()[0]["is_processing"], 5)
        time.sleep(0.8)
        ask()
        first.join()
    assert took[1] < took[0] + 0.6, took


# --------------------------------------------------------------------------------------------- about, end


def test_tokens_there_and_back(http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"content": PROMPT}).json()["tokens"]
    assert len(tokens) > 5 and http.post("/detokenize", json={"tokens": tokens}).json()["content"].strip() == PROMPT
    error(http.post("/detokenize", json={"tokens": [1 << 40]}), 400)


def test_figures_for_prometheus(http: httpx.Client) -> None:
    http.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
    idle(http)
    families = http.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in families.splitlines() if line and not line.startswith("#"))
    assert float(lines["pipeinfer_generated_tokens_total"]) >= 3
    assert float(lines['pipeinfer_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert float(lines["pipeinfer_slots"]) == 1


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_public_address_needs_a_key(address: str) -> None:
    ended = pipeinfer("serve", "--host", address, "--target", TARGET)
    assert ended.code == 2 and "--api-key" in ended.err and "--insecure" in ended.err and ended.err.count("\n") == 1


def test_a_port_that_is_taken(server: Server) -> None:
    ended = pipeinfer("serve", "--port", server.port, "--target", TARGET, "--draft", DRAFT)
    assert ended.code in (1, 2) and str(server.port) in ended.err and not ended.left
    assert "bug" not in ended.err and "Traceback" not in ended.err


def test_when_a_stage_dies_the_server_says_so_and_everybodys_text_goes_on(tmp_path: Path) -> None:
    short = {**LONG, "max_tokens": 60}
    with serving(tmp_path, *SMALL) as server, server.client() as client:
        expected = client.post("/v1/completions", json=short).json()["choices"][0]["text"]
        stage = next(pid for pid, role in server.workers().items() if role == "stage")
        with client.stream("POST", "/v1/completions", json={**short, "stream": True}) as held:
            lines = held.iter_lines()
            said = [next(lines)]
            os.kill(stage, signal.SIGKILL)
            said += lines
        chunks = [json.loads(line.removeprefix("data: ")) for line in said if line.startswith("data: {")]
        assert "".join(c["choices"][0]["text"] for c in chunks if c["choices"]) == expected
        assert client.post("/v1/completions", json=short).json()["choices"][0]["text"] == expected
        assert "was killed by signal 9" in server.said and "is back" in server.said and "Traceback" not in server.said


def test_when_stages_die_for_good_the_server_says_so_and_ends(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL) as server, server.client() as client:
        killing = threading.Event()

        def kill() -> None:
            while not killing.wait(0.01):
                for pid in [pid for pid, role in server.workers().items() if role == "stage"]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as held:
            lines = held.iter_lines()
            next(lines)
            killer = threading.Thread(target=kill)
            killer.start()
            said = [line for line in lines if "error" in line]
            killing.set()
            killer.join()
        assert said and json.loads(said[0].removeprefix("data: "))["error"]["type"] == "server_error"
        assert server.process.wait(20) == 1
        assert "stage" in server.said.lower() and "Traceback" not in server.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_the_middle_of_a_text(tmp_path: Path, number: int) -> None:
    with serving(tmp_path, *SMALL) as server, server.client() as client:
        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as held:
            next(held.iter_lines())
            code = server.end(number, 15)
        assert code in (0, 128 + number) and "Traceback" not in server.said
