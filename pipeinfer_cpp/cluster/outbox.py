"""What the engine asks for, on its way to the workers."""

from __future__ import annotations

from pipeinfer_cpp.cluster.session import Session
from pipeinfer_cpp.cluster.trace import Trace
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.run import Run
from pipeinfer_cpp.net import messages as msg
from pipeinfer_cpp.net.sockets import clock


class Outbox:
    """Runs to stage 0, cancellations to every stage, orders to the draft worker while it lives."""

    def __init__(self, session: Session, trace: Trace | None) -> None:
        self._session, self._trace = session, trace
        self.draft = session.draft
        self._starts: dict[int, msg.TurnStart] = {}
        """By slot: what rides on the first run of its turn."""
        self.other_bytes = 0
        """Of cancellations."""

    def begin(self, start: msg.TurnStart) -> None:
        """A slot's turn begins: `start` rides on its first run."""
        self._starts[start.slot] = start

    def dispatch(self, run: Run, in_flight: int) -> int:
        """Returns the bytes sent."""
        now = clock()
        slots = {row.slot for row in run.rows}
        starts = tuple(self._starts.pop(slot) for slot in sorted(slots & self._starts.keys()))
        ops = tuple(msg.WireOp(o.kind, o.seq, o.p0, o.p1, o.src) for o in run.ops)
        rows = tuple(msg.WireRow(r.token, r.pos, r.seq, r.node, r.parent, r.draw, r.slot) for r in run.rows)
        epoch = self._session.epoch
        header = msg.RunHeader(run.id, run.kind, ops, rows, run.finals, run.slot, starts, sent=now, epoch=epoch)
        sent = self._session.stages[0].runs.send(header)
        if self._trace is not None:
            first = run.rows[0].pos if run.rows else -1
            about = {"run": run.id, "kind": run.kind, "pos": first, "rows": len(run.rows)}
            self._trace.instant("coordinator", f"dispatch {run.id}", now, **about)
            self._trace.counter("in flight", now, in_flight)
        return sent

    def cancel(self, runs: tuple[int, ...]) -> None:
        now = clock()
        for stage in self._session.stages:
            self.other_bytes += stage.link.send(msg.Cancel(runs, now))
        if self._trace is not None:
            self._trace.instant("coordinator", f"cancel {list(runs)}", now, runs=list(runs))

    def order(self, action: ev.Action) -> None:
        """What the draft worker shall do."""
        match action:
            case ev.DraftReset(path, keep, tokens, slot):
                self._send(msg.DraftReset(path, keep, tokens, slot))
            case ev.DraftFork(path, of, keep, token):
                self._send(msg.DraftFork(path, of, keep, token))
            case ev.DraftDrop(paths):
                self._send(msg.DraftDrop(paths))
            case ev.DraftRoom(pos, slot):
                self._send(msg.DraftRoom(pos, slot))

    def _send(self, order: msg.Message) -> None:
        if self.draft is not None:
            self.draft.link.send(order)
