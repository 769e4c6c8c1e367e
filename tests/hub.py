"""A server on this machine that answers like the Hugging Face hub, as far as fetching files goes."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]

    @property
    def start(self) -> int | None:
        """Where its Range begins."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found.group(1)) if found else None


@dataclass
class Hub:
    """`files` by OWNER/REPO/FILE. As on the real one, content comes from another address than its description."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    """Repositories that want a licence accepted."""
    breaks: list[int] = field(default_factory=list)
    """After so many bytes the next answers with content break off, one each."""
    stalls: list[int] = field(default_factory=list)
    """After so many bytes the next answers with content send no more, until `stop`."""
    no_ranges: bool = False
    no_content: bool = False
    """Content is refused with 503."""
    down: bool = False
    """Connections are closed without an answer."""
    commit: str = COMMIT
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        hub, self.stopped = self, Event()

        class Handler(_Handler):
            def do_HEAD(self) -> None:
                self.answer(hub)

            do_GET = do_HEAD

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def gets(self) -> list[Request]:
        """Requests for content."""
        return [r for r in self.requests if r.method == "GET" and not r.path.startswith("/api/")]

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that shall fetch from here into `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1,localhost",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, hub: Hub) -> None:
        path = unquote(self.path.partition("?")[0])
        hub.requests.append(Request(self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if hub.down:
            self.close_connection = True
            return
        with suppress(ConnectionError):
            if path.startswith("/content/"):
                return self._content(hub, hub.files[path.removeprefix("/content/")])
            if path.startswith("/api/models/"):
                return self._list(hub, path.removeprefix("/api/models/"))
            repo, _, name = path[1:].partition("/resolve/main/")
            if repo in hub.gated:
                return self._refuse(401, "GatedRepo", "Access to the model is restricted.")
            if not any(key.startswith(repo + "/") for key in hub.files):
                return self._refuse(401, "RepoNotFound", "Invalid username or password.")
            if f"{repo}/{name}" not in hub.files:
                return self._refuse(404, "EntryNotFound", "Entry not found", hub.commit)
            self._describe(hub, f"{repo}/{name}")

    def _list(self, hub: Hub, repo: str) -> None:
        """What the repository holds."""
        files = {key.removeprefix(repo + "/"): data for key, data in hub.files.items() if key.startswith(repo + "/")}
        if not files:
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
        body = json.dumps({"id": repo, "sha": hub.commit, "siblings": siblings}).encode()
        self._head(200, {"Content-Type": "application/json"}, len(body))
        self.wfile.write(body)

    def _refuse(self, code: int, kind: str, text: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": kind, "X-Error-Message": text}
        self._head(code, headers | ({"X-Repo-Commit": commit} if commit else {}), 0)

    def _describe(self, hub: Hub, key: str) -> None:
        """A redirection to the content, with what is known of it."""
        data = hub.files[key]
        headers = {
            "X-Repo-Commit": hub.commit,
            "X-Linked-Size": str(len(data)),
            "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "ETag": '"another"',
            "Accept-Ranges": "bytes",
            "Location": f"http://localhost:{self.server.server_address[1]}/content/{key}",
        }
        self._head(302, headers, 0)

    def _content(self, hub: Hub, data: bytes) -> None:
        if hub.no_content:
            return self._head(503, {}, 0)
        start = hub.requests[-1].start if not hub.no_ranges else None
        if start is not None and start >= len(data):
            return self._head(416, {"Content-Range": f"bytes */{len(data)}"}, 0)
        headers = {} if start is None else {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        rest = data[start or 0 :]
        self._head(200 if start is None else 206, headers, len(rest))
        if hub.breaks:
            self.wfile.write(rest[: hub.breaks.pop(0)])
            self.close_connection = True
        elif hub.stalls:
            self.wfile.write(rest[: hub.stalls.pop(0)])
            hub.stopped.wait()
            self.close_connection = True
        else:
            self.wfile.write(rest)

    def _head(self, code: int, headers: dict[str, str], length: int) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def left(home: Path, pattern: str) -> list[Path]:
    """Files below HF_HOME."""
    return [path for path in home.rglob(pattern) if path.is_file()]
