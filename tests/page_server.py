"""The page over a pipeline of its own: `python tests/page_server.py STAGES`. Prints its address; ends with its stdin."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeinfer_cpp import Pipeline, PipeInferError
from pipeinfer_cpp.server.site import routes

KEY = "sesame"


def app(pipeline: Pipeline) -> Starlette:
    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "demo", "object": "model"}]})

    async def chat(request: Request) -> Response:
        asked = await request.json()
        sampling = {"temp": asked.get("temperature", 0.8), "seed": asked.get("seed", -1)}
        try:
            if asked["messages"][0].get("content") == "fail":
                raise PipeInferError("The messages cannot be read.")
            generation = pipeline.chat(asked["messages"], max_tokens=asked.get("max_tokens", -1), sampling=sampling)
        except PipeInferError as error:
            return JSONResponse({"error": {"message": str(error)}}, 400)

        async def events() -> AsyncIterator[str]:
            began, n = time.monotonic(), 0
            try:
                async for token in generation:
                    n += 1
                    yield _event({"choices": [{"index": 0, "delta": {"content": token.text}, "finish_reason": None}]})
            finally:
                generation.turn.stopping = True
                pipeline.driver.cancel(generation.turn)
            reason = generation.result.finish_reason if generation.result else "stop"
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
            speed = {"predicted_per_second": n / (time.monotonic() - began)}
            yield _event({"choices": [], "usage": {"completion_tokens": n}, "timings": speed})
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    end = Route("/v1/chat/completions", chat, methods=["POST"])
    return Starlette(routes=[Route("/v1/models", models), end, *routes(pipeline.live)])


def _event(data: object) -> str:
    return f"data: {json.dumps(data)}\n\n"


async def main() -> None:
    with Pipeline.local(pair="demo", stages=int(sys.argv[1])) as pipeline:
        server = uvicorn.Server(uvicorn.Config(app(pipeline), port=0, log_level="error"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", flush=True)
        threading.Thread(target=lambda: (sys.stdin.read(), setattr(server, "should_exit", True)), daemon=True).start()
        await serving


if __name__ == "__main__":
    asyncio.run(main())
