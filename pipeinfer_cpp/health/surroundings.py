"""Sockets, folders, models."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.health.finding import FAILED, OK, WARNING, Finding


def sockets() -> Iterator[Finding]:
    """A message there and back over each kind of socket."""
    import zmq

    yield Finding("ZeroMQ", OK, f"libzmq {zmq.zmq_version()}, pyzmq {zmq.__version__}")
    with tempfile.TemporaryDirectory(prefix="pi-") as folder:
        for name, address in (("ipc socket", f"ipc://{folder}/s"), ("loopback TCP socket", "tcp://127.0.0.1:*")):
            try:
                yield Finding(name, OK, f"{1e6 * _round_trip(zmq, address):.0f} microseconds there and back")
            except zmq.ZMQError as error:
                yield Finding(name, FAILED, f"{address}: {error.strerror}", "A firewall or a sandbox forbids it.")


def _round_trip(zmq: object, address: str) -> float:
    """Seconds, the median of many."""
    context = zmq.Context()  # type: ignore[attr-defined]
    there, here = context.socket(zmq.PAIR), context.socket(zmq.PAIR)  # type: ignore[attr-defined]
    try:
        for socket in (there, here):
            socket.setsockopt(zmq.LINGER, 0)  # type: ignore[attr-defined]
            socket.setsockopt(zmq.RCVTIMEO, 2000)  # type: ignore[attr-defined]
        there.bind(address)
        here.connect(there.getsockopt_string(zmq.LAST_ENDPOINT))  # type: ignore[attr-defined]
        n = 200

        def answer() -> None:
            for _ in range(n):
                there.send(there.recv())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        times = []
        for _ in range(n):
            began = time.perf_counter()
            here.send(b"x")
            here.recv()
            times.append(time.perf_counter() - began)
        thread.join(2)
        return sorted(times)[n // 2]
    finally:
        there.close(0)
        here.close(0)
        context.term()


def cache() -> Iterator[Finding]:
    from pipeinfer_cpp.system.files import cache_dir

    advice = "Make it writable, or set PIPEINFER_CACHE to another folder."
    try:
        folder = cache_dir()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except (OSError, UserError) as error:
        yield Finding("cache", FAILED, f"slices cannot be kept: {error}", advice)
        return
    free = shutil.disk_usage(folder).free / 1e9
    used = sum(512 * f.stat().st_blocks for f in Path(folder).rglob("*") if f.is_file()) / 1e9  # slices have holes
    text = f"{folder}: {used:.1f} GB used, {free:.0f} GB free"
    yield Finding("cache", OK if free > 5 else WARNING, text, "" if free > 5 else "Slices need as much room as models.")


def models() -> Iterator[Finding]:
    from pipeinfer_cpp.models import load_registry
    from pipeinfer_cpp.models.registry import user_toml

    own = user_toml()
    try:
        registry = load_registry()
    except UserError as error:
        yield Finding("models.toml", FAILED, str(error), "Mend that file, or move it away.")
        return
    yield Finding("models.toml", OK, f"{own} is read too" if own.exists() else f"bundled; yours would be {own}")
    here = []
    for pair in registry.pairs.values():
        files = [file for file in (pair.target, pair.draft) if file is not None]
        if all(file.local() is not None for file in files):
            here.append(pair.name)
    if "demo" in here:
        yield Finding("pairs here", OK, ", ".join(here))
    else:
        yield Finding("pairs here", FAILED, "the bundled demo pair is missing", "pip install --force-reinstall .")
