"""The processes of one pipeline: who they are, what each loads, loading them, and loading them again."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from pipeinfer_cpp.cluster import claims
from pipeinfer_cpp.cluster.crew import Crew
from pipeinfer_cpp.cluster.cutting import Cutting
from pipeinfer_cpp.cluster.launch import Process
from pipeinfer_cpp.cluster.peer import GivenUp, Peer, WorkerDied, never
from pipeinfer_cpp.cluster.plan import make_plan
from pipeinfer_cpp.cluster.watch import Watch
from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.net.messages import Failed, Loaded, LoadSlice, Message, Progress
from pipeinfer_cpp.net.sockets import Network, Selector, clock
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.system.reports import Report

LOCAL_S, REMOTE_S = 30.0, 5.0
"""Seconds that a worker has for its first answer, here and on another machine."""
RUNS_S = 5.0
"""Seconds that a stage that is ready has to answer where its runs go."""


class Session:
    """Stages, a draft worker where there is one, and the vocabulary. Close it."""

    def __init__(self, options: Options, report: Report | None, crew: Crew | None = None) -> None:
        """`crew`: worker processes that were started already; they are this session's to end.
        Raises UserError and PipeInferError for what cannot be opened, and leaves nothing then."""
        self.options = options
        self.processes: list[Process] = []
        """Workers that were started here."""
        self.epoch = 0
        """How often the stages were loaded again."""
        self._id = secrets.token_hex(8)
        self._peers: list[Peer] = []
        self._resources = contextlib.ExitStack()
        try:
            self._crew = crew or Crew.of(options)
            self._resources.callback(self._crew.close)
            self._open(report)
        except BaseException:
            self.close()
            raise

    def _open(self, report: Report | None) -> None:
        self.plan = plan = make_plan(self.options, report)
        self.network = Network()
        self._resources.callback(self.network.close)
        self._resources.callback(self._part)
        n = len(plan.addresses)
        # Those started by hand first: how many of them are on this machine decides what ours may use of it.
        by_hand = {i: self._reach(i, address) for i, address in enumerate(plan.addresses) if address}
        for peer in by_hand.values():
            peer.hello(self._id)
        self._machines = [by_hand[i].greet(self._id, REMOTE_S) if i in by_hand else None for i in range(n)]
        plan.meet([m for m in self._machines if m is not None], [peer.memory for peer in by_hand.values()])
        self.stages: list[Peer] = [by_hand.get(i) or self._start(i) for i in range(n)]
        self.draft: Peer | None = self._start(None) if plan.draft else None
        peers = [*self.stages, *([self.draft] if self.draft else [])]
        # All of what takes long goes on at the same time: cutting, starting processes, the vocabulary, the draft.
        ours = [i for i, machine in enumerate(self._machines) if machine is None]
        loading = Loading(peers, report, self.options.patience)
        cutting = Cutting(plan.target, [(self.stages[i].name, plan.ranges[i]) for i in ours], bool(by_hand), report)
        self._resources.callback(cutting.close)
        here = [peer for peer in peers if not peer.remote]
        for peer in here:
            peer.hello(self._id)
        for peer in here:
            peer.greet(self._id, LOCAL_S, peers)
        self.vocabulary = Vocabulary(plan.target.path)
        self._resources.callback(self.vocabulary.close)
        if self.draft is not None:
            loading.send(self.draft, self._orders()[-1])
        while not cutting.done():
            loading.poll()
        if by_hand:
            plan.target_hash = plan.target.sha256()
        for peer, order in zip(self.stages, self._orders(), strict=False):
            loading.send(peer, order)
        self.loaded = loading.wait(self._id)[: len(self.stages)]
        """What each stage said when it was ready."""
        checkpoints = any(m.checkpointed for m in self.loaded)
        plan.check_branches(checkpoints)  # of an architecture that no table knows llama.cpp tells it first here
        self.settings = replace(
            plan.settings,
            max_rows=min(self._widest(), plan.settings.max_rows),
            eog=self.vocabulary.eog,
            exact=plan.exact,
            checkpoints=checkpoints,
            stash=0 if checkpoints else plan.settings.stash,
            stash_longest=min(m.stash for m in self.loaded),
        )
        """What the stages' contexts were made for."""

    def restart(self, gone: Sequence[Peer], given_up: GivenUp = never) -> None:
        """Stages are gone: start those of this machine again, wait for the others to come back, and load all of them
        anew, with nothing in their caches. Raises WorkerDied and UserError where that fails, or is given up."""
        self.epoch += 1
        for peer in gone:
            self._replace(self.stages.index(peer))
        fresh = [i for i, peer in enumerate(self.stages) if not peer.greeted]  # one may be of a restart that failed
        for i in fresh:
            self.stages[i].hello(self._id)
        for i in fresh:
            peer = self.stages[i]
            patience = self.options.patience if peer.remote else LOCAL_S
            machine = peer.greet(self._id, patience, self.stages, given_up)
            self._machines[i] = machine if peer.remote else None
        loading = Loading(self.stages, None, self.options.patience, self.epoch)
        for peer, order in zip(self.stages, self._orders(), strict=False):
            loading.send(peer, order)
        loaded = loading.wait(self._id, given_up)
        if [m.kv_type for m in loaded] != [m.kv_type for m in self.loaded]:
            raise PipeInferError("A stage came back with another type of KV cache: open the pipeline anew.")
        self.loaded = loaded
        if self._widest() < self.settings.max_rows:
            raise PipeInferError("A stage came back that is exact for narrower runs only: open the pipeline anew.")

    def close(self) -> None:
        """End all processes of ours, and part from the others."""
        self._resources.close()

    def _part(self) -> None:
        for peer in self._peers:
            peer.close()
        deadline = time.monotonic() + 1.0
        for process in self.processes:
            process.stop(deadline)

    def _replace(self, index: int) -> None:
        """In the place of a stage that is gone: a new process, or a new connection to its address."""
        peer = self.stages[index]
        peer.close()
        self._peers.remove(peer)
        if peer.process is None:
            self.stages[index] = self._reach(index, peer.link.whole_address)
            return
        peer.process.kill()
        self.processes.remove(peer.process)
        self.stages[index] = self._start(index)

    def _widest(self) -> int:
        """Rows of the widest run that all stages compute as exactly as the mode asks."""
        return min(m.safe_width for m in self.loaded) if self.plan.exact else self.plan.settings.max_rows

    def _orders(self) -> list[Message]:
        """What each stage loads, and behind them the draft worker."""
        addresses = [peer.runs.whole_address for peer in self.stages]
        orders = self.plan.orders(addresses, self._machines, self.vocabulary.eog)
        return [msgspec.structs.replace(o, epoch=self.epoch) if isinstance(o, LoadSlice) else o for o in orders]

    def _start(self, index: int | None) -> Peer:
        """A worker of our own: stage `index`, or the draft worker."""
        name = "draft" if index is None else f"s{index}"
        process = self._crew.take(name, self.plan.share)
        self.processes.append(process)
        return self._reach(index, self._crew.address(name), process)

    def _reach(self, index: int | None, address: str, process: Process | None = None) -> Peer:
        name = "The draft worker"
        if index is not None:
            first, end = self.plan.ranges[index]
            name = f"Stage {index} (layers {first}-{end - 1})"
        peer = Peer(self.network, name, address, process)
        self._peers.append(peer)
        return peer


class Loading:
    """Workers that get ready, all at the same time. Whichever fails is told at once, by its name."""

    def __init__(self, peers: Sequence[Peer], report: Report | None, patience: float, epoch: int = 0) -> None:
        self._peers, self._report, self._epoch = list(peers), report or (lambda *_: None), epoch
        self._by_link = {id(peer.link): peer for peer in peers}
        self._selector = Selector([peer.link for peer in peers])
        self._loaded: dict[Peer, Loaded] = {}
        self._watch = Watch(peers, patience, lambda text: self._report("coordinator", text, 0, 0))
        for peer in peers:
            self._report(peer.name, "starting", 0, 0)

    def send(self, peer: Peer, order: Message) -> None:
        """Tell a worker what to load."""
        peer.link.send(order)
        self._report(peer.name, "loading", 0, 0)

    def poll(self, seconds: float = 0.05) -> None:
        """Take in what the workers say for so long. Raises what one of them says of a failure, and WorkerDied."""
        for link in self._selector.wait(seconds):
            peer = self._by_link[id(link)]
            while (message := peer.link.receive()) is not None:
                peer.heard = clock()
                match message:
                    case Failed(epoch=int(epoch)) | Loaded(epoch=epoch) if epoch != self._epoch:
                        pass  # of what is not there any more
                    case Loaded():
                        if (wrong := claims.loaded(message, peer.name.startswith("Stage"))) is not None:
                            raise WorkerDied(f"{peer.title} sent something impossible: {wrong}. Start it again.")
                        self._loaded[peer] = message
                        self._report(peer.name, "ready", 1, 1)
                    case Progress(what, done, total):
                        self._report(peer.name, what, done, total)
                    case _:
                        peer.heed(message)
        for _, death in self._watch.look():
            raise death

    def wait(self, session: str, given_up: GivenUp = never) -> list[Loaded]:
        """What each measured, in the order of the peers, once all are ready. Raises WorkerDied when it is given up."""
        while len(self._loaded) < len(self._peers):
            if given_up():
                raise WorkerDied("Nobody waits for these stages any more.")
            self.poll()
        for peer in self._peers:
            peer.meet_runs(session, RUNS_S)
        return [self._loaded[peer] for peer in self._peers]
