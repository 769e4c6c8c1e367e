"""`pipeinfer serve`, asked by the official client and by hand."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cli_helpers import pipeinfer
from pipeline_helpers import local
from serving import serving

from pipeinfer_cpp.sampling import Sampling

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
SLOTS = 3
STORY = [{"role": "user", "content": "Tell me a story about a fox."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = "--slots", str(SLOTS), "--ctx-size", "512", "--queue", "4", "--max-body", "20000"
    options = *options, "--allowed-host", "fox.test"
    with serving(tmp_path_factory.mktemp("serve"), *options) as one:
        yield one.url


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def expected() -> str:
    """What the pipeline says to STORY by itself."""
    with local(ctx=512) as p:
        return p.chat(STORY, max_tokens=24, sampling=Sampling(temp=0)).wait().text


def chat(client: Any, **more: Any) -> Any:
    more.setdefault("max_tokens", 24)
    more.setdefault("temperature", 0)
    return client.chat.completions.create(model="demo", messages=STORY, **more)


def test_a_chat(client: Any, expected: str) -> None:
    answer = chat(client)
    assert answer.choices[0].message.content == expected and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24
    parts = [{"type": "text", "text": "Tell me a story "}, {"type": "text", "text": "about a fox."}]
    again = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": parts}], max_completion_tokens=24, temperature=0
    )
    assert again.choices[0].message.content == expected


def test_streaming(client: Any, expected: str) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 24 and not chunks[-1].choices
    assert chunks[-1].timings["predicted_n"] == 24


def test_choices_seeds_and_stops(client: Any) -> None:
    options = {"temperature": 0.9, "seed": 7, "n": 3}
    first, again = chat(client, **options), chat(client, **options)
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3 and texts == [choice.message.content for choice in again.choices]
    streamed: dict[int, str] = {0: "", 1: "", 2: ""}
    for chunk in chat(client, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts
    word = texts[0].split()[5]
    stopped = chat(client, **{**options, "n": 1}, stop=[word])
    assert word not in stopped.choices[0].message.content and stopped.choices[0].finish_reason == "stop"


def test_log_probabilities(client: Any, expected: str) -> None:
    content = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == expected
    for entry in content:
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob == entry.logprob  # greedy: the likeliest
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
    streamed = [c.choices[0].logprobs for c in chat(client, stream=True, logprobs=True) if c.choices]
    assert sum(len(probs.content) for probs in streamed if probs) == 24
    old = client.completions.create(model="demo", prompt="Once upon", max_tokens=4, temperature=0, logprobs=2)
    probs = old.choices[0].logprobs
    assert len(probs.tokens) == len(probs.token_logprobs) == 4 and "".join(probs.tokens) == old.choices[0].text


def test_completions(client: Any, server: str) -> None:
    prompt = "Once upon a time"
    text = client.completions.create(model="demo", prompt=prompt, max_tokens=8, temperature=0).choices[0].text
    ids = httpx.post(f"{server}/tokenize", json={"content": prompt, "add_special": True}).json()["tokens"]
    same = client.completions.create(model="demo", prompt=ids, max_tokens=8, temperature=0, echo=True)
    assert same.choices[0].text.endswith(text) and same.choices[0].text.strip().startswith(prompt)
    chunks = client.completions.create(model="demo", prompt=prompt, max_tokens=8, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in chunks) == text
    back = httpx.post(f"{server}/detokenize", json={"tokens": ids}).json()["content"]
    assert back.strip() == prompt


def test_forms(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 9}, "kind": {"enum": ["fox", "cat"]}},
        "required": ["age", "kind"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}}
    said = json.loads(chat(client, response_format=form, max_tokens=60).choices[0].message.content)
    assert 1 <= said["age"] <= 9 and said["kind"] in ("fox", "cat")
    whole = chat(client, response_format={"type": "json_object"}, max_tokens=60, seed=3, temperature=0.5)
    assert whole.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("chat/completions", "{", 400, "not JSON"),
        ("chat/completions", "[" * 5000, 400, ""),
        ("chat/completions", {}, 400, "messages"),
        ("chat/completions", {"messages": []}, 400, "nothing to answer"),
        ("chat/completions", {"messages": [{"role": "elf", "content": "x"}]}, 400, "not 'elf'"),
        ("chat/completions", {"messages": STORY, "temperature": "hot"}, 400, "Expected `float | null`"),
        ("chat/completions", {"messages": STORY, "top_p": 7}, 400, "top_p must be"),
        ("chat/completions", {"messages": STORY, "max_tokens": 0}, 400, "max_tokens"),
        ("chat/completions", {"messages": STORY, "n": 99}, 400, "n must be"),
        ("chat/completions", {"messages": STORY, "stop": [""]}, 400, "stop"),
        ("chat/completions", {"messages": STORY, "logit_bias": {"a": 1}}, 400, "logit_bias"),
        ("chat/completions", {"messages": STORY, "top_logprobs": 3}, 400, "needs logprobs"),
        ("chat/completions", {"messages": STORY, "id_slot": 9}, 400, "id_slot"),
        ("chat/completions", {"messages": STORY, "response_format": {"type": "poem"}}, 400, "'poem'"),
        (
            "chat/completions",
            {"messages": STORY, "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
            400,
            'invalid JSON schema: "$ref": "#" leads back to itself and says nothing; put a schema there.',
        ),
        ("chat/completions", {"messages": STORY, "json_schema": {"$ref": "http://a.b/c"}}, 400, "is not in the schema"),
        ("chat/completions", {"messages": STORY, "grammar": "root ::= ("}, 400, "grammar"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "reads text only",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "the context 512"),
        ("chat/completions", {"messages": [{"role": "user", "content": "word " * 9000}]}, 413, "20000 bytes"),
        ("completions", {"prompt": ["a", "b"]}, 400, "one prompt"),
        ("completions", {"prompt": [1 << 40]}, 400, "no token"),
        ("completions", {"prompt": ""}, 400, ""),
        ("embeddings", {"input": "x"}, 501, "no embeddings"),
        ("nowhere", {}, 404, "nothing at this address"),
    ],
)
def test_bad_requests(server: str, path: str, body: Any, status: int, words: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server}/v1/{path}", content=content, headers=headers, timeout=30)
    if path == "completions" and body == {"prompt": ""} and answer.status_code == 200:
        return  # the beginning of a text alone is a prompt
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"] and error["type"] and "param" in error and "code" in error


def test_what_is_no_json_is_refused(server: str) -> None:
    """A page elsewhere could send plain text without being asked first."""
    body = json.dumps({"messages": STORY})
    headers = {"Content-Type": "text/plain"}
    assert httpx.post(f"{server}/v1/chat/completions", content=body, headers=headers).status_code == 415


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/pipeline", "/slots"])
def test_a_page_whose_name_points_here_reads_nothing(server: str, path: str) -> None:
    """It would come with its own name (DNS rebinding): without keys only names of this machine are answered to."""
    port = server.rpartition(":")[2]
    for name in ("localhost", f"localhost:{port}", "LOCALHOST.", f"127.0.0.1:{port}", f"[::1]:{port}", "fox.test:80"):
        assert httpx.get(f"{server}{path}", headers={"Host": name}).status_code == 200, name
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "[::", ""):
        refused = httpx.get(f"{server}{path}", headers={"Host": name})
        assert refused.status_code == 403, name
        said = refused.json()["error"]
        assert "--allowed-host" in said["message"] and said["message"].count(".") <= 1 + name.count(".")
    body = {"messages": STORY, "max_tokens": 1}
    assert httpx.post(f"{server}/v1/chat/completions", json=body, headers={"Host": "evil.example"}).status_code == 403
    said = httpx.post(f"{server}/v1/messages", json=body, headers={"Host": "evil.example"}).json()
    assert said["error"]["type"] == "permission_error"


def test_what_it_says_of_itself(server: str, client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    assert httpx.get(f"{server}/health").json() == {"status": "ok"}
    props = httpx.get(f"{server}/props").json()
    assert props["total_slots"] == SLOTS and props["default_generation_settings"]["n_ctx"] == 512
    assert len(httpx.get(f"{server}/slots").json()) == SLOTS
    metrics = httpx.get(f"{server}/metrics").text
    assert "pipeinfer_generated_tokens_total" in metrics and 'path="/v1/chat/completions"' in metrics


def idle(server: str, seconds: float = 5.0) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if not any(slot["is_processing"] for slot in httpx.get(f"{server}/slots").json()):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_runs(server: str, stream: bool) -> None:
    body = {"messages": STORY, "max_tokens": 400, "temperature": 1.2, "stream": stream, "ignore": 1}
    if stream:
        with httpx.stream("POST", f"{server}/v1/chat/completions", json=body, timeout=30) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server}/v1/chat/completions", json=body, timeout=0.3)
    assert idle(server, 3.0)


def test_more_than_there_is_room_for(server: str, client: Any, expected: str) -> None:
    """Three in slots, four in the queue, and the others are told when to come again."""

    def one(_: int) -> tuple[int, str]:
        body = {"messages": STORY, "max_tokens": 24, "temperature": 0}
        answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60)
        if answer.status_code != 200:
            assert int(answer.headers["retry-after"]) >= 1
            return answer.status_code, answer.json()["error"]["code"]
        return 200, answer.json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, range(20)))
    assert {text for code, text in answers if code == 200} == {expected}
    assert {(code, text) for code, text in answers if code != 200} <= {(429, "queue_full")}
    assert sum(code == 200 for code, _ in answers) >= SLOTS


def test_a_storm(server: str, expected: str) -> None:
    """scripts/storm.py in small: disconnects, stop strings, bad bodies; no 500, no wrong text, nothing left."""
    rng, wrong = random.Random(4), []
    lock = threading.Lock()

    def one(kind: str) -> None:
        body: dict[str, Any] = {"messages": STORY, "max_tokens": 24, "temperature": 0}
        try:
            if kind == "leave":
                with httpx.stream(
                    "POST", f"{server}/v1/chat/completions", json={**body, "stream": True}, timeout=30
                ) as answer:
                    next(answer.iter_lines(), None)
                return
            if kind == "bad":
                body["messages"] = 7
            if kind == "stop":
                body["stop"] = expected.split()[3]
            answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60)
        except httpx.HTTPError as error:
            answer = None
            with lock:
                wrong.append(f"{kind}: {error!r}")
            return
        status = answer.status_code
        fine = {"bad": (400,), "stop": (200, 429), "plain": (200, 429)}[kind]
        text = answer.json()["choices"][0]["message"]["content"] if status == 200 else ""
        if status not in fine or (kind == "plain" and status == 200 and text != expected):
            with lock:
                wrong.append(f"{kind}: {status} {answer.text[:200]}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, rng.choices(["leave", "bad", "stop", "plain"], k=60)))
    assert not wrong
    assert idle(server)


def test_keys_and_origins(tmp_path: Any) -> None:
    options = ("--api-key", "sesame", "--api-key", "second", "--cors", "https://example.org", "--slots", "1")
    with serving(tmp_path, *options, "--stages", "1", "--mode", "off", "--request-timeout", "2") as one:
        server = one.url
        assert httpx.get(f"{server}/health").status_code == 200
        assert httpx.get(f"{server}/").status_code == 200
        assert httpx.get(f"{server}/v1/models").status_code == 401
        assert httpx.get(f"{server}/v1/models", headers={"Authorization": "Bearer no"}).status_code == 401
        for header in ({"Authorization": "Bearer sesame"}, {"x-api-key": "second"}):
            assert httpx.get(f"{server}/v1/models", headers=header).status_code == 200
        asks = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
        allowed = httpx.options(f"{server}/v1/chat/completions", headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        other = httpx.options(f"{server}/v1/chat/completions", headers={**asks, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        body = {"prompt": "Once", "max_tokens": 1000, "temperature": 1.5}
        late = httpx.post(f"{server}/v1/completions", json=body, headers={"x-api-key": "second"}, timeout=30)
        assert late.status_code in (200, 504)
        asked = {"messages": STORY, "max_tokens": 900, "logit_bias": {"2": -1000}, "n": 8, "stream": True}
        with httpx.stream("POST", f"{server}/v1/chat/completions", json=asked, headers=header, timeout=30) as answer:
            events = [line for line in answer.iter_lines() if line.startswith("data: ")]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout" and len(events) > 9
        for path, kind in (("messages", "error"), ("messages/count_tokens", "error"), ("responses", None)):
            refused = httpx.post(f"{server}/v1/{path}", json={"messages": STORY})
            assert refused.status_code == 401 and refused.json().get("type") == kind
            assert refused.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--host 0.0.0.0", "--api-key"),
        ("--host nowhere.invalid --insecure", "no address of this machine"),
        ("--port 99999", "--port"),
        ("--queue -1", "--queue"),
        ("--allowed-host http://fox.test", "a name or an address alone"),
        ("--slots 0", "--slots"),
        ("--api-key-file nowhere", "cannot be read"),
    ],
)
def test_wrong_options(line: str, words: str) -> None:
    done = pipeinfer("serve", *line.split())
    assert done.code == 2 and words in done.err and "Traceback" not in done.err


def test_a_port_that_is_taken(server: str) -> None:
    done = pipeinfer("serve", "--port", server.rpartition(":")[2])
    assert done.code == 2 and "Choose another --port" in done.err
