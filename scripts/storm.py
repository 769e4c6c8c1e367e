"""Many requests at once to a running server, among them disconnects, stop strings, bad bodies and timeouts.

python scripts/storm.py http://127.0.0.1:8080 --requests 1000 --at-once 16

Before it begins, each greedy text is asked for alone; every one that is completed in the storm must be the same, and
none may come out otherwise behind it. Says on stderr how far it is. Ends with 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

PROMPTS = (
    "Once upon a time there was a little fox who",
    "Once upon a time there was a little girl",
    "The big red ball rolled down the hill and",
    "Tom and his dog went to the park. They",
    "One day, a bird",
)
STOPS = (".", " the", "\n", "and")
BAD: tuple[tuple[str, bytes], ...] = (
    ("/v1/completions", b"{"),
    ("/v1/completions", b"[]"),
    ("/v1/completions", b"\xff\xfe"),
    ("/v1/completions", b'{"prompt": 5}'),
    ("/v1/completions", b'{"prompt": []}'),
    ("/v1/completions", b'{"prompt": [-1]}'),
    ("/v1/completions", b'{"prompt": [1000000000]}'),
    ("/v1/completions", b'{"prompt": "a", "max_tokens": -5}'),
    ("/v1/completions", b'{"prompt": "a", "max_tokens": "many"}'),
    ("/v1/completions", b'{"prompt": "a", "temperature": "hot"}'),
    ("/v1/completions", b'{"prompt": "a", "top_p": 7}'),
    ("/v1/completions", b'{"prompt": "a", "n": 0}'),
    ("/v1/completions", b'{"prompt": "a", "stop": [""]}'),
    ("/v1/completions", b'{"prompt": "a", "logit_bias": {"x": 1}}'),
    ("/v1/completions", b'{"prompt": "a", "logit_bias": {"1000000000": 1}}'),
    ("/v1/completions", b'{"prompt": "a", "id_slot": 1000}'),
    ("/v1/completions", b'{"prompt": "a", "response_format": {"type": "xml"}}'),
    ("/v1/completions", b'{"prompt": "a", "json_schema": {"type": "nothing"}}'),
    ("/v1/completions", b'{"prompt": "a", "grammar": "root ::= ("}'),
    ("/v1/completions", json.dumps({"prompt": "word " * 20000}).encode()),
    ("/v1/completions", b"[" * 100000),
    ("/v1/chat/completions", b"{}"),
    ("/v1/chat/completions", b'{"messages": "hello"}'),
    ("/v1/chat/completions", b'{"messages": []}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user"}]}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "ghost", "content": "a"}]}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": 5}]}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "top_logprobs": 1000}'),
    ("/v1/embeddings", b'{"input": "a"}'),
)


@dataclass
class Storm:
    """What was asked, and what came of it."""

    url: str
    key: str = ""
    tokens: int = 24
    """Of each text at most."""
    rng: random.Random = field(default_factory=random.Random)
    asked: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    compared: int = 0
    wrong: list[str] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    """The text behind each prompt, asked for alone."""
    done: int = 0
    slowest: dict[str, float] = field(default_factory=dict)
    """By kind of request: the longest that one took, in seconds."""

    async def run(self, requests: int, at_once: int) -> None:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=120, limits=limits) as client:
            for prompt in PROMPTS:
                self.expected[prompt] = (await self._text(client, prompt)) or ""
            left = iter(range(requests))
            telling = asyncio.create_task(self._tell(requests))
            await asyncio.gather(*(self._worker(client, left) for _ in range(at_once)))
            telling.cancel()
            for prompt in PROMPTS:
                await self._greedy(client, prompt, "afterwards")
            await self._all_idle(client)

    async def _worker(self, client: httpx.AsyncClient, left: Any) -> None:
        kinds = (self._whole, self._streamed, self._left_early, self._stopped, self._bad, self._impatient, self._drawn)
        for _ in left:
            kind = self.rng.choice(kinds)
            name, began = kind.__name__.strip("_"), time.monotonic()
            self.asked[name] += 1
            try:
                await kind(client)
            except httpx.HTTPError as error:
                self.wrong.append(f"{name}: {type(error).__name__} {error}")
            self.done += 1
            self.slowest[name] = max(self.slowest.get(name, 0.0), time.monotonic() - began)

    async def _tell(self, requests: int) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(10)
            seconds = time.monotonic() - began
            print(f"{seconds:5.0f} s: {self.done} of {requests}, {len(self.wrong)} wrong", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------------------------------- kinds

    async def _whole(self, client: httpx.AsyncClient) -> None:
        await self._greedy(client, self.rng.choice(PROMPTS), "whole")

    async def _streamed(self, client: httpx.AsyncClient) -> None:
        prompt, parts = self.rng.choice(PROMPTS), []
        async for chunk in self._stream(client, self._request(prompt)):
            parts += [choice["text"] for choice in chunk.get("choices", ())]
        if parts:
            self._compare(prompt, "".join(parts), "streamed")

    async def _left_early(self, client: httpx.AsyncClient) -> None:
        """Reads a few pieces and goes away."""
        n = self.rng.randrange(4)
        stream = self._stream(client, self._request(self.rng.choice(PROMPTS), max_tokens=200))
        async for _ in stream:
            n -= 1
            if n < 0:
                break
        await stream.aclose()  # type: ignore[attr-defined]

    async def _stopped(self, client: httpx.AsyncClient) -> None:
        prompt, stop = self.rng.choice(PROMPTS), self.rng.choice(STOPS)
        text = await self._text(client, prompt, stop=stop)
        if text is not None:
            self._compare(prompt, text, f"stop {stop!r}", self.expected[prompt].split(stop)[0])

    async def _bad(self, client: httpx.AsyncClient) -> None:
        path, body = self.rng.choice(BAD)
        answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        self._look(answer)
        if answer.status_code < 400:
            self.wrong.append(f"{path} took {body[:80]!r}")

    async def _impatient(self, client: httpx.AsyncClient) -> None:
        """Gives up after a moment, whatever the server does then."""
        try:
            body = self._request(self.rng.choice(PROMPTS), max_tokens=200)
            await client.post("/v1/completions", json=body, timeout=self.rng.uniform(0.01, 0.3))
        except httpx.TimeoutException:
            pass

    async def _drawn(self, client: httpx.AsyncClient) -> None:
        """One seed, one text: also when both are asked for at once."""
        prompt, seed = self.rng.choice(PROMPTS), self.rng.randrange(1000)
        more = {"temperature": 0.8, "seed": seed}
        one, two = await asyncio.gather(self._text(client, prompt, **more), self._text(client, prompt, **more))
        if one is not None and two is not None:
            self.compared += 1
            if one != two:
                self.wrong.append(f"seed {seed} gave {one!r} and {two!r} behind {prompt!r}")

    # ------------------------------------------------------------------------------------------- parts

    def _request(self, prompt: str, **more: Any) -> dict[str, Any]:
        return {"prompt": prompt, "max_tokens": self.tokens, "temperature": 0, **more}

    async def _greedy(self, client: httpx.AsyncClient, prompt: str, how: str) -> None:
        text = await self._text(client, prompt)
        if text is not None:
            self._compare(prompt, text, how)

    async def _text(self, client: httpx.AsyncClient, prompt: str, **more: Any) -> str | None:
        """None where the server was too busy."""
        answer = await client.post("/v1/completions", json=self._request(prompt, **more))
        self._look(answer)
        if answer.status_code == 200:
            return str(answer.json()["choices"][0]["text"])
        if answer.status_code != 429:
            self.wrong.append(f"{answer.status_code} for a good request: {answer.text[:200]}")
        return None

    async def _stream(self, client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        done = False
        async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            if answer.status_code != 200:
                await answer.aread()
                self._look(answer)
                return
            self.statuses[200] += 1
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    self.wrong.append(f"an error within a stream: {chunk}")
                yield chunk
        if not done:
            self.wrong.append("a stream ended without [DONE]")

    def _look(self, answer: httpx.Response) -> None:
        """Count it; refusals say what is wrong, in OpenAI's form, and nothing fails."""
        self.statuses[answer.status_code] += 1
        if answer.status_code < 400:
            return
        if answer.status_code >= 500 and answer.status_code != 501:
            self.wrong.append(f"{answer.status_code}: {answer.text[:200]}")
        try:
            said = answer.json()["error"]
            formed = {"message", "type", "param", "code"} <= said.keys() and said["message"] and said["type"]
        except (ValueError, TypeError, KeyError, AttributeError):
            formed = False
        if not formed:
            self.wrong.append(f"{answer.status_code} is not in OpenAI's form: {answer.text[:200]}")
        if answer.status_code == 429 and not answer.headers.get("Retry-After", "").isdigit():
            self.wrong.append("429 without Retry-After")

    def _compare(self, prompt: str, text: str, how: str, expected: str | None = None) -> None:
        self.compared += 1
        expected = self.expected[prompt] if expected is None else expected
        if text != expected:
            self.wrong.append(f"{how}: {text!r} in place of {expected!r}")

    async def _all_idle(self, client: httpx.AsyncClient) -> None:
        """Nothing is left of those that went away."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            slots = (await client.get("/slots")).json()
            now = (await client.get("/pipeline")).json()
            busy = [slot for slot in slots if slot["is_processing"]] + [s for s in now["slots"] if s["phase"] != "idle"]
            if not busy and not now["runs_in_flight"]:
                return
            await asyncio.sleep(0.1)
        self.wrong.append(f"still under way 20 s after the last request: {busy}, {now['runs_in_flight']} runs")

    def __str__(self) -> str:
        asked = ", ".join(f"{n} {name}" for name, n in sorted(self.asked.items()))
        codes = ", ".join(f"{n} of {code}" for code, n in sorted(self.statuses.items()))
        slow = ", ".join(f"{seconds:.1f} s {name}" for name, seconds in sorted(self.slowest.items()))
        lines = [f"asked: {asked}", f"answers: {codes}", f"slowest: {slow}", f"texts compared: {self.compared}"]
        return "\n".join([*lines, f"wrong: {len(self.wrong)}", *self.wrong[:20]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="a running server's, without /v1")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--api-key", default="")
    args = parser.parse_args()
    storm = Storm(args.url, args.api_key, rng=random.Random(args.seed))
    began = time.monotonic()
    asyncio.run(storm.run(args.requests, args.at_once))
    print(f"{args.requests} requests, {args.at_once} at once, {time.monotonic() - began:.0f} s\n{storm}")
    return 1 if storm.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
