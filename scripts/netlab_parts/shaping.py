"""What makes a link slow: the kernel's netem, or tbf for the rate with a relay for the delay."""

from __future__ import annotations

import os
import shutil
import subprocess

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.transit import LinkSpeed

PACKET = 1538
"""Bytes of a full packet on the wire."""
UNSEEN = 24
"""Of these, what the kernel does not count: checksum, preamble and gap."""
SHORTEST_MS = 0.05
"""A bridge alone takes nearly as long: below this there is no relay."""


def run(*command: str, namespace: str | None = None) -> str:
    """A command's output. Raises UserError with what it said when it fails."""
    inside = ["ip", "netns", "exec", namespace] if namespace else []
    done = subprocess.run([*inside, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20)
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}.")
    return done.stdout


def find_shaper() -> str:
    """`netem` or `tbf`. Raises UserError, in one sentence, where links cannot be shaped."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise UserError("Network namespaces need root on Linux: run this with sudo.")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise UserError(f"`{tool}` is not installed: it comes with iproute2 (Debian: apt install iproute2).")
    name = f"pinlab-{os.getpid()}-probe"
    try:
        run("ip", "netns", "add", name)
    except UserError as error:
        raise UserError(f"Network namespaces are not allowed here: {error}") from None
    try:
        try:
            run("ip", "-n", name, "link", "add", "name", "a", "type", "veth", "peer", "name", "b")
            run("ip", "-n", name, "link", "add", "name", "hub", "type", "bridge")
        except UserError as error:
            raise UserError(f"Network devices cannot be made here: {error}") from None
        for kind, qdisc in (("netem", netem(LinkSpeed(10, 1, 1))), ("tbf", tbf(LinkSpeed(10)))):
            try:
                run("tc", "qdisc", "add", "dev", "a", "root", *qdisc, namespace=name)
                return kind
            except UserError:
                continue
        raise UserError("Links cannot be shaped here: this kernel has neither sch_netem nor sch_tbf.")
    finally:
        run("ip", "netns", "del", name)


def segments(speed: LinkSpeed) -> int:
    """Packets that the kernel may handle as one. Few, as on a wire; on fast links a core cannot keep up with that."""
    return 1 if 0 < speed.mbit <= 200 else 16


def netem(speed: LinkSpeed) -> list[str]:
    """For tc: rate, latency and jitter in one. With a rate it keeps packets in order, so there always is one."""
    # Its jitter goes both ways about the mean.
    half = speed.jitter_ms / 2
    rate = _wire_rate(speed) if speed.mbit else 100_000.0
    return ["netem", "limit", "100000", "delay", f"{speed.latency_ms + half:.4f}ms", f"{half:.4f}ms", *_rate(rate)]


def tbf(speed: LinkSpeed) -> list[str]:
    """For tc: the rate. What its bucket holds passes at once: hardly more than a packet."""
    burst = int(segments(speed) * PACKET + speed.mbit * 12.5)
    return ["tbf", "burst", str(burst), "limit", str(1 << 28), *_rate(_wire_rate(speed))]


def needs_relay(speed: LinkSpeed) -> bool:
    return speed.latency_ms + speed.jitter_ms >= SHORTEST_MS


def _wire_rate(speed: LinkSpeed) -> float:
    """The rate of what the kernel counts when the wire, with all of a packet, is full."""
    return speed.mbit * (PACKET - UNSEEN) / PACKET


def _rate(mbit: float) -> list[str]:
    return ["rate", f"{mbit * 1000:.0f}kbit"]
