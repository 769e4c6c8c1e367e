"""The server's routes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.server import chat, completions, messages, responses
from pipeinfer_cpp.server.answers import Answers, Ask
from pipeinfer_cpp.server.ask import ApiError, ChatRequest, CompletionRequest, read
from pipeinfer_cpp.server.guards import Guard, Hosts, refused
from pipeinfer_cpp.server.lines import Lines
from pipeinfer_cpp.server.metrics import Metrics
from pipeinfer_cpp.server.prompts import Prompts
from pipeinfer_cpp.server.site import routes as site_routes
from pipeinfer_cpp.system.versions import package_version


@dataclass(frozen=True)
class Settings:
    """keys: API keys, none for everybody. cors: origins whose pages may ask. queue: requests that may wait.
    most_bytes: of a body. timeout: seconds that a request may take, 0 for as long as it likes. ping: seconds of
    silence in a stream until a comment says that it goes on. hosts: names that it answers to besides this machine's own
    where there are no keys; `*` for any."""

    keys: Sequence[str] = ()
    cors: Sequence[str] = ()
    queue: int = 64
    most_bytes: int = 16 << 20
    timeout: float = 0.0
    ping: float = 15.0
    hosts: Sequence[str] = ()


class Form(Protocol):
    """How answers are written down, in one piece or in chunks. `ends`: the bytes behind the last chunk."""

    ends: bytes

    def error(self, error: ApiError) -> dict[str, Any]: ...
    async def whole(self, answers: Answers) -> dict[str, Any]: ...
    def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]: ...


class Server:
    """One pipeline, served to many. `app` is the ASGI application."""

    def __init__(self, pipeline: Pipeline, settings: Settings, prompts: Prompts) -> None:
        self.pipeline, self.settings, self.prompts = pipeline, settings, prompts
        self.lines = Lines(pipeline, settings.queue)
        self.metrics = Metrics(self.lines)
        self._ending: set[asyncio.Future[None]] = set()
        self.model = pipeline.plan.pair.name if pipeline.plan.pair else pipeline.plan.target.path.stem
        middleware = [
            Middleware(
                Guard,
                keys=settings.keys,
                most_bytes=settings.most_bytes,
                metrics=self.metrics,
                hosts=Hosts(settings.hosts),
            ),
        ]
        if settings.cors:
            cors = Middleware(
                CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["*"], allow_headers=["*"]
            )
            middleware.insert(0, cors)
        self.app = Starlette(
            routes=[*self._routes(), *site_routes(pipeline.live)],
            middleware=middleware,
            exception_handlers={
                ApiError: _said,
                HTTPException: _http,
                ClientDisconnect: _gone,
                RecursionError: _deep,
                Exception: _broken,
            },
            lifespan=self._lifespan,
        )

    def _routes(self) -> list[Route]:
        return [
            post("/v1/chat/completions", self._chat),
            post("/v1/completions", self._completions),
            post("/v1/responses", self._responses),
            post("/v1/messages", self._messages),
            post("/v1/messages/count_tokens", self._count_tokens),
            post("/v1/embeddings", self._embeddings),
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/health", self._health),
            Route("/v1/health", self._health),
            Route("/metrics", self._metrics),
            Route("/props", self._props),
            Route("/slots", self._slots),
            post("/tokenize", self._tokenize),
            post("/detokenize", self._detokenize),
        ]

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        yield
        await self.lines.settle()

    # ------------------------------------------------------------------------------------ texts

    async def _chat(self, request: Request) -> Response:
        asked = read(await request.body(), ChatRequest)
        ask, reader = await run_in_threadpool(chat.ask_of, asked, self.prompts, request.state.owner)
        form = chat.ChatForm(asked, reader, self.model, secrets.token_hex(12))
        return await self.answer(request, ask, form, stream=bool(asked.stream))

    async def _completions(self, request: Request) -> Response:
        asked = read(await request.body(), CompletionRequest)
        ask = completions.ask_of(asked, self.prompts, request.state.owner)
        form = completions.CompletionForm(asked, self.pipeline.vocabulary, self.model, secrets.token_hex(12))
        return await self.answer(request, ask, form, stream=bool(asked.stream))

    async def _messages(self, request: Request) -> Response:
        asked = read(await request.body(), messages.MessagesRequest)
        if asked.max_tokens is None:
            raise ApiError(400, "max_tokens is missing.", param="max_tokens")
        ask, reader = await run_in_threadpool(chat.ask_of, asked.chat(), self.prompts, request.state.owner)
        form = messages.MessageForm(asked, reader, self.model, secrets.token_hex(12))
        return await self.answer(request, ask, form, stream=bool(asked.stream))

    async def _count_tokens(self, request: Request) -> Response:
        asked = read(await request.body(), messages.MessagesRequest)
        owner = request.state.owner
        ask, _ = await run_in_threadpool(chat.ask_of, asked.chat(), self.prompts, owner, fits=False)
        return _json({"input_tokens": len(ask.tokens)})

    async def _responses(self, request: Request) -> Response:
        asked = read(await request.body(), responses.ResponsesRequest)
        ask, reader = await run_in_threadpool(chat.ask_of, asked.chat(), self.prompts, request.state.owner)
        form = responses.ResponseForm(asked, reader, self.model, secrets.token_hex(12))
        return await self.answer(request, ask, form, stream=bool(asked.stream))

    async def answer(self, request: Request, ask: Ask, form: Form, *, stream: bool) -> Response:
        """The answer as `form` has it. A client that goes away ends what runs for it at once."""
        answers = Answers(self.lines, ask)
        ends = answers.began + (self.settings.timeout or math.inf)
        if not stream:
            body = await self._unless_gone(request, form.whole(answers), ends)
            return _json(body)
        chunks = form.chunks(answers)
        # The first one says whether the request can be served at all: what fails before it has a status of its own.
        first = await self._unless_gone(request, anext(chunks, None), ends)
        events = self._events(form, first, chunks, ends)
        return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM)

    async def _unless_gone(self, request: Request, work: Awaitable[Any], ends: float) -> Any:
        async def gone() -> None:
            while not await request.is_disconnected():
                await asyncio.sleep(0.1)

        task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
        try:
            limit = None if math.isinf(ends) else max(ends - time.monotonic(), 0.0)
            await asyncio.wait({task, watch}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if watch.done():
                raise ClientDisconnect
            raise ApiError(504, f"No answer within {self.settings.timeout:g} s.", code="timeout")
        finally:
            for each in (task, watch):
                each.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def _events(
        self, form: Form, first: dict[str, Any] | None, chunks: AsyncIterator[dict[str, Any]], ends: float
    ) -> AsyncIterator[bytes]:
        coming: asyncio.Future[dict[str, Any] | None] | None = None
        try:
            chunk = first
            while chunk is not None:
                yield _event(chunk)
                coming = asyncio.ensure_future(anext(chunks, None))
                while not coming.done():
                    left = ends - time.monotonic()
                    await asyncio.wait({coming}, timeout=min(self.settings.ping, max(left, 0.0)))
                    if not coming.done():
                        if left <= 0:
                            raise ApiError(504, f"No end within {self.settings.timeout:g} s.", code="timeout")
                        yield _STILL_HERE
                chunk = coming.result()
            if form.ends:
                yield form.ends
        except ApiError as error:
            yield _event(form.error(error))
        finally:
            ending = asyncio.ensure_future(_close(chunks, coming))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            await asyncio.shield(ending)

    # ------------------------------------------------------------------------------------- about

    async def _embeddings(self, _request: Request) -> Response:
        raise ApiError(501, "This server gives no embeddings: it runs a model that writes texts.")

    def _about(self) -> dict[str, Any]:
        meta = {"n_ctx": self.pipeline.settings.n_ctx, "n_vocab": self.pipeline.vocabulary.size}
        return {"id": self.model, "object": "model", "created": 0, "owned_by": "pipeinfer", "meta": meta}

    async def _models(self, _request: Request) -> Response:
        return _json({"object": "list", "data": [self._about()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["model"] != self.model:
            raise ApiError(404, f"There is no model of that name here: it is {self.model}.", code="model_not_found")
        return _json(self._about())

    async def _health(self, _request: Request) -> Response:
        self.lines.check()
        return _json({"status": "ok"})

    async def _metrics(self, _request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _props(self, _request: Request) -> Response:
        settings, template = self.pipeline.settings, self.prompts.template
        return _json(
            {
                "model": self.model,
                "build_info": f"pipeinfer {package_version()}",
                "total_slots": settings.slots,
                "default_generation_settings": {"n_ctx": settings.n_ctx, "speculative": settings.mode},
                "chat_template": template.source if template is not None else None,
                "exact": self.pipeline.exact,
            }
        )

    async def _slots(self, _request: Request) -> Response:
        return _json(self.lines.state())

    async def _tokenize(self, request: Request) -> Response:
        asked = read(await request.body(), Tokenize)
        vocabulary = self.pipeline.vocabulary
        tokens = vocabulary.tokenize(asked.content, begin=asked.add_special, special=asked.parse_special)
        if not asked.with_pieces:
            return _json({"tokens": tokens})
        pieces = [{"id": t, "piece": vocabulary.piece(t).decode("utf-8", "replace")} for t in tokens]
        return _json({"tokens": pieces})

    async def _detokenize(self, request: Request) -> Response:
        asked = read(await request.body(), Detokenize)
        tokens = self.prompts.known(asked.tokens, "tokens")
        text = b"".join(self.pipeline.vocabulary.piece(t) for t in tokens)
        return _json({"content": text.decode("utf-8", "replace")})


def post(path: str, what: Callable[[Request], Awaitable[Response]]) -> Route:
    return Route(path, what, methods=["POST"])


class Tokenize(msgspec.Struct):
    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class Detokenize(msgspec.Struct):
    tokens: list[int]


_STILL_HERE = b": still here\n\n"
_STREAM = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def _json(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


async def _close(chunks: AsyncIterator[Any], coming: asyncio.Future[Any] | None) -> None:
    """End what gives the chunks, wherever it stands."""
    if coming is not None and not coming.done():
        coming.cancel()
        await asyncio.wait({coming})
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()


def _event(data: dict[str, Any]) -> bytes:
    """Those that have a type are named by it."""
    name = f"event: {data['type']}\n".encode() if "type" in data else b""
    return name + b"data: " + msgspec.json.encode(data) + b"\n\n"


def _said(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return refused(error, request.url.path)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "There is nothing at this address.", 405: "This address takes another method."}
    said = ApiError(error.status_code, words.get(error.status_code, str(error.detail)))
    return refused(said, request.url.path)


def _broken(request: Request, error: Exception) -> Response:
    said = ApiError(500, f"The server made a mistake: {type(error).__name__}: {error}")
    return refused(said, request.url.path)


def _deep(request: Request, _error: Exception) -> Response:
    return refused(ApiError(400, "The body is nested too deeply."), request.url.path)


def _gone(_request: Request, _error: Exception) -> Response:
    return JSONResponse({}, 499)


