"""The only place with ZeroMQ: a worker listens on one socket, everyone else connects to it.

One listening socket a worker carries everything (runs, cancellations, answers), so a machine needs one
open port and the coordinator none. Cancellations overtake runs because a worker's I/O thread takes
messages in while another thread computes.

ZeroMQ's own heartbeats are not used: they see only whole messages, so a large one on a slow wire looks like silence,
and one that is late by a moment ends the connection. Who lives is found out above, by messages on a connection that
carries nothing large (see `cluster.watch` and `workers.stage`).
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.keys import ZAP_DOMAIN, Identity, identity, key_bytes, split_address
from pipeinfer_cpp.net.messages import Message, Piece
from pipeinfer_cpp.system.threads import check_room

T = TypeVar("T")

ACTIVE_S = 0.01
"""How long an active wait goes on before it sleeps."""
PIECE = 16384
"""Bytes of payload that one message over TCP carries; what is larger goes in pieces."""
HELD = 1 << 28
"""Bytes of pieces that a server holds at most of messages that are not complete."""
LARGEST = 16 << 20
"""Bytes of a message over TCP: ZeroMQ ends a connection that sends more, before it takes room for it."""
WAITING = 10_000
"""Messages of one peer that wait at most; whoever sends more is held up."""
GREETING = 4096
"""Bytes of the largest message that a peer may send before it has said hello."""
SHAKE_S = 5.0
"""Seconds that a connection has to say that it is one of ZeroMQ's, and whose."""
THREADS = 2
"""Of a context: where ZeroMQ cannot start one it ends the process."""
CALM = 0.75
"""The share of the usual wait that an active one sleeps first."""


def _prepare(socket: zmq.Socket[bytes], address: str) -> None:
    if "://[" in address:  # not for names: of those ZeroMQ would try the first IPv6 address only
        socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    if address.startswith("tcp:"):
        socket.setsockopt(zmq.MAXMSGSIZE, LARGEST)


_NOT_OURS = (msgspec.MsgspecError, RecursionError, ValueError, OverflowError)
"""What decoding says of bytes that are no message of ours."""


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


class _Poll:
    """Waits on sockets. An active wait sleeps for most of what such waits took before, then looks again
    and again: a sleeping core takes some 50 microseconds to come back, but one that looks all the time
    slows down those that compute."""

    def __init__(self, sockets: Sequence[zmq.Socket[bytes]]) -> None:
        self._poller = zmq.Poller()
        for socket in sockets:
            self._poller.register(socket, zmq.POLLIN)
        self._usual = 0.0

    def __call__(self, seconds: float, active: bool) -> list[tuple[Any, int]]:
        seconds = max(seconds, 0.0)  # a negative time would be for ever
        if not active:
            return self._poller.poll(int(seconds * 1000))
        began = time.monotonic()
        ready = self._poller.poll(int(1000 * min(seconds, self._usual * CALM)))
        until = min(seconds, self._usual + ACTIVE_S)
        while not ready and (waited := time.monotonic() - began) < until:
            ready = self._poller.poll(0)
        waited = time.monotonic() - began
        self._usual += (min(waited, ACTIVE_S) - self._usual) / 8
        return ready or self._poller.poll(max(0, int((seconds - waited) * 1000)))


def check_address(address: str) -> None:
    """Raise UserError unless the address is tcp://host:port, with a key before it or not, or a short enough ipc://
    path."""
    address, key = split_address(address)
    if key is not None:
        key_bytes(key)
    kind, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isdigit() and 0 < int(port) < 65536:
        return
    if kind == "ipc" and rest and len(rest.encode()) <= 100:
        return
    raise UserError(f"{address!r} is not an address: write tcp://HOST:PORT (or ipc:///PATH of at most 100 bytes).")


_REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Link(Generic[T]):
    """A connection to a worker's socket. Messages in the order they were sent; nothing blocks."""

    def __init__(self, context: zmq.Context[Any], address: str, kind: Any) -> None:
        self.whole_address = address
        """With the key in it."""
        self.address, key = split_address(address)
        self.keyed = key is not None
        self.refused = False
        """The other end does not take our key, has another one than the address says, or wants one."""
        self._socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        _prepare(self._socket, self.address)
        if key is not None:
            own = identity()
            self._socket.curve_publickey, self._socket.curve_secretkey = own.public, own.secret
            self._socket.curve_serverkey = key_bytes(key)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | _REFUSALS)
        try:
            self._socket.connect(self.address)
        except zmq.ZMQError as error:
            self.close()
            raise UserError(f"{self.address} is not an address that can be reached: {error.strerror}.") from error

    def send(self, message: Message, payload: Any = None) -> int:
        """Queue a message. Returns its bytes: none where the other end does not let this one in."""
        head = self._encode(message)
        try:
            if payload is None:
                self._socket.send(head, zmq.NOBLOCK)
                return len(head)
            size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
            rest = payload
            if size > PIECE and self.address.startswith("tcp:"):
                last = (size - 1) // PIECE * PIECE
                for at in range(0, last, PIECE):
                    self._socket.send(self._encode(Piece()), zmq.SNDMORE | zmq.NOBLOCK)
                    self._socket.send(payload[at : at + PIECE], zmq.NOBLOCK)
                rest = payload[last:]
            self._socket.send(head, zmq.SNDMORE | zmq.NOBLOCK)
            self._socket.send(rest, zmq.NOBLOCK, copy=len(rest) < 65536)
        except zmq.Again:
            return 0
        return len(head) + size

    def receive(self, timeout: float = 0.0) -> T | None:
        """The next message, or None after `timeout` seconds."""
        # Asking for the events is ten times cheaper than a poll, and this is asked twice a message.
        if not _readable(self._socket) and not (timeout > 0 and self._socket.poll(int(timeout * 1000))):
            return None
        try:
            message: T = self._decode.decode(self._socket.recv())
        except _NOT_OURS as error:
            raise UserError(
                f"{self.address} speaks another protocol: install the same version on both machines ({error})."
            ) from error
        return message

    def broken(self) -> bool:
        """True when the peer went away since the last call."""
        gone = False
        while self._monitor.poll(0):
            # zmq.utils.monitor would tell it too, and import asyncio for that: a tenth of a worker's start.
            event, _ = struct.unpack("=hi", self._monitor.recv_multipart()[0])
            gone = event == zmq.EVENT_DISCONNECTED or gone
            # Without a key in the address only what speaks our protocol, but not without keys, refuses.
            refusals = _REFUSALS if self.keyed else zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            self.refused = self.refused or bool(event & refusals)
        return gone

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)


class Server(Generic[T]):
    """A worker's listening socket. A peer is known by the bytes that came with its message."""

    def __init__(self, context: zmq.Context[Any], address: str, kind: Any, own: Identity | None = None) -> None:
        """`own`: only those that a `Guard` in the same context lets in can connect, and all is encrypted."""
        self._socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        _prepare(self._socket, address)
        if address.startswith("tcp:"):
            self._socket.setsockopt(zmq.RCVHWM, WAITING)
            self._socket.setsockopt(zmq.HANDSHAKE_IVL, int(1000 * SHAKE_S))
        if own is not None:
            self._socket.curve_server = 1
            self._socket.curve_publickey, self._socket.curve_secretkey = own.public, own.secret
            self._socket.zap_domain = ZAP_DOMAIN.encode()
        self.known: set[bytes] = set()
        """Peers that may send what is larger than a greeting."""
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind)
        self._poll = _Poll([self._socket])
        self._pieces: dict[bytes, list[bytes]] = {}
        self._guarded = address.startswith("tcp:")
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._socket.close(0)
            what = "is in use" if error.errno == zmq.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise UserError(f"{address} {what}: choose another address with --listen.") from error

    def receive(self) -> tuple[bytes, T | None, memoryview | None]:
        """A waiting message: peer, message (None where it is no valid one), payload. A `Piece` comes without: it is
        put together with what follows."""
        socket = self._socket
        peer = socket.recv()
        head = socket.recv() if socket.getsockopt(zmq.RCVMORE) else b""
        payload = socket.recv(copy=False).buffer if socket.getsockopt(zmq.RCVMORE) else None
        while socket.getsockopt(zmq.RCVMORE):
            socket.recv()
        message: T | None = None
        known = peer in self.known or not self._guarded
        if known or len(head) <= GREETING:
            with contextlib.suppress(*_NOT_OURS):
                message = self._decode.decode(head)
        if isinstance(message, Piece):
            held = sum(sum(map(len, pieces)) for pieces in self._pieces.values())
            if known and payload is not None and held + payload.nbytes <= HELD:
                self._pieces.setdefault(peer, []).append(bytes(payload))
            return peer, message, None
        if self._pieces and (pieces := self._pieces.pop(peer, None)) is not None and payload is not None:
            payload = memoryview(b"".join([*pieces, payload]))
        return peer, message, payload

    def poll(self, seconds: float, active: bool = False) -> bool:
        """True when a message waits, false after `seconds`. See Selector.wait for `active`."""
        return _readable(self._socket) or bool(self._poll(seconds, active))

    def send(self, peer: bytes, message: Message) -> bool:
        """To a peer. False when it is gone: its connection was closed."""
        try:
            self._socket.send_multipart([peer, self._encode(message)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def close(self) -> None:
        self._socket.close(0)


class Wakeup:
    """Wakes a loop that waits on sockets, from any other thread (and from its signal handlers)."""

    def __init__(self, context: zmq.Context[Any], name: str) -> None:
        self._lock = threading.RLock()
        self._pull: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._pull.bind(f"inproc://{name}")
        self._push: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._push.connect(f"inproc://{name}")

    def __call__(self) -> None:
        with self._lock:
            if not self._push.closed:
                self._push.send(b"")

    def drain(self) -> None:
        while self._pull.poll(0):
            self._pull.recv()

    def close(self) -> None:
        with self._lock:
            self._push.close(0)
            self._pull.close(0)


class Selector:
    """Waits for any of several links, servers and wakeups."""

    def __init__(self, members: Sequence[Any]) -> None:
        self._members: dict[Any, Any] = {
            member._pull if isinstance(member, Wakeup) else member._socket: member for member in members
        }
        self._poll = _Poll([*self._members])

    def wait(self, seconds: float, active: bool = False) -> list[Any]:
        """Members with something to receive; empty after `seconds` (rounded down to milliseconds).
        `active` looks again and again near the end instead of sleeping: for machines with a core to spare."""
        return [self._members[socket] for socket, _ in self._poll(seconds, active)]


class Network:
    """A ZeroMQ context, closed with everything in it. Raises PipeInferError where its threads cannot be started."""

    def __init__(self) -> None:
        check_room(THREADS)
        self.context: zmq.Context[Any] = zmq.Context(io_threads=1)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.context.destroy(linger=0)


CLOCK_OFFSET = float(os.environ.get("PIPEINFER_CLOCK_OFFSET", "0"))
"""Seconds added to this process's clock: tests give processes of one machine the clocks of several."""


def clock() -> float:
    """Seconds on this machine's monotonic clock, the same for all its processes. It says nothing about another
    machine's: never compare a time with one that came from there."""
    return time.monotonic() + CLOCK_OFFSET
