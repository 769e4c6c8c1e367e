"""The official `openai` client against a live server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pipeline_helpers import GREEDY, PROMPT, ROOT, local, until
from serving import CTX, SMALL, Server, serving

from pipeinfer_cpp.sampling import Sampling

ASKED = [{"role": "user", "content": "Tell me a story about a fox."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["fox", "bear"]}, "legs": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), *SMALL, "--slots", "2") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    (only,) = client.models.list().data
    return only.id


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """What `generate` and `chat` give for the same."""
    with local(stages=2, ctx=CTX, threads=1) as p:
        drawn = Sampling(temp=0.8, seed=5)
        return {
            "completion": p.generate(PROMPT, max_tokens=24, sampling=GREEDY).wait().text,
            "drawn": p.generate(PROMPT, max_tokens=24, sampling=drawn).wait().text,
            "next": p.generate(PROMPT, max_tokens=24, sampling=Sampling(temp=0.8, seed=6)).wait().text,
            "chat": p.chat(ASKED, max_tokens=24, sampling=GREEDY).wait().text,
        }


def chat(client: openai.OpenAI, model: str, **more: Any) -> Any:
    more = {"messages": ASKED, "max_tokens": 24, "temperature": 0, **more}
    return client.chat.completions.create(model=model, **more)


def complete(client: openai.OpenAI, model: str, **more: Any) -> Any:
    more = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, **more}
    return client.completions.create(model=model, **more)


def test_a_chat_is_what_the_pipeline_says(client: openai.OpenAI, model: str, texts: dict[str, str]) -> None:
    answer = chat(client, model)
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content == texts["chat"]
    assert choice.finish_reason == "length"
    usage = answer.usage
    assert usage.completion_tokens == 24 and usage.prompt_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + 24


def test_a_streamed_chat_is_the_same(client: openai.OpenAI, model: str, texts: dict[str, str]) -> None:
    chunks = list(chat(client, model, stream=True, stream_options={"include_usage": True}))
    words = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(words) == texts["chat"] and len([w for w in words if w]) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    assert len({c.id for c in chunks}) == 1


def test_no_usage_unless_it_is_asked_for(client: openai.OpenAI, model: str) -> None:
    chunks = list(chat(client, model, stream=True, max_tokens=4))
    assert all(c.usage is None and c.choices for c in chunks)


def test_a_completion_whole_and_streamed(client: openai.OpenAI, model: str, texts: dict[str, str]) -> None:
    assert complete(client, model).choices[0].text == texts["completion"]
    streamed = complete(client, model, stream=True)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == texts["completion"]


def test_texts_in_parts_are_one_text(client: openai.OpenAI, model: str, texts: dict[str, str]) -> None:
    parts = [{"type": "text", "text": "Tell me a story"}, {"type": "text", "text": " about a fox."}]
    answer = chat(client, model, messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == texts["chat"]


def test_the_newer_name_of_the_limit(client: openai.OpenAI, model: str) -> None:
    answer = chat(client, model, max_tokens=openai.omit, max_completion_tokens=3)
    assert answer.usage.completion_tokens == 3 and answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_ends_before_it(client: openai.OpenAI, model: str, texts: dict[str, str], stream: bool) -> None:
    words = texts["completion"].split()
    stop = words[3]
    expected = texts["completion"].split(stop)[0]
    answer = complete(client, model, stop=[stop], stream=stream)
    if stream:
        chunks = [c.choices[0] for c in answer if c.choices]
        text, reason = "".join(c.text for c in chunks), chunks[-1].finish_reason
    else:
        text, reason = answer.choices[0].text, answer.choices[0].finish_reason
    assert (text, reason) == (expected, "stop")


def test_one_seed_one_text(client: openai.OpenAI, model: str, texts: dict[str, str]) -> None:
    drawn = complete(client, model, temperature=0.8, seed=5)
    assert drawn.choices[0].text == texts["drawn"] != texts["completion"]


def test_n_texts_of_one_request(client: openai.OpenAI, model: str, texts: dict[str, str]) -> None:
    answer = complete(client, model, temperature=0.8, seed=5, n=2)
    assert [c.index for c in answer.choices] == [0, 1]
    assert [c.text for c in answer.choices] == [texts["drawn"], texts["next"]]
    assert answer.usage.completion_tokens == 48
    streamed = ["", ""]
    for chunk in complete(client, model, temperature=0.8, seed=5, n=2, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [texts["drawn"], texts["next"]]


def test_logprobs_name_the_tokens_of_the_text(client: openai.OpenAI, model: str, texts: dict[str, str]) -> None:
    choice = chat(client, model, logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert len(content) == 24
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == texts["chat"]
    for entry in content:
        assert entry.logprob <= 0
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True)
        assert entry.top_logprobs[0].token == entry.token  # it is greedy
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-3)


def test_logprobs_do_not_change_the_text(client: openai.OpenAI, model: str, texts: dict[str, str]) -> None:
    streamed = chat(client, model, logprobs=True, top_logprobs=5, stream=True)
    seen = [c.choices[0] for c in streamed if c.choices]
    assert "".join(c.delta.content or "" for c in seen) == texts["chat"]
    assert sum(len(c.logprobs.content) for c in seen if c.logprobs) == 24
    plain = complete(client, model, logprobs=2).choices[0]
    assert plain.text == texts["completion"] and len(plain.logprobs.tokens) == 24
    assert "".join(plain.logprobs.tokens) == texts["completion"]
    assert all(len(top) == 2 for top in plain.logprobs.top_logprobs)


def test_a_bias_forbids_a_token(client: openai.OpenAI, model: str, server: Server, texts: dict[str, str]) -> None:
    with server.client() as http:
        first = texts["completion"][:4]
        tokens = http.post("/tokenize", json={"content": texts["completion"]}).json()["tokens"]
    biased = complete(client, model, logit_bias={str(tokens[0]): -100}).choices[0].text
    assert not biased.startswith(first) or biased != texts["completion"]


def test_penalties_change_the_text(client: openai.OpenAI, model: str, texts: dict[str, str]) -> None:
    text = complete(client, model, frequency_penalty=2, presence_penalty=2).choices[0].text
    assert text != texts["completion"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema_is_kept(client: openai.OpenAI, model: str, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
    answer = chat(client, model, response_format=form, max_tokens=60, stream=stream)
    if stream:
        text = "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
    else:
        text = answer.choices[0].message.content
    said = json.loads(text)
    assert said.keys() == {"name", "legs"} and said["name"] in ("fox", "bear") and 1 <= said["legs"] <= 9


def test_a_json_object_begins_as_one(client: openai.OpenAI, model: str) -> None:
    text = chat(client, model, response_format={"type": "json_object"}, max_tokens=12).choices[0].message.content
    assert text.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": -0.5, "top_p": 7}, None),
        ({"n": 0}, "n"),
        ({"stop": [""]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "ghost", "content": "hu"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, None),
    ],
)
def test_what_cannot_be_is_said(client: openai.OpenAI, model: str, more: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, model, **more)
    assert refused.value.status_code == 400 and refused.value.type == "invalid_request_error"
    assert refused.value.param == param or param is None
    assert isinstance(refused.value.body, dict) and refused.value.body["message"].endswith(".")


def test_embeddings_are_refused(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model=model, input="fox")
    assert refused.value.status_code in (400, 404, 501) and "embedding" in refused.value.message.lower()


def test_leaving_a_stream_early_frees_the_slot(client: openai.OpenAI, model: str, server: Server) -> None:
    for _ in range(3):  # more than there are slots
        stream = chat(client, model, max_tokens=400, stream=True)
        for _chunk, _ in zip(stream, range(3), strict=False):
            pass
        stream.close()
    with server.client() as http:
        until(lambda: not any(slot["is_processing"] for slot in http.get("/slots").json()), 5)
        until(lambda: not http.get("/pipeline").json()["runs_in_flight"], 5)


CURL = re.findall(r"^curl (?:[^\n]*'\{[^']*'|[^\n]*)", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_readme_has_curl_lines() -> None:
    assert len(CURL) == 6


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", CURL, ids=range(len(CURL)))
def test_a_curl_line_of_the_readme(server: Server, line: str) -> None:
    """It gets what it asks for."""
    line = line.replace("http://127.0.0.1:8080", server.url).replace("curl ", "curl -fsS ", 1)
    said = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    if "stream" in line:
        assert said.stdout.endswith("data: [DONE]\n\n") and '"usage"' in said.stdout
    elif "/metrics" not in line:
        answer = json.loads(said.stdout)
        assert answer.get("tokens") or answer.get("content") or answer["choices"][0]["message"]["content"]
    else:
        assert "pipeinfer_slots" in said.stdout
