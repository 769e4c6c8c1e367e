"""The chat page at `/`, and `/pipeline`: what the pipeline does now."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from pipeinfer_cpp.cluster.live import Live
from pipeinfer_cpp.errors import PipeInferError

FOLDER = Path(str(files("pipeinfer_cpp"))) / "server" / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def public(path: str) -> bool:
    """The page's own files say nothing of anybody: they are served without an API key."""
    return path == "/" or path.startswith("/page/")


def routes(live: Callable[[], Live]) -> list[BaseRoute]:
    """`live`: what goes on now; it is called in a thread. `/pipeline` says nothing of anybody's text, only counts."""

    async def pipeline(_request: Request) -> Response:
        try:
            now = await run_in_threadpool(live)
        except PipeInferError as error:
            said = {"message": str(error), "type": "server_error", "param": None, "code": None}
            return JSONResponse({"error": said}, 503)
        return Response(msgspec.json.encode(now), media_type="application/json", headers={"Cache-Control": "no-store"})

    names = sorted(path.name for path in FOLDER.iterdir() if path.suffix in KINDS)
    page = [Route(f"/page/{name}", _file(name)) for name in names if name != "index.html"]
    return [Route("/", _file("index.html")), *page, Route("/pipeline", pipeline)]


def _file(name: str) -> Callable[[Request], Response]:
    def serve(_request: Request) -> Response:
        path = FOLDER / name
        return FileResponse(path, media_type=KINDS[path.suffix], headers=HEADERS)

    return serve
