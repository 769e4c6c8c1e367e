"""Stages on a network: keys, strangers, and what is no message."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
from cli_helpers import COMMAND, ENV
from pipeline_helpers import GREEDY, PROMPT, TARGET, HandStage, free_port, local, text_of, until

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net import keys
from pipeinfer_cpp.net.messages import Ping


def pipeinfer(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**ENV, "XDG_CONFIG_HOME": str(home)}
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, env=env, timeout=60, check=False)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    return tmp_path


class NetworkStage(HandStage):
    """One that listens on every address, with keys, and trusts nobody yet."""

    def __init__(self, home: Path) -> None:
        self.home = home
        port = free_port()
        with_keys = {"XDG_CONFIG_HOME": str(home)}
        self.address = f"tcp://0.0.0.0:{port}"
        self.log = home.with_suffix(".log")
        env = {**os.environ, **ENV, **with_keys}
        command = [*COMMAND, "stage", "--listen", self.address, "--target", str(TARGET)]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)
        until(lambda: "waiting for" in self.said or self.process.poll() is not None, 20)
        assert self.process.poll() is None, self.said
        self.address = f"tcp://{self.said.partition('tcp://')[2].partition('@')[0]}@127.0.0.1:{port}"
        self.port = port

    def trust(self, key: str) -> None:
        assert pipeinfer(self.home, "keys", "trust", key, "--name", "the one").returncode == 0


@contextlib.contextmanager
def network_stages(home: Path, n: int) -> Iterator[list[NetworkStage]]:
    stages: list[NetworkStage] = []
    try:
        for i in range(n):
            stages.append(NetworkStage(home / f"machine{i}"))
        yield stages
    finally:
        for stage in stages:
            stage.close()


def test_keys_are_made_shown_trusted_and_forgotten(tmp_path: Path) -> None:
    shown = pipeinfer(tmp_path, "keys", "show")
    key = shown.stdout.strip()
    assert shown.returncode == 0 and len(key) == 52 and pipeinfer(tmp_path, "keys", "show").stdout.strip() == key
    assert (tmp_path / "pipeinfer" / "key").stat().st_mode & 0o777 == 0o600
    assert key not in (tmp_path / "pipeinfer" / "key").read_text()
    again = pipeinfer(tmp_path, "keys", "new")
    assert again.returncode == 2 and "--force" in again.stderr
    other = pipeinfer(tmp_path, "keys", "new", "--force").stdout.strip()
    assert len(other) == 52 and other != key
    assert pipeinfer(tmp_path, "keys", "trust", key, "--name", "my laptop").returncode == 0
    assert pipeinfer(tmp_path, "keys", "list").stdout == f"{key} my laptop\n"
    assert pipeinfer(tmp_path, "keys", "forget", key).returncode == 0
    assert pipeinfer(tmp_path, "keys", "list").stdout == ""
    assert pipeinfer(tmp_path, "keys", "forget", key).returncode == 2
    wrong = pipeinfer(tmp_path, "keys", "trust", "abc")
    assert wrong.returncode == 2 and "is not a key" in wrong.stderr


def test_stages_on_a_network_take_trusted_keys_and_their_neighbours(home: Path) -> None:
    with network_stages(home, 3) as stages:
        own = keys.identity().text
        for stage in stages:
            assert "nobody may use it yet" in stage.said
            stage.trust(own)  # and no stage trusts another one
        with local(stages=[s.address for s in stages], draft=None) as p:
            text = text_of(p, n=24)
        with local(stages=3, draft=None) as p:
            assert text_of(p, n=24) == text


def test_a_stranger_gets_one_sentence(home: Path) -> None:
    with network_stages(home, 1) as (stage,):
        began = time.monotonic()
        with pytest.raises(UserError, match=f"does not let this machine in.*keys trust {keys.identity().text}"):
            local(stages=[stage.address], draft=None)
        assert time.monotonic() - began < 5
        assert f"`pipeinfer keys trust {keys.identity().text}` here lets it in" in stage.said
        stage.trust(keys.identity().text)
        with local(stages=[stage.address], draft=None) as p:  # at once
            assert text_of(p, n=4)


def test_a_wrong_key_and_none_are_told(home: Path) -> None:
    other = keys.key_text(zmq.curve_keypair()[0])
    with network_stages(home, 1) as (stage,):
        stage.trust(keys.identity().text)
        for address in (f"tcp://{other}@127.0.0.1:{stage.port}", f"tcp://127.0.0.1:{stage.port}"):
            with pytest.raises(UserError, match=r"does not let this machine in|wants a key|does not answer"):
                local(stages=[address], draft=None)
        with pytest.raises(UserError, match="is not a key"):
            local(stages=[f"tcp://abc@127.0.0.1:{stage.port}"], draft=None)


def test_nothing_travels_in_the_open(home: Path) -> None:
    """What passes a wire between the coordinator and its stage has no word of ours in it."""
    with network_stages(home, 1) as (stage,):
        stage.trust(keys.identity().text)
        seen = bytearray()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            def relay() -> None:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", stage.port))

                def pass_on(a: socket.socket, b: socket.socket) -> None:
                    with contextlib.suppress(OSError):
                        while data := a.recv(65536):
                            seen.extend(data)
                            b.sendall(data)

                threading.Thread(target=pass_on, args=(far, near), daemon=True).start()
                pass_on(near, far)

            threading.Thread(target=relay, daemon=True).start()
            key = stage.address.partition("//")[2].partition("@")[0]
            with local(stages=[f"tcp://{key}@127.0.0.1:{port}"], draft=None) as p:
                assert p.generate(PROMPT, max_tokens=8, sampling=GREEDY).wait().text
        assert len(seen) > 2000 and b"CURVE" in seen
        assert not any(word in seen for word in (b"RunHeader", b"Welcome", b"LoadSlice", str(TARGET).encode()))


GARBAGE = {
    "no utf-8": b"\x81\xa4type\xa4\xff\xfe\xfd\xfc",
    "nested": b"\x91" * 1200 + b"\xc0",
    "nothing": b"",
    "a wrong tag": msgspec.msgpack.encode({"type": "Nothing"}),
    "large": b"\xc4" + b"x" * 100_000,
    "an infinite time": msgspec.msgpack.encode({"type": "Ping", "sent": float("inf")}),
}


def test_what_is_no_message_ends_nothing(home: Path, tmp_path: Path) -> None:
    """From strangers, in the middle of a text, at a stage without keys."""
    stage = HandStage(tmp_path / "stage.log").listen()
    try:
        with local(stages=[stage.address], draft=None) as p, zmq.Context() as context:
            expected = text_of(p, n=60)
            p.forget()
            generation = p.generate(PROMPT, max_tokens=60, sampling=GREEDY)
            for bytes_ in GARBAGE.values():
                with context.socket(zmq.DEALER) as knock:
                    knock.connect(stage.address)
                    for _ in range(20):
                        knock.send(bytes_)
                    knock.send_multipart([bytes_, b"x" * 20_000, b"more"])
                    time.sleep(0.05)
            assert generation.wait(20).text == expected
        assert stage.said.count("no message of this version") < 10
    finally:
        stage.close()


def test_strangers_take_no_room(home: Path, tmp_path: Path) -> None:
    """Pings that nobody reads the answers of, messages that never end, connections that say nothing."""
    stage = HandStage(tmp_path / "stage.log").listen()

    def resident() -> int:
        pages = int(Path(f"/proc/{stage.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    try:
        before = resident()
        ping = msgspec.msgpack.encode(Ping(0.0))
        host, port = "127.0.0.1", int(stage.address.rpartition(":")[2])
        silent = [socket.create_connection((host, port)) for _ in range(50)]
        with zmq.Context() as context, context.socket(zmq.DEALER) as knock:
            knock.setsockopt(zmq.SNDHWM, 0)
            knock.setsockopt(zmq.LINGER, 0)
            knock.connect(stage.address)
            until = time.monotonic() + 2.0
            n = 0
            while time.monotonic() < until:
                knock.send(ping, zmq.NOBLOCK)
                n += 1
            with context.socket(zmq.DEALER) as large:
                large.setsockopt(zmq.LINGER, 0)
                large.connect(stage.address)
                large.send(bytes(64 << 20))
                time.sleep(0.5)
            assert n > 10_000
            assert resident() - before < 60 << 20
        with local(stages=[stage.address], draft=None) as p:
            assert text_of(p, n=4)
        for one in silent:
            one.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while one.recv(1000):
                    pass
            one.close()
    finally:
        stage.close()
