"""Who may talk to whom over a network: this machine's key, and those that it trusts.

Connections are CurveZMQ's (http://curvezmq.org): encrypted, and both ends prove their keys. A key is written in base32,
52 characters that need no quotes; an address that begins `tcp://KEY@` is of whoever has that key.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils import z85

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.system.files import appearing, config_dir

_KEY = re.compile(r"[a-z2-7]{52}")
ZAP_DOMAIN = "pipeinfer"
QUIET = 1.0
"""Seconds between two words about strangers."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A pair of keys, as ZeroMQ has them (Z85)."""

    public: bytes
    secret: bytes

    @property
    def text(self) -> str:
        """The public key, for people."""
        return key_text(self.public)


def key_text(key: bytes) -> str:
    """A Z85 key in base32."""
    return base64.b32encode(z85.decode(key)).decode().rstrip("=").lower()


def key_bytes(text: str) -> bytes:
    """A key in base32 as Z85. Raises UserError for anything else."""
    if not _KEY.fullmatch(text):
        raise UserError(f"{text!r} is not a key: that is the 52 letters and digits that `pipeinfer keys show` prints.")
    return bytes(z85.encode(base64.b32decode(text.upper() + "====")))


def split_address(address: str) -> tuple[str, str | None]:
    """An address as ZeroMQ takes it, and the key in it."""
    kind, _, rest = address.partition("://")
    key, at, place = rest.partition("@")
    return (f"{kind}://{place}", key) if at and kind == "tcp" else (address, None)


def identity(*, new: bool = False) -> Identity:
    """This user's keys on this machine, made when missing or asked for. Raises UserError where they cannot be kept."""
    path = config_dir() / "key"
    try:
        if not new and path.exists():
            secret = key_bytes(path.read_text().strip())
            return Identity(zmq.curve_public(secret), secret)
        public, secret = zmq.curve_keypair()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with appearing(path, private=True) as file:
            file.write(key_text(secret).encode() + b"\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no key"
        raise UserError(f"{path} cannot be used: {reason}.") from None
    return Identity(public, secret)


def trusted() -> dict[str, str]:
    """Names of the keys that may use this machine, by key. Raises UserError for a file that cannot be read."""
    path = config_dir() / "trusted"
    try:
        lines = path.read_text().splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    pairs = [line.partition(" ") for line in lines if line.strip() and not line.startswith("#")]
    return {key: name.strip() for key, _, name in pairs}


def trust(key: str, name: str = "") -> None:
    """From now on whoever has that key may use this machine. Raises UserError for what is no key."""
    key_bytes(key)
    _write({**trusted(), key: name})


def distrust(key: str) -> bool:
    """The opposite. False where it was not trusted."""
    known = trusted()
    if known.pop(key, None) is None:
        return False
    _write(known)
    return True


def _write(known: dict[str, str]) -> None:
    path = config_dir() / "trusted"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with appearing(path, private=True) as file:
            file.write("".join(f"{key} {name}".rstrip() + "\n" for key, name in known.items()).encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None


class Guard:
    """Answers ZeroMQ's question whether a key may connect (ZAP, https://rfc.zeromq.org/spec/27): trusted ones, and for
    the length of a session the `neighbours`. What `trusted` says is asked each time, so nothing has to be restarted."""

    def __init__(self, context: zmq.Context[Any], say: Callable[[str], None]) -> None:
        from zmq.auth.thread import ThreadAuthenticator

        self.neighbours: frozenset[str] = frozenset()
        self._say = say
        self._told = 0.0
        self._asks = ThreadAuthenticator(context)
        self._asks.start()
        self._asks.configure_curve_callback(ZAP_DOMAIN, self)

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether the peer with that (Z85) key may connect. In a thread of its own."""
        text = key_text(key)
        try:
            if text in self.neighbours or text in trusted():
                return True
        except UserError as error:
            self._say(str(error))
            return False
        if time.monotonic() - self._told > QUIET:
            self._told = time.monotonic()
            self._say(f"refused a stranger: `pipeinfer keys trust {text}` here lets it in")
        return False

    def close(self) -> None:
        self._asks.stop()
