"""The public API: a pipeline of llama.cpp processes that generates.

with Pipeline.local(pair="demo", stages=2) as p:
    for token in p.generate("Once upon a time"):
        print(token.text, end="", flush=True)
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeinfer_cpp.cluster.cutting import Cutting
from pipeinfer_cpp.cluster.driver import Driver, Turn
from pipeinfer_cpp.cluster.launch import Process, SocketDir
from pipeinfer_cpp.cluster.plan import Plan, make_plan
from pipeinfer_cpp.cluster.session import Loading, Peer
from pipeinfer_cpp.engine import CostCurve
from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.llama.sampler import Sampler
from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.net.sockets import Network
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.results import Result, Token
from pipeinfer_cpp.sampling import Sampling

Report = Callable[[str, str, int, int], None]
"""(worker, what it does, done, in all; 0 where that is not known). Called from more than one thread."""
Reading = Callable[[int, int], None]
"""(tokens read, tokens of the prompt)"""
LOCAL_S, REMOTE_S = 30.0, 5.0
"""Seconds that a worker has for its first answer, here and on another machine."""


class Generation:
    """One generation: iterate over its tokens; `result` is there at the end.

    Leaving the loop early, `cancel()` or an exception ends the generation and keeps the conversation.
    """

    def __init__(self, driver: Driver, turn: Turn, reading: Reading | None = None) -> None:
        self._driver, self._turn, self._reading = driver, turn, reading
        self.result: Result | None = None

    def __iter__(self) -> Iterator[Token]:
        try:
            while self.result is None:
                item = self._get()
                if isinstance(item, Token):
                    yield item
                else:
                    self._end(item)
        finally:
            if self.result is None:
                self.cancel()

    def cancel(self) -> None:
        """End it now; returns when every stage has dropped it."""
        if self.result is None and self._driver.failure is None:
            self._driver.cancel(self._turn)
            self.wait()

    def wait(self) -> Result:
        """Let it run to its end."""
        while self.result is None:
            item = self._get()
            if not isinstance(item, Token):
                self._end(item)
        return self.result

    def _get(self) -> Token | Result | BaseException:
        n_prompt = len(self._turn.prompt)
        while True:
            try:
                item = self._turn.out.get(timeout=0.1 if self._reading else 0.5)
            except queue.Empty:
                if self._driver.failure is not None:
                    raise self._driver.failure from None
                if self._reading is not None:
                    self._reading(min(self._turn.read, n_prompt - 1), n_prompt)
            else:
                if self._reading is not None:
                    self._reading(n_prompt, n_prompt)
                    self._reading = None
                return item

    def _end(self, item: Result | BaseException) -> None:
        if isinstance(item, Result):
            self.result = item
        else:
            raise item


class Pipeline:
    """Stages, a draft worker where there is one, and the coordinator. Close it, or use `with`."""

    def __init__(self, options: Options, report: Report | None = None) -> None:
        options.check()
        self.processes: list[Process] = []
        """Workers that were started here."""
        self._resources = contextlib.ExitStack()
        self._finalizer = weakref.finalize(self, self._resources.close)
        try:
            self._open(options, report)
        except BaseException:
            self.close()
            raise

    @classmethod
    def local(cls, pair: str | None = None, *, report: Report | None = None, **options: Any) -> Pipeline:
        """Start the stages on this machine (or use those at the addresses in `stages`). See Options."""
        return cls(Options(pair=pair, **options), report)

    def _open(self, options: Options, report: Report | None) -> None:
        self.plan: Plan = make_plan(options, report)
        plan = self.plan
        network = Network()
        self._resources.callback(network.close)
        folder = SocketDir()
        self._resources.callback(folder.remove)
        session = secrets.token_hex(8)
        # Those started by hand first: how many of them are on this machine decides what ours may use of it.
        by_hand = {i: self._reach(network, i, address) for i, address in enumerate(plan.addresses) if address}
        machines = [by_hand[i].greet(session, REMOTE_S) if i in by_hand else None for i in range(len(plan.addresses))]
        plan.meet([m for m in machines if m is not None], [peer.memory for peer in by_hand.values()])
        stages = [by_hand.get(i) or self._start(network, folder, i) for i in range(len(plan.addresses))]
        draft = self._start(network, folder, None) if plan.draft else None
        peers = [*stages, *([draft] if draft else [])]
        # All of what takes long goes on at the same time: cutting, starting processes, the vocabulary, the draft.
        ours = [i for i, machine in enumerate(machines) if machine is None]
        loading = Loading(peers, report)
        cutting = Cutting(plan.target, [(stages[i].name, plan.ranges[i]) for i in ours], bool(by_hand), report)
        self._resources.callback(cutting.close)
        for peer in peers:
            if not peer.remote:
                peer.greet(session, LOCAL_S)
        self.vocabulary = Vocabulary(plan.target.path)
        self._resources.callback(self.vocabulary.close)
        runs = [peer.runs.address for peer in stages]
        if draft is not None:
            loading.send(draft, plan.orders(runs, machines, self.vocabulary.eog)[-1])
        while not cutting.done():
            loading.poll()
        if by_hand:
            plan.target_hash = plan.target.sha256()
        for peer, order in zip(stages, plan.orders(runs, machines, self.vocabulary.eog), strict=False):
            loading.send(peer, order)
        loaded = loading.wait()[: len(stages)]
        self.exact = plan.exact
        self.kv_type = loaded[0].kv_type
        self.threads = [m.threads for m in loaded]
        """Of each stage."""
        safe = min(m.safe_width for m in loaded) if plan.exact else plan.settings.max_rows
        checkpoints = any(m.checkpointed for m in loaded)
        if checkpoints and plan.settings.branches > 1:
            raise UserError(
                f"{plan.target.name} keeps a state that cannot be branched: use --branches 1 with it."
            )
        self.settings = replace(
            plan.settings,
            max_rows=min(safe, plan.settings.max_rows),
            eog=self.vocabulary.eog,
            exact=plan.exact,
            checkpoints=checkpoints,
        )
        self.last: Result | None = None
        self.driver = Driver(
            network,
            stages,
            draft,
            [CostCurve(m.curve) for m in loaded],
            self.settings,
            piece=self.vocabulary.piece,
            exact=plan.exact,
            trace=options.trace,
            active=plan.active,
            links=plan.links,
        )
        self._resources.callback(self.driver.close)

    def _start(self, network: Network, folder: SocketDir, index: int | None) -> Peer:
        """A worker of our own: stage `index`, or the draft worker."""
        role, socket = ("draft", "draft") if index is None else ("stage", f"s{index}")
        share = self.plan.share
        process = Process(role, folder.address(socket), folder.path / f"{socket}.log", share.threads, share.crowded)
        self.processes.append(process)
        self._resources.callback(lambda: process.stop(time.monotonic() + 1.0))
        return self._reach(network, index, folder.address(socket), process)

    def _reach(self, network: Network, index: int | None, address: str, process: Process | None = None) -> Peer:
        name = "The draft worker"
        if index is not None:
            first, end = self.plan.ranges[index]
            name = f"Stage {index} (layers {first}-{end - 1})"
        peer = Peer(network, name, address, process)
        self._resources.callback(peer.close)
        return peer

    # ------------------------------------------------------------------------------------- using it

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        goes_on: bool = False,
        reading: Reading | None = None,
    ) -> Generation:
        """Begin a generation behind the prompt: text, or token ids as they are.

        What the stages still hold of an earlier prompt with the same beginning is not computed again; in exact
        mode only what this prompt alone would compute in the same way, unless it `goes_on`: is the next turn
        of the conversation that the stages hold. `reading` is told how many of the prompt's tokens are read, now
        and then until the first token comes, and that all are.
        Raises UserError for a prompt that does not fit the context.
        """
        if self.driver.failure is not None:
            raise PipeInferError(f"This pipeline has ended: {self.driver.failure}")
        sampling = sampling or Sampling()
        sampling.check()
        tokens = self.vocabulary.tokenize(prompt, begin=True) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise UserError("The prompt is empty: give it at least one token.")
        if max_tokens < 1:
            raise UserError("--max-tokens must be at least 1.")
        if len(tokens) >= self.settings.n_ctx:
            raise UserError(
                f"The prompt has {len(tokens)} tokens and the context {self.settings.n_ctx}: "
                "shorten it or raise --ctx-size."
            )
        if not all(0 <= t < self.vocabulary.size for t in tokens):
            raise UserError(f"The prompt has token ids outside of the vocabulary (0 to {self.vocabulary.size - 1}).")
        self.check_grammar(sampling)
        turn = Turn(tuple(tokens), max_tokens, sampling, tuple(stop), goes_on)
        generation = _Remembered(self, turn, reading)
        self.driver.begin(turn)
        return generation

    def check_grammar(self, sampling: Sampling) -> None:
        """Raise UserError for an invalid grammar or bias here, before any stage sees it."""
        if sampling.grammar is not None or sampling.json_schema is not None or sampling.logit_bias:
            Sampler(self.vocabulary.pointer, self.vocabulary.size, sampling).close()

    def configure(self, **changes: Any) -> None:
        """Change engine settings (mode, draft_max, cutoff, ...) between generations."""
        self.settings = replace(self.settings, **changes)
        self.driver.configure(self.settings)

    def forget(self) -> None:
        """Compute the next prompt from its beginning, whatever the stages still hold of it."""
        self.driver.forget()

    @property
    def warnings(self) -> list[str]:
        """What the user should know about how this was set up."""
        return self.plan.warnings

    def write_trace(self, path: Path) -> None:
        if self.driver.trace is None:
            raise UserError("This pipeline was opened without trace=True.")
        self.driver.trace.write(path)

    def close(self) -> None:
        """End all processes."""
        self._finalizer()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Remembered(Generation):
    """Leaves its result in `Pipeline.last`."""

    def __init__(self, pipeline: Pipeline, turn: Turn, reading: Reading | None) -> None:
        super().__init__(pipeline.driver, turn, reading)
        self._pipeline = pipeline

    def _end(self, item: Result | BaseException) -> None:
        super()._end(item)
        self._pipeline.last = self.result
