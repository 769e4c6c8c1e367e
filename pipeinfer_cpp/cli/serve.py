"""`pipeinfer serve`: the pipeline behind an HTTP API that programs know, and a chat page."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeinfer_cpp.cli import completing
from pipeinfer_cpp.cli.common import PipelineOptions
from pipeinfer_cpp.cli.groups import with_options
from pipeinfer_cpp.cli.signals import ENDING, handling, heeded
from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.system.versions import installing

if TYPE_CHECKING:
    from pipeinfer_cpp.pipeline import Pipeline
    from pipeinfer_cpp.server.app import Settings

SLOTS = 4
_SERVER = "Server"


@with_options(PipelineOptions)
def serve(
    pipeline_options: PipelineOptions,
    host: Annotated[
        str, typer.Option(help="Where to listen; an address of this machine.", rich_help_panel=_SERVER)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port (0: any free one).", rich_help_panel=_SERVER)] = 8080,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Who asks must know this key; may be given several times.", rich_help_panel=_SERVER),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Keys, one in each line.", metavar="FILE", rich_help_panel=_SERVER)
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen on a network without an API key.", rich_help_panel=_SERVER),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name that requests may come for where there is no API key (* for any).", metavar="NAME",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            help="A web origin whose pages may ask (https://example.org, or *).", metavar="ORIGIN",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait for a slot.", rich_help_panel=_SERVER)] = 64,
    request_timeout: Annotated[
        float, typer.Option(help="Seconds that a request may take (0: no limit).", rich_help_panel=_SERVER)
    ] = 0.0,
    ping: Annotated[
        float,
        typer.Option(help="Seconds of silence in a stream before a comment says it goes on.", rich_help_panel=_SERVER),
    ] = 15.0,
    max_body: Annotated[
        int, typer.Option(help="Largest body of a request, in bytes.", rich_help_panel=_SERVER)
    ] = 16 << 20,
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="Another chat template than the model's: a file, or a name.", metavar="FILE|NAME",
            autocompletion=completing.templates, rich_help_panel=_SERVER,
        ),
    ] = None,
    kwargs: Annotated[
        str | None,
        typer.Option("--chat-template-kwargs", help="Its variables, as JSON.", metavar="JSON", rich_help_panel=_SERVER),
    ] = None,
) -> None:
    """Serve the model to programs (the OpenAI API) and browsers (a chat page). Ctrl-C ends it."""
    keys = _keys(api_key, api_key_file)
    if not 0 <= port < 65536:
        raise UserError("--port must be between 0 and 65535.")
    if not 0.01 <= ping <= 3600:
        raise UserError("--ping must be between 0.01 and 3600 seconds.")
    if queue < 0 or request_timeout < 0 or max_body < 1024:
        raise UserError("--queue and --request-timeout must be 0 or more, --max-body at least 1024 bytes.")
    if not (_is_here(host) or keys or insecure):
        raise UserError(
            f"{host} can be reached from other machines: give an --api-key, or type --insecure if you trust them."
        )
    options = pipeline_options.options()
    if pipeline_options.slots is None:
        options = dataclasses.replace(options, slots=SLOTS)
    _extra()
    from pipeinfer_cpp.cli.chat import given_template
    from pipeinfer_cpp.cli.chat_store import worth_saying
    from pipeinfer_cpp.cli.opened import opened
    from pipeinfer_cpp.server.app import Settings

    template, variables = given_template(chat_template, kwargs)
    listening = _bound(host, port)
    settings = Settings(keys, tuple(cors or ()), queue, max_body, request_timeout, ping, _names(host, allowed_host))
    with listening, opened(options, "tell") as pipeline:
        for warning in worth_saying(pipeline.warnings):
            print(warning, file=sys.stderr)
        signals = asyncio.run(_serve(pipeline, settings, (template, variables), listening))
        if pipeline.driver.failure is not None:
            raise PipeInferError(f"The pipeline has ended: {pipeline.driver.failure}")
    if signals:
        raise typer.Exit(128 + signals[0])


async def _serve(
    pipeline: Pipeline, settings: Settings, template: tuple[Any, Any], listening: socket.socket
) -> list[int]:
    """Until a signal comes, or the pipeline ends. Returns the signals that came."""
    import uvicorn

    from pipeinfer_cpp.server.app import Server
    from pipeinfer_cpp.server.prompts import Prompts

    signals: list[int] = []

    class Web(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """The first signal asks for an orderly end. (uvicorn raises it again within the event loop, which tears
            that down while threads work for it.)"""

            def ask(number: int, frame: FrameType | None) -> None:
                signals.append(number)
                self.handle_exit(number, frame)

            with handling(heeded(signal.SIGINT, *ENDING), ask):
                yield

    server = Server(pipeline, settings, Prompts(pipeline, *template))
    config = uvicorn.Config(
        server.app, log_level="error", access_log=False, timeout_graceful_shutdown=3, server_header=False
    )
    web = Web(config)
    serving = asyncio.create_task(web.serve(sockets=[listening]))
    while not web.started and not serving.done():
        await asyncio.sleep(0.02)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    slots = pipeline.settings.slots
    print(
        f"Serving {server.model} at http://{shown}:{port} ({slots} slot{'s' if slots != 1 else ''} of "
        f"{pipeline.settings.n_ctx} tokens). API: http://{shown}:{port}/v1 · Ctrl-C ends this.",
        flush=True,
    )
    while not serving.done():
        if pipeline.driver.failure is not None:
            web.should_exit = True
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(asyncio.shield(serving), 0.5)
    return signals


def _keys(given: list[str] | None, file: Path | None) -> tuple[str, ...]:
    keys = list(given or ())
    if file is not None:
        try:
            keys += [line.strip() for line in file.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read: {error}.") from None
        if not keys:
            raise UserError(f"{file} has no key in it.")
    if not all(keys):
        raise UserError("--api-key must not be empty.")
    return tuple(keys)


def _names(host: str, allowed: Sequence[str] | None) -> tuple[str, ...]:
    """Names that requests without a key may come for; a server that all may reach has many."""
    if any(not name or "/" in name or "://" in name for name in allowed or ()):
        raise UserError("--allowed-host takes a name or an address alone, without http:// and port.")
    return (host, *(allowed or ())) if _is_here(host) else ("*",)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    """Before anything long is begun: a port that is taken is told at once."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
    except OSError as error:
        raise UserError(f"--host {host} is no address of this machine: {error.strerror or error}.") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise UserError(f"Cannot listen at {host}, port {port}: {error.strerror}. Choose another --port.") from None
    return listening


def _extra() -> None:
    """Raise UserError where what a server needs is not installed."""
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed, which serve needs: run "
            f"{installing('starlette uvicorn prometheus_client')}"
        ) from None

