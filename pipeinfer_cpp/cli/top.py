"""`pipeinfer top`: a running pipeline, live."""

from __future__ import annotations

import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import msgspec
import typer

from pipeinfer_cpp.errors import PipeInferError, UserError

if TYPE_CHECKING:
    from pipeinfer_cpp.cluster.live import Live

USUAL = "http://127.0.0.1:8080"
WAIT = 5.0
"""Seconds for an answer."""


class Unreachable(PipeInferError):
    """Nothing answers there now."""


def top(
    what: Annotated[
        str | None,
        typer.Argument(help="Where `pipeinfer serve` listens, or a process id (a pipeline here).", metavar="URL"),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Where the server asks for one.", envvar="PIPEINFER_API_KEY", metavar="KEY")
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", metavar="S")] = 0.5,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one look as JSON, for programs.")] = False,
) -> None:
    """Watch a pipeline: its stages, drafts, conversations, events. Ctrl-C ends it."""
    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.live_view import frame

    if not 0.05 <= interval <= 3600:
        raise UserError("--interval must be between 0.05 and 3600 seconds.")
    look = _of(what, api_key)
    now = look()
    if as_json:
        typer.echo(msgspec.json.encode(now))
    elif once or not sys.stdout.isatty():
        console = out()
        console.print(frame(now, min(console.width, 120)))
    else:
        _watch(look, interval, now)


def _of(what: str | None, api_key: str | None) -> Callable[[], Live]:
    """What looks at the pipeline that is meant: the one on this machine, else the server at the usual address."""
    from pipeinfer_cpp.cluster.window import windows

    if what is not None and not what.isdecimal():
        return partial(_server, _address(what), api_key)
    here = windows()
    if what is not None:
        if int(what) not in here:
            others = f" Those of yours: {', '.join(map(str, here))}." if here else ""
            raise UserError(f"Process {what} has no pipeline that can be watched from here.{others}")
        return partial(_process, int(what), here[int(what)])
    if len(here) > 1:
        pids = ", ".join(map(str, here))
        raise UserError(f"Several pipelines run here: name one by its process id ({pids}).")
    for pid, path in here.items():
        return partial(_process, pid, path)
    return partial(_server, USUAL, api_key)


def _process(pid: int, path: Path) -> Live:
    from pipeinfer_cpp.cluster.window import look

    now = look(path)
    if now is None:
        raise Unreachable(f"The pipeline of process {pid} does not answer: it has ended, or ends now.")
    return now


def _server(address: str, api_key: str | None) -> Live:
    """`address`: http://HOST:PORT. Raises Unreachable where nothing answers."""
    from pipeinfer_cpp.cluster.live import Live

    request = urllib.request.Request(f"{address}/pipeline")
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return msgspec.json.decode(answer.read(), type=Live)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise UserError(f"The server at {address} asks for an API key: give it with --api-key.") from None
        if error.code == 503:
            raise Unreachable(f"The pipeline at {address} has ended; see what the server printed.") from None
        raise UserError(f"What answers at {address} is no pipeinfer server (it answered with {error.code}).") from None
    except msgspec.DecodeError:
        raise UserError(f"What answers at {address} is no pipeinfer server of this version.") from None
    except (OSError, http.client.HTTPException):
        raise Unreachable(
            f"Nothing answers at {address}: start `pipeinfer serve` there, or name another address."
        ) from None


def _address(url: str) -> str:
    """http://HOST:PORT of what was typed."""
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or any(c.isspace() or not c.isprintable() for c in whole):
        raise UserError(f"{url!r} is no address: write it as http://127.0.0.1:8080.")
    return whole.rstrip("/")


def _watch(look: Callable[[], Live], interval: float, now: Live) -> None:
    from rich.live import Live as Screen

    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.live_view import frame

    console, note = out(), ""
    try:
        with Screen(console=console, screen=True, auto_refresh=False) as screen:
            while True:
                screen.update(frame(now, console.width, console.height, note), refresh=True)
                time.sleep(interval)
                try:
                    now, note = look(), ""
                except Unreachable:
                    note = "It does not answer any more; what is shown is what it said last."
    except KeyboardInterrupt:
        return
