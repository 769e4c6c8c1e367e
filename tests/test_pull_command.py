"""`pipeinfer models pull` as a process, with a hub on this machine."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import COMMAND, ENV
from hub import Hub, left

PARTS = {f"maker/toys/big-{i:05d}-of-00003.gguf": random.Random(i).randbytes(9000) for i in (1, 2, 3)}
KEY = "maker/toys/small/toy.gguf"
DATA = random.Random(0).randbytes(1_500_000)

TOML = """
[pair.toy]
target = { repo = "maker/toys", file = "big-00001-of-00003.gguf", parts = 3 }
draft = { repo = "maker/toys", file = "small/toy.gguf" }
[pair.small]
target = { repo = "maker/toys", file = "small/toy.gguf" }
[pair.none]
target = { repo = "maker/none", file = "toy.gguf" }
[pair.gated]
target = { repo = "gated/toys", file = "toy.gguf" }
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub({KEY: DATA, **PARTS})
    yield hub
    hub.stop()


def command(pair: str, hub: Hub, home: Path) -> subprocess.Popen[str]:
    (home / "models.toml").write_text(TOML)
    args = [*COMMAND, "models", "pull", pair, "--models", str(home / "models.toml")]
    env = ENV | hub.environment(home)
    return subprocess.Popen(args, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)


def test_the_command(hub: Hub, tmp_path: Path) -> None:
    process = command("toy", hub, tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    target, draft = map(Path, out.splitlines())
    assert target.read_bytes() == PARTS["maker/toys/big-00001-of-00003.gguf"] and draft.read_bytes() == DATA
    hub.requests.clear()
    again = command("toy", hub, tmp_path)
    assert again.communicate(timeout=60) == (out, "") and not hub.requests


@pytest.mark.parametrize(
    ("pair", "code", "said"),
    [("none", 2, "has no maker/none"), ("gated", 2, "accept its licence"), ("toy", 1, "could not be fetched")],
)
def test_the_command_fails(hub: Hub, tmp_path: Path, pair: str, code: int, said: str) -> None:
    hub.gated, hub.no_content = {"gated/toys"}, True
    process = command(pair, hub, tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "") and re.fullmatch(rf"Error: [^\n]*{said}[^\n]*\n", err), err


def test_the_command_interrupted(hub: Hub, tmp_path: Path) -> None:
    hub.files[KEY] = DATA * 20
    hub.stalls = [25_000_000]
    process = command("small", hub, tmp_path)
    end = time.monotonic() + 30
    while not left(tmp_path, "*part") or left(tmp_path, "*part")[0].stat().st_size < 10_000_000:
        assert time.monotonic() < end
        time.sleep(0.02)
    _, said = command("small", hub, tmp_path).communicate(timeout=30)
    assert said == "Error: small/toy.gguf is being fetched by another process: wait for it.\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "Stopped.\n") and not left(tmp_path, "*.gguf")
    hub.requests.clear()
    process = command("small", hub, tmp_path)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and Path(out.strip()).read_bytes() == DATA * 20
    assert next(request.start or 0 for request in hub.gets) >= 10_000_000
