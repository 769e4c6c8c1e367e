"""The page over a pipeline of its own, in a process: `python page_server.py STAGES [KEY]` prints its address, and ends
with its stdin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeinfer_cpp import PipeInferError, Pipeline
from pipeinfer_cpp.server.site import public, routes


@contextlib.contextmanager
def served(stages: int, key: str = "") -> Iterator[str]:
    """Its address. It must end well."""
    pytest.importorskip("uvicorn")
    command = [sys.executable, __file__, str(stages), *([key] if key else [])]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.stdin.close()
        assert server.wait(20) == 0


class Keys:
    """Everything but the page's own files needs the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and self.key and not public(scope["path"]):
            given = Headers(scope=scope).get("authorization")
            if given != f"Bearer {self.key}":
                app = JSONResponse({"error": {"message": "The API key is missing or wrong."}}, 401)
        await app(scope, receive, send)


def app(pipeline: Pipeline, key: str) -> Starlette:
    turns = asyncio.Lock()

    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "demo", "object": "model"}]})

    async def chat(request: Request) -> Response:
        asked = await request.json()
        sampling = {"temp": asked.get("temperature", 0.8), "seed": asked.get("seed", -1)}
        await turns.acquire()
        try:
            generation = pipeline.chat(asked["messages"], max_tokens=asked.get("max_tokens", -1), sampling=sampling)
        except PipeInferError as error:
            turns.release()
            return JSONResponse({"error": {"message": str(error)}}, 400)

        async def events() -> AsyncIterator[str]:
            began, n = time.monotonic(), 0
            try:
                async for token in generation:
                    n += 1
                    yield _event({"choices": [{"index": 0, "delta": {"content": token.text}, "finish_reason": None}]})
            finally:
                generation.close()
                turns.release()
            reason = generation.result.finish_reason if generation.result else "stop"
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
            speed = {"predicted_per_second": n / (time.monotonic() - began)}
            yield _event({"choices": [], "usage": {"completion_tokens": n}, "timings": speed})
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    end = Route("/v1/chat/completions", chat, methods=["POST"])
    known = [Route("/v1/models", models), end, *routes(pipeline.live)]
    return Starlette(routes=known, middleware=[Middleware(Keys, key=key)])


def _event(data: object) -> str:
    return f"data: {json.dumps(data)}\n\n"


async def main() -> None:
    import uvicorn

    key = sys.argv[2] if len(sys.argv) > 2 else ""
    with Pipeline.local(pair="demo", stages=int(sys.argv[1])) as pipeline:
        server = uvicorn.Server(uvicorn.Config(app(pipeline, key), port=0, log_level="error"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", flush=True)
        threading.Thread(target=lambda: (sys.stdin.read(), setattr(server, "should_exit", True)), daemon=True).start()
        await serving


if __name__ == "__main__":
    asyncio.run(main())
