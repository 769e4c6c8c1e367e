"""What stands before the routes: API keys, sizes, kinds of content, and the count of all requests."""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeinfer_cpp.server.ask import ApiError
from pipeinfer_cpp.server.lines import owner_of
from pipeinfer_cpp.server.messages import error_body
from pipeinfer_cpp.server.metrics import Metrics
from pipeinfer_cpp.server.site import public

OPEN = ("/health", "/v1/health")
"""Answers that need no key."""


LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Hosts:
    """Whose names a server without keys answers to. A web page elsewhere can have its own name point to this machine;
    then the browser takes the server for a part of that page, and lets it read everything (DNS rebinding)."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names`: besides those of this machine's loopback; `*` for any."""
        self._names = {name.rstrip(".").strip("[]").lower() for name in (*LOOPBACK, *names)}

    def check(self, headers: Headers) -> None:
        """Raises ApiError for a request that came for another name."""
        if "*" in self._names:
            return
        said = headers.get("host", "")
        try:
            name = urlsplit(f"//{said}").hostname or ""
        except ValueError:
            name = ""
        if name.rstrip(".") not in self._names:
            raise ApiError(403, f"This server does not answer to the name {said[:100]!r}: start it with an API key, or "
                           "with --allowed-host for that name.", code="host_not_allowed")  # fmt: skip


def refused(error: ApiError, path: str) -> JSONResponse:
    """In the form of those whose address it is."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    body = error_body(error) if path.startswith("/v1/messages") else error.body()
    return JSONResponse(body, error.status, headers)


class Guard:
    """Lets in who has a key (anybody where there is none), and writes whose request it is into its state."""

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], most_bytes: int, metrics: Metrics, hosts: Hosts | None = None
    ) -> None:
        """`hosts`: whose names it answers to where there are no keys."""
        self.app, self._keys, self._most, self._metrics = app, list(keys), most_bytes, metrics
        self._hosts = hosts if not keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = Headers(scope=scope)
            try:
                if self._hosts is not None:
                    self._hosts.check(headers)
                scope.setdefault("state", {})["owner"] = self._owner(scope, headers)
                if scope["method"] == "POST":
                    _check_kind(headers)
                    receive = self._limited(headers, receive)
            except ApiError as error:
                await refused(error, scope["path"])(scope, receive, watched)
                return
            await self.app(scope, receive, watched)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.request(path, status, time.monotonic() - began)

    def _owner(self, scope: Scope, headers: Headers) -> str:
        if not self._keys or public(scope["path"]) or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return owner_of("")
        kind, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        found = [key for key in self._keys if hmac.compare_digest(key.encode(), given.encode())]
        if not found:
            why = "The API key is wrong." if given else "An API key is needed: send Authorization: Bearer KEY."
            raise ApiError(401, why, code="invalid_api_key")
        return owner_of(found[0])

    def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """Raises ApiError for a body that says that it is too large, and cuts one off that does not say so."""
        said = headers.get("content-length", "0")
        if said.isdigit() and int(said) > self._most:
            raise ApiError(413, f"The body is larger than {self._most} bytes.", code="too_large")
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > self._most:
                    raise ApiError(413, f"The body is larger than {self._most} bytes.", code="too_large")
            return message

        return counted


def _check_kind(headers: Headers) -> None:
    """A web page elsewhere can send forms and plain text without asking; JSON it cannot."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send the body as JSON, with Content-Type: application/json.")
