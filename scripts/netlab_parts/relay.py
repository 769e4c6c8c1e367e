"""A switch that delays what passes, for kernels without netem. Runs in a namespace of its own.

    python relay.py p0,10,1.0,0.5 p1,10,1.0,0.5     # device, Mbit/s (0: no limit), ms, ms of jitter

tbf limits the rate, but lets the first packet of a burst pass at once; so each packet is also held for
its own time on the wire. Packets keep their order.
"""

from __future__ import annotations

import heapq
import random
import select
import socket
import sys
import time

SOL_PACKET, VNET_HDR, IGNORE_OUTGOING = 263, 15, 23
EVERYTHING = 3
HEADER = 10
"""Bytes before each frame that say which checksums are still to be made, and how it is to be cut into packets."""
UNSEEN = 24


class Port:
    """One device, and when what comes in there may go on."""

    def __init__(self, text: str) -> None:
        self.name, mbit, latency, jitter = text.split(",")
        self.mbit, self.latency, self.jitter = float(mbit), float(latency) / 1000, float(jitter) / 1000
        self.last = 0.0
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(SOL_PACKET, VNET_HDR, 1)
        self.socket.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
        for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.socket.setsockopt(socket.SOL_SOCKET, buffer + 25, 1 << 24)  # the FORCE variant
        self.socket.bind((self.name, EVERYTHING))
        self.socket.setblocking(False)

    def fileno(self) -> int:
        return self.socket.fileno()

    def due(self, now: float, n_bytes: int) -> float:
        wire = 8e-6 * (n_bytes + UNSEEN) / self.mbit if self.mbit else 0.0
        self.last = max(self.last, now + wire + self.latency + random.random() * self.jitter)
        return self.last


def serve(ports: list[Port]) -> None:
    """Pass frames on, for ever."""
    home: dict[bytes, Port] = {}
    waiting: list[tuple[float, int, Port, bytes]] = []
    order = 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for port in select.select(ports, [], [], timeout)[0]:
            try:
                frame = port.socket.recv(1 << 17)
            except OSError:
                continue
            to, source = frame[HEADER : HEADER + 6], frame[HEADER + 6 : HEADER + 12]
            home[source] = port
            order += 1
            heapq.heappush(waiting, (port.due(time.monotonic(), len(frame) - HEADER), order, port, frame))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, port, frame = heapq.heappop(waiting)
            to = home.get(frame[HEADER : HEADER + 6])
            for other in [to] if to is not None else [p for p in ports if p is not port]:
                try:
                    other.socket.send(frame)
                except OSError:
                    continue  # a full buffer loses packets, as a switch does


if __name__ == "__main__":
    all_ports = [Port(text) for text in sys.argv[1:]]
    print("ready", flush=True)
    serve(all_ports)
