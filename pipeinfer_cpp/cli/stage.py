"""`pipeinfer stage`: a stage started by hand, for a coordinator on another machine."""

from __future__ import annotations

import ipaddress
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipeinfer_cpp.cli import completing
from pipeinfer_cpp.cli.streams import drop_stdout
from pipeinfer_cpp.errors import UserError


def stage(
    listen: Annotated[str, typer.Option(help="Where to listen: tcp://HOST:PORT.", metavar="ADDRESS")],
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="No keys on a network: nothing is encrypted and whoever reaches the port can use this stage.",
        ),
    ] = False,
    target: Annotated[
        Path | None,
        typer.Option(
            "--target",
            "-m",
            help="This machine's copy of the model (a GGUF, or its name), or its slice of it (see `pipeinfer slice`).",
            metavar="FILE|OWNER/REPO:QUANT",
        ),
    ] = None,
    pair: Annotated[
        str | None,
        typer.Option(help="Or the pair that has it.", metavar="NAME", autocompletion=completing.pairs),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", "-t", min=1, max=512, help="Threads (default: what the coordinator says, else all cores)."
        ),
    ] = None,
    models: Annotated[Path | None, typer.Option(help="A further models.toml.", metavar="FILE")] = None,
) -> None:
    """Serve a part of a model's layers to a coordinator (chat or generate with --stages ADDRESS,...)."""
    from pipeinfer_cpp.net.keys import identity, trusted
    from pipeinfer_cpp.net.sockets import Network, check_address

    check_address(listen)
    own_key = None if insecure or is_local(listen) else identity()
    own = _own(target, pair, models)

    from pipeinfer_cpp.cli.signals import undisturbed
    from pipeinfer_cpp.net.messages import ModelRef
    from pipeinfer_cpp.workers.resolve import find_model, slice_of
    from pipeinfer_cpp.workers.stage import Stage

    def resolve(
        model: ModelRef, first: int, end: int, report: Callable[[str, int, int], None]
    ) -> tuple[Path, Path]:
        say(f"asked for layers {first}-{end - 1} of {Path(model.path).name} ({model.sha256[:12]})")
        heard = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal heard
            if what != heard:
                heard = what
                say(what)
            report(what, done, total)

        path = find_model(model, own, models, tell)
        return path, slice_of(path, first, end, tell)

    network = Network()
    worker = Stage(network, listen, resolve, say, threads, own_key)
    if own_key is None:
        say(f"waiting for a coordinator at {listen} (Ctrl-C ends this)")
    else:
        say(f"waiting for a coordinator at {_typed(listen, own_key.text)} (Ctrl-C ends this)")
        if not trusted():
            say("nobody may use it yet: `pipeinfer keys show` there prints KEY, `keys trust KEY` here lets it in")
    try:
        worker.serve()
    finally:
        with undisturbed():
            worker.close()
            network.close()
            say("ended")


def _typed(listen: str, key: str) -> str:
    """What has to be typed elsewhere: `listen`, with the key, and this machine's address for `0.0.0.0`."""
    host, _, port = listen.removeprefix("tcp://").rpartition(":")
    if host in ("0.0.0.0", "*", "[::]", "::"):
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # sends nothing: it asks which address would be used
                host = probe.getsockname()[0]
            except OSError:
                host = socket.gethostname()
    return f"tcp://{key}@{host}:{port}"


def say(text: str) -> None:
    """One line about what goes on, with the time."""
    try:
        print(time.strftime("%H:%M:%S"), text, file=sys.stdout, flush=True)
    except OSError:  # whoever read this has gone, or the disk is full: the stage goes on
        drop_stdout()


def is_local(address: str) -> bool:
    """Whether only this machine can reach it."""
    kind, _, rest = address.partition("://")
    if kind == "ipc":
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _own(target: Path | None, pair: str | None, models: Path | None) -> Path | None:
    """The file that was named, checked now rather than when a coordinator asks."""
    if target is not None and pair is not None:
        raise UserError("Give --target or --pair, not both.")
    if pair is not None:
        from pipeinfer_cpp.models import load_registry

        target = load_registry(models).pair(pair).path("target")
    if target is not None:
        from pipeinfer_cpp.cli.fetching import here
        from pipeinfer_cpp.gguf import Source
        from pipeinfer_cpp.workers.resolve import check_slice

        target = here(target)
        check_slice(Source.open(target))
    return target
