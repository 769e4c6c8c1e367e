"""What the engine asks for, on its way to the workers."""

from __future__ import annotations

from collections.abc import Sequence

from pipeinfer_cpp.cluster.session import Peer
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.run import Run
from pipeinfer_cpp.net import messages as msg
from pipeinfer_cpp.net.sockets import clock
from pipeinfer_cpp.results import Tally
from pipeinfer_cpp.trace import Trace


class Outbox:
    """Runs to stage 0, cancellations to every stage, orders to the draft worker while it lives."""

    def __init__(self, stages: Sequence[Peer], draft: Peer | None, trace: Trace | None) -> None:
        self._stages, self._trace = stages, trace
        self.draft = draft
        self._tally = Tally(0.0)
        self._start: msg.TurnStart | None = None
        self._kinds: dict[int, str] = {}
        self._chunks: dict[int, int] = {}

    def begin(self, start: msg.TurnStart, tally: Tally) -> None:
        """A turn begins: `start` rides on its first run."""
        self._start, self._tally = start, tally
        self._kinds.clear()
        self._chunks.clear()

    def decodes(self, run: int) -> bool:
        """True for a run of this turn that is no part of the prompt."""
        return self._kinds.get(run) == "decode"

    def read_by(self, run: int) -> int:
        """How many tokens of the prompt are read when this run is back; 0 where it is no part of it."""
        return self._chunks.get(run, 0)

    def dispatch(self, run: Run, in_flight: int) -> None:
        now = clock()
        header = msg.RunHeader(run.id, run.kind, run.ops, run.rows, run.final, self._start, sent=now)
        self._start = None
        self._kinds[run.id] = run.kind
        if run.kind == "prefill":
            self._chunks[run.id] = run.rows[-1].pos + 1
        sent = self._stages[0].runs.send(header)
        if run.kind == "decode":
            self._tally.link(0, sent)
        if self._trace is not None:
            first = run.rows[0].pos if run.rows else -1
            about = {"run": run.id, "kind": run.kind, "pos": first, "rows": len(run.rows)}
            self._trace.instant("coordinator", f"dispatch {run.id}", now, **about)
            self._trace.counter("in flight", now, in_flight)

    def cancel(self, runs: tuple[int, ...]) -> None:
        now = clock()
        for stage in self._stages:
            self._tally.other_bytes += stage.link.send(msg.Cancel(runs, now))
        if self._trace is not None:
            self._trace.instant("coordinator", f"cancel {list(runs)}", now, runs=list(runs))

    def order(self, action: ev.Action) -> None:
        """What the draft worker shall do."""
        match action:
            case ev.DraftReset(path, keep, tokens):
                self._send(msg.DraftReset(path, keep, tokens))
            case ev.DraftFork(path, of, keep, token):
                self._send(msg.DraftFork(path, of, keep, token))
            case ev.DraftDrop(paths):
                self._send(msg.DraftDrop(paths))
            case ev.DraftRoom(pos):
                self._send(msg.DraftRoom(pos))

    def _send(self, order: msg.Message) -> None:
        if self.draft is not None:
            self.draft.link.send(order)
