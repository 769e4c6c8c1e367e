"""One end of a link, with the package's own sockets.

    python stream.py receive ADDRESS
    python stream.py send ADDRESS 2048:500 65536:20     # bytes of hidden states : messages

The sender prints a JSON line for each size.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from pipeinfer_cpp.engine.run import Row
from pipeinfer_cpp.net.messages import Pong, RunHeader, ToCoordinator, ToWorker
from pipeinfer_cpp.net.sockets import Link, Network, Server, clock

ALONE = 5
PATIENCE = 60.0


def receive(address: str) -> None:
    """Answer each message that came alone, and the last of a stream with the time of the first."""
    with Network() as network:
        server: Server[ToWorker] = Server(network.context, address, ToWorker)
        first: float | None = None
        while True:
            if not server.poll(1.0):
                continue
            peer, message, _ = server.receive()
            now = clock()
            if not isinstance(message, RunHeader):
                continue
            first = now if first is None else first
            if message.kind != "more":
                server.send(peer, Pong(first, now))
                first = None


def send(address: str, cases: list[tuple[int, int]]) -> None:
    with Network() as network:
        link: Link[ToCoordinator] = Link(network.context, address, ToCoordinator)
        _exchange(link, 100, 1)
        for size, count in cases:
            alone = []
            for _ in range(ALONE):
                sent = clock()
                pong, n_bytes = _exchange(link, size, 1)
                alone.append(pong.clock - sent)
                time.sleep(0.01)
            pong, n_bytes = _exchange(link, size, count)
            rate = (count - 1) * n_bytes / (pong.clock - pong.sent)
            result = {
                "size": size,
                "count": count,
                "bytes": n_bytes,
                "per_s": rate,
                "alone_s": statistics.median(alone),
            }
            print(json.dumps(result), flush=True)


def _exchange(link: Link[ToCoordinator], size: int, count: int) -> tuple[Pong, int]:
    """So many messages; the answer to the last, and the bytes of one."""
    payload = bytes(size)
    rows = tuple(Row(i, i, 0, i, i - 1, True) for i in range(size // 2048))
    n_bytes = 0
    for i in range(count):
        kind = "last" if i == count - 1 else "more"
        n_bytes = link.send(RunHeader(i, kind, (), rows, (), sent=clock()), payload)
    answer = link.receive(PATIENCE)
    if not isinstance(answer, Pong):
        sys.exit(f"no answer from {link.address}")
    return answer, n_bytes


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2])
    else:
        send(sys.argv[2], [(int(a), int(b)) for a, _, b in (text.partition(":") for text in sys.argv[3:])])
