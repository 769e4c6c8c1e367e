"""Pipelines of the bundled demo pair, and stages started by hand, for tests with real processes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pipeinfer_cpp
from pipeinfer_cpp.net.messages import PROTOCOL, Bye, Hello, Message, Refuse, ToCoordinator, Welcome
from pipeinfer_cpp.net.sockets import Link, Network, clock
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.system.versions import llama_version, package_version

DEMO = Path(pipeinfer_cpp.__file__).parent / "models" / "demo"
TARGET = DEMO / "demo-target-q8_0.gguf"
DRAFT = DEMO / "demo-draft-q8_0.gguf"
GREEDY = Sampling(temp=0)
PROMPT = "Once upon a time there was a little fox who"
ROOT = Path(pipeinfer_cpp.__file__).parents[1]


def local(**options: Any) -> Pipeline:
    """A pipeline of the demo pair on this machine."""
    return Pipeline.local(target=TARGET, draft=options.pop("draft", DRAFT), **options)


def text_of(pipeline: Pipeline, prompt: Any = PROMPT, n: int = 24, **options: Any) -> str:
    options.setdefault("sampling", GREEDY)
    return pipeline.generate(prompt, max_tokens=n, **options).wait().text


def worker_pids(parent: int | None = None) -> dict[int, str]:
    """Worker processes started by `parent` (this process): pid -> its role (`stage` or `draft`)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            status = (folder / "status").read_text()
            if b"pipeinfer_cpp.workers" in command and f"\nPPid:\t{parent or os.getpid()}\n" in status:
                found[int(folder.name)] = command[command.index(b"pipeinfer_cpp.workers") + 1].decode()
    return found


def alive(pid: int) -> bool:
    """False for a process that is gone, or a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(what: Callable[[], Any], seconds: float) -> float:
    """Wait until it holds. Returns the seconds it took; fails when it takes longer."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.005)
    return time.monotonic() - began


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class HandStage:
    """A stage started by hand on loopback TCP."""

    def __init__(
        self,
        log: Path,
        own: Path = TARGET,
        port: int | None = None,
        more: tuple[str, ...] = (),
        host: str = "127.0.0.1",
        **env: str,
    ) -> None:
        self.address = f"tcp://{host}:{port or free_port()}"
        self.log = log
        environment = dict(os.environ, PYTHONPATH=str(ROOT), **env)
        command = [
            sys.executable,
            "-m",
            "pipeinfer_cpp",
            "stage",
            "--listen",
            self.address,
            "--target",
            str(own),
            *more,
        ]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def listen(self) -> HandStage:
        """Wait until it listens."""
        until(lambda: answers(self.address, 0.2) or self.process.poll() is not None, 20)
        assert self.process.poll() is None, self.said
        return self

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def hand_stages(
    folder: Path, n: int, own: Path = TARGET, host: str = "127.0.0.1", **env: str
) -> Iterator[list[HandStage]]:
    stages = [HandStage(folder / f"stage{i}.log", own, host=host, **env) for i in range(n)]
    try:
        yield [s.listen() for s in stages]
    finally:
        for stage in stages:
            stage.close()


def answers(address: str, seconds: float) -> bool:
    """True when something accepts connections there."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), seconds):
        return True
    return False


class Knock:
    """A bare link to a worker, for what no coordinator would say."""

    def __init__(self, address: str) -> None:
        self.network = Network()
        self.link: Link[Any] = Link(self.network.context, address, ToCoordinator)

    def __enter__(self) -> Knock:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.send(Bye())
        time.sleep(0.02)
        self.link.close()
        self.network.close()

    def hello(self, role: str = "coordinator", session: str = "test", **changed: Any) -> Any:
        fields = {"protocol": PROTOCOL, "package": package_version(), "llama": llama_version(), **changed}
        self.link.send(Hello(role=role, session=session, **fields))
        return self.next((Welcome, Refuse))

    def next(self, kind: Any = None, seconds: float = 5.0) -> Any:
        """The next message (of that kind), None when none comes."""
        deadline = clock() + seconds
        while clock() < deadline:
            message: Message | None = self.link.receive(0.05)
            if message is not None and (kind is None or isinstance(message, kind)):
                return message
        return None


def welcomed(knock: Knock) -> bool:
    return isinstance(knock.hello(), Welcome)
