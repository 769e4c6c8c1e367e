"""A cluster of network namespaces on one machine: a node each, joined by a switch in one more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from netlab_parts.shaping import find_shaper, needs_relay, netem, run, segments, tbf

from pipeinfer_cpp.cli.signals import undisturbed
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.transit import LinkSpeed

PREFIX = "pinlab-"
ROOT = Path(__file__).resolve().parents[2]


class Lab:
    """Node k has the address 10.77.0.(k+1) and sends at links[k]'s speed. Use `with`: everything goes at its end."""

    def __init__(self, links: Sequence[LinkSpeed]) -> None:
        if not 2 <= len(links) <= 100:
            raise UserError(f"A lab has 2 to 100 nodes, and {len(links)} were asked for.")
        self.links = list(links)
        self.shaper = find_shaper()
        self._prefix = f"{PREFIX}{os.getpid()}-"
        self._children: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Lab:
        remove_orphans()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def relayed(self) -> bool:
        """A relay in user space makes the delays."""
        return self.shaper == "tbf" and any(needs_relay(link) for link in self.links)

    def address(self, node: int) -> str:
        return f"10.77.0.{node + 1}"

    def start(self, node: int | None, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A Python process on a node (None: in the switch), with a process group of its own."""
        paths = [str(ROOT), str(ROOT / "scripts")]
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1")
        where = "switch" if node is None else str(node)
        child = subprocess.Popen(
            ["ip", "netns", "exec", self._prefix + where, sys.executable, *command],
            env=env,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, **options},
        )
        self._children.append(child)
        return child

    def close(self) -> None:
        """End its processes and remove its namespaces, with the devices in them."""
        with undisturbed():
            for name in namespaces(self._prefix):
                remove(name)
            for child in self._children:
                child.kill()
                child.wait()
            self._children.clear()

    def _build(self) -> None:
        switch = self._prefix + "switch"
        run("ip", "netns", "add", switch)
        if not self.relayed:
            run("ip", "-n", switch, "link", "add", "name", "hub", "type", "bridge")
            run("ip", "-n", switch, "link", "set", "dev", "hub", "up")
        for k, link in enumerate(self.links):
            self._add(k, link, switch)
        if self.relayed:
            ports = [f"p{k},{link.mbit},{link.latency_ms},{link.jitter_ms}" for k, link in enumerate(self.links)]
            relay = self.start(None, [str(Path(__file__).with_name("relay.py")), *ports], stdout=subprocess.PIPE)
            if relay.stdout is None or not relay.stdout.readline():
                raise UserError("The relay that makes delays does not start: packet sockets are not allowed here.")

    def _add(self, k: int, link: LinkSpeed, switch: str) -> None:
        node = f"{self._prefix}{k}"
        run("ip", "netns", "add", node)
        names = ["name", f"p{k}", "netns", switch, "type", "veth", "peer", "name", "lab0", "netns", node]
        run("ip", "link", "add", *names)
        run("ip", "-n", switch, "link", "set", "dev", f"p{k}", "up")
        if not self.relayed:
            run("ip", "-n", switch, "link", "set", "dev", f"p{k}", "master", "hub")
        run("ip", "-n", node, "addr", "add", f"{self.address(k)}/24", "dev", "lab0")
        run("ip", "-n", node, "link", "set", "dev", "lab0", "gso_max_segs", str(segments(link)))
        for device in ("lo", "lab0"):
            run("ip", "-n", node, "link", "set", "dev", device, "up")
        if self.shaper == "netem":
            run("tc", "qdisc", "add", "dev", "lab0", "root", *netem(link), namespace=node)
        elif link.mbit:
            run("tc", "qdisc", "add", "dev", "lab0", "root", *tbf(link), namespace=node)


def namespaces(prefix: str = PREFIX) -> list[str]:
    """The labs' namespaces that exist."""
    lines = run("ip", "netns", "list").splitlines()
    return [name for name in (line.split()[0] for line in lines if line.strip()) if name.startswith(prefix)]


def remove(name: str) -> None:
    """End what runs in a namespace, then delete it."""
    with contextlib.suppress(UserError):
        for pid in run("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(UserError):
        run("ip", "netns", "del", name)


def remove_orphans() -> None:
    """What labs that were killed have left."""
    for name in namespaces():
        owner = name.removeprefix(PREFIX).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            remove(name)
