"""The draft process: it never stops drafting while there is room."""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections import deque

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.machine import cores
from pipeinfer_cpp.net.handshake import objection
from pipeinfer_cpp.net.messages import (
    PROTOCOL,
    Bye,
    DraftDrop,
    DraftReset,
    Failed,
    Hello,
    LoadDraft,
    Message,
    Ping,
    Pong,
    Refuse,
    ToWorker,
    Welcome,
)
from pipeinfer_cpp.net.sockets import Network, Selector, Server, Wakeup, clock
from pipeinfer_cpp.versions import llama_version, package_version
from pipeinfer_cpp.workers.drafter import Drafter


class Draft:
    """One thread takes orders in, another drafts."""

    def __init__(self, network: Network, address: str) -> None:
        self._server: Server[ToWorker] = Server(network.context, address, ToWorker)
        self._wakeup = Wakeup(network.context, "draft-out")
        self._out: deque[Message] = deque()
        self._orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._coordinator: bytes | None = None
        self._drafter: Drafter | None = None

    def serve(self) -> None:
        """Take orders in for ever (the lifeline ends this process)."""
        selector = Selector([self._server, self._wakeup])
        while True:
            for member in selector.wait(1.0):
                if member is self._wakeup:
                    self._wakeup.drain()
                else:
                    self._take_in()
            while self._out and self._coordinator is not None:
                self._server.send(self._coordinator, self._out.popleft())

    def _take_in(self) -> None:
        peer, message, _ = self._server.receive()
        match message:
            case Hello():
                why = objection(message, package_version(), llama_version())
                if why is not None:
                    self._server.send(peer, Refuse(why))
                    return
                self._coordinator = peer
                welcome = Welcome(PROTOCOL, package_version(), llama_version(), os.getpid(), cores())
                self._server.send(peer, welcome)
            case Ping(sent):
                self._server.send(peer, Pong(sent, clock()))
            case Bye():
                os._exit(0)
            case LoadDraft():
                threading.Thread(target=self._work, args=(message,), name="drafter", daemon=True).start()
            case None:
                self._server.send(peer, Refuse("this is a pipeinfer draft worker of another version"))
            case _:
                self._orders.put(message)
                if self._drafter is not None and isinstance(message, DraftReset | DraftDrop):
                    self._drafter.interrupt(message)

    def _post(self, message: Message) -> None:
        self._out.append(message)
        self._wakeup()

    def _work(self, load: LoadDraft) -> None:
        try:
            drafter = Drafter(load, lambda: not self._orders.empty())
            self._drafter = drafter
            self._post(drafter.loaded)
            while True:
                if drafter.idle:
                    drafter.obey(self._orders.get())
                while not self._orders.empty():
                    drafter.obey(self._orders.get())
                said = drafter.step()
                if said is not None:
                    self._post(said)
        except UserError as error:
            self._post(Failed(str(error), user=True))
        except Exception as error:  # whatever it is, the coordinator must hear of it
            traceback.print_exc()
            self._post(Failed(f"{type(error).__name__}: {error}"))
