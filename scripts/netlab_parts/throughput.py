"""Bytes per second and seconds a message: a shaped link against the arithmetic of an emulated one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
from netlab_parts.lab import Lab

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.transit import LinkSpeed, Transit

SIZES = (2048, 16384, 65536, 262144)
PORT = 7711
STREAM = str(Path(__file__).with_name("stream.py"))


class Comparison(msgspec.Struct, frozen=True):
    """One rate and size. Rates in bytes per second; `alone`: seconds of one message on an idle link."""

    speed: LinkSpeed
    size: int
    shaped: float
    emulated: float
    shaped_alone: float
    emulated_alone: float

    @property
    def ratio(self) -> float:
        return self.shaped / self.emulated


def compare(speed: LinkSpeed, sizes: Sequence[int] = SIZES, seconds: float = 0.6) -> list[Comparison]:
    """Send messages of each size for about so many seconds."""
    cases = [f"{size}:{max(6, int(speed.mbit * 125_000 * seconds / size))}" for size in sizes]
    with Lab([speed, speed]) as lab:
        address = f"tcp://{lab.address(1)}:{PORT}"
        lab.start(1, [STREAM, "receive", address])
        sender = lab.start(0, [STREAM, "send", address, *cases], stdout=subprocess.PIPE, text=True)
        lines = sender.communicate(timeout=240)[0].splitlines()
    if len(lines) != len(cases):
        raise UserError("The measurement ended early: nothing passes between the namespaces.")
    return [_beside(speed, json.loads(line)) for line in lines]


def _beside(speed: LinkSpeed, got: dict[str, float]) -> Comparison:
    n_bytes, count = int(got["bytes"]), int(got["count"])
    transit = Transit(speed)
    times = [transit.arrival(0.0, n_bytes) for _ in range(count)]
    emulated = (count - 1) * n_bytes / (times[-1] - times[0])
    alone = speed.seconds(n_bytes) + speed.jitter_ms / 2000
    return Comparison(speed, int(got["size"]), got["per_s"], emulated, got["alone_s"], alone)
