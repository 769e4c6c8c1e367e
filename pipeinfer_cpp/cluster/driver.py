"""The engine's driver: one thread between the sockets and the state machine."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from pipeinfer_cpp.cluster import claims, switching
from pipeinfer_cpp.cluster.answer import Answer
from pipeinfer_cpp.cluster.job import Job
from pipeinfer_cpp.cluster.live import Figures, Live, live
from pipeinfer_cpp.cluster.outbox import Outbox
from pipeinfer_cpp.cluster.peer import Peer, WorkerDied
from pipeinfer_cpp.cluster.session import Session
from pipeinfer_cpp.cluster.slowdown import Slowdown
from pipeinfer_cpp.cluster.trace import Trace
from pipeinfer_cpp.cluster.watch import PATROL, Notice, Watch
from pipeinfer_cpp.engine import CostCurve, Engine, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.cached import Past
from pipeinfer_cpp.engine.run import Run
from pipeinfer_cpp.engine.slot import IDLE, Slot
from pipeinfer_cpp.errors import FormLost, PipeInferError, UserError
from pipeinfer_cpp.net import messages as msg
from pipeinfer_cpp.net.sockets import Link, Selector, Wakeup, clock
from pipeinfer_cpp.net.transit import Arrivals
from pipeinfer_cpp.results import Result, Tally

REMEMBERED = 1024
"""Runs of which it is known whose they are: more than can be under way."""
RESTARTS, FORGIVEN = 2, 60.0
"""So many times in so many seconds stages are started again without a token between."""
DEADLINE = 6.0
"""A run that goes nowhere for so many times the patience with silence is given up, though all stages answer."""


class Driver:
    """Feeds the engine from the sockets and carries out what it returns, in a thread of its own."""

    def __init__(
        self, session: Session, settings: Settings, *, trace: bool = False, notice: Notice = lambda _text: None
    ) -> None:
        """`notice` is called in the thread with what the user should see at once."""
        plan, patience = session.plan, session.options.patience
        self._session = session
        self._stages, self._draft = session.stages, session.draft
        self._silent: Peer | None = None
        """The draft worker, while it is given up for its silence only: it is taken up again when it answers."""
        self._curves = [CostCurve(m.curve) for m in session.loaded]
        self._piece, self._n_vocab = session.vocabulary.piece, session.vocabulary.size
        self.exact = plan.faithful
        self._active = plan.active
        self.engine = Engine(settings, self._curves, hop=0.0002)
        self.trace = Trace(len(self._stages)) if trace else None
        self.failure: BaseException | None = None
        self.draft_note = ""
        self.held: dict[str, tuple[int, ...]] = {}
        """What the stages' KV caches held at the end of the last turn: see messages.RunHeader."""
        self._wakeup = Wakeup(session.network.context, f"driver-{id(self)}")
        self._commands: deque[Callable[[], None]] = deque()
        self._answers: dict[int, Answer] = {}
        """By slot: turns under way."""
        self.tally = Tally(0.0)
        """Of the turn that began last."""
        self._runs: dict[int, Run] = {}
        """The last that left."""
        self._memory: dict[str, float] = {}
        self._lost = ""
        self._outbox = Outbox(session, self.trace)
        self._slowdown = Slowdown()
        self._links = plan.links
        self._arrivals: Arrivals[tuple[Peer, msg.Message]] = Arrivals(self._links[1:])
        self._wake: float | None = None
        self._patience = patience
        self._figures = Figures(clock())
        self._notice = notice
        self._watch = Watch(self._stages, patience, self._tell)
        self._draft_watch = Watch([self._draft] if self._draft is not None else [], patience, lambda _text: None)
        self._restarts: list[float] = []
        """When stages were started again since a token last came."""
        self._moved = clock()
        """When a run last moved from one stage to the next."""
        self._sent = 0
        """The last run that left."""
        self._passed: dict[int, int] = {}
        """The last run that each stage passed on."""
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="driver", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------- called from other threads

    def begin(self, job: Job, before: Callable[[Slot], None] = lambda _slot: None) -> None:
        """A turn begins in its slot; `before` does what must be done there first, in the driver's thread."""
        self._command(lambda: self._begin(job, before))
        if self.failure is not None:
            job.end(self.failure)

    def cancel(self, job: Job) -> None:
        """End the turn and keep the conversation. Returns at once; finalisers call it, in any thread."""
        self._command(lambda: self._stop(job))

    def configure(self, settings: Settings) -> None:
        """Go on with other settings; only between turns. The cached conversation stays."""

        def change() -> None:
            engine = Engine(settings, [CostCurve(c.points) for c in self._curves], hop=0.0002)
            engine.succeed(self.engine)
            if self._draft is None:
                engine.handle(ev.DraftLost(), clock())
            self.engine = engine

        self._in_thread(change, lambda: self.engine.idle)

    def forget(self, slot: int) -> None:
        """Compute the slot's next prompt from its beginning; only between its turns."""
        self._in_thread(lambda: self.engine.slots[slot].forget(), lambda: self._rests(slot))

    def recall(self, slot: int, past: Past) -> None:
        """The slot's next prompt may go on this conversation; only between its turns."""
        self._in_thread(lambda: self.engine.slots[slot].recall(past), lambda: self._rests(slot))

    def run(self, what: Callable[[], None], *, wait: bool = True) -> None:
        """Do it in the driver's thread, behind all that was asked for before. Returns when it is done, unless not
        `wait`."""
        if wait:
            self._in_thread(what, lambda: True)
        else:
            self._command(what)

    def past(self, slot: int) -> Past:
        """The slot's conversation so far; only between its turns."""
        said: list[Past] = []
        self._in_thread(lambda: said.append(self.engine.slots[slot].past), lambda: self._rests(slot))
        return said[0]

    def live(self) -> Live:
        """What goes on now; at any time."""
        said: list[Live] = []
        self._in_thread(lambda: said.append(self._live()), lambda: True)
        return said[0]

    def _live(self) -> Live:
        read = {slot: answer.job.read for slot, answer in self._answers.items()}
        return live(
            self.engine,
            self._figures,
            self._stages,
            silent=self._watch.quiet,
            read=read,
            memory_mb=self._memory,
            exact=self.exact,
            now=clock(),
        )

    def _rests(self, slot: int) -> bool:
        return self.engine.slots[slot].phase == IDLE

    def close(self) -> None:
        self._closing = True
        self._wakeup()
        if threading.current_thread() is not self._thread:  # it may be that the garbage collector closes this
            self._thread.join(2.0)
        self._wakeup.close()

    def _in_thread(self, what: Callable[[], None], rests: Callable[[], bool]) -> None:
        """Do it in the driver's thread, and return when it is done. Refused unless `rests`."""
        done = threading.Event()
        refused: list[PipeInferError] = []

        def attempt() -> None:
            if rests():
                what()
            else:
                refused.append(PipeInferError("This can only be done between generations."))
            done.set()

        self._command(attempt)
        while not done.wait(0.1):
            if self.failure is not None:
                raise self.failure
        if refused:
            raise refused[0]

    def _command(self, what: Callable[[], None]) -> None:
        self._commands.append(what)
        self._wakeup()

    # ------------------------------------------------------------------------------ in the thread

    def _work(self) -> None:
        try:
            while not self._closing:
                try:
                    self._serve()
                except WorkerDied as death:
                    self._recover(death)
            raise PipeInferError("This pipeline was closed.")
        except BaseException as error:
            self.failure = error
            if self._answers:
                switching.leave()
            for answer in self._answers.values():
                answer.job.end(error)
            self._answers.clear()
            while self._commands:
                self._commands.popleft()()

    def _serve(self) -> None:
        """Until this is closed. Raises WorkerDied when a stage is gone."""
        peers = [*self._stages, *([self._draft] if self._draft else [])]
        by_link = {id(link): (peer, link) for peer in peers for link in {peer.link, peer.runs}}
        selector = Selector([self._wakeup, *(link for _, link in by_link.values())])
        while not self._closing:
            now = clock()
            timeout = min(PATROL, *(t - now for t in (self._wake, self._arrivals.next()) if t is not None), PATROL)
            for member in selector.wait(timeout, self._active and bool(self._answers)):
                if member is self._wakeup:
                    self._wakeup.drain()
                else:
                    self._receive(*by_link[id(member)])
            for peer, message in self._arrivals.arrived(clock()):
                self._take(peer, message)
            while self._commands:
                self._commands.popleft()()
            # Waiting is in whole milliseconds: a wake-up that is nearly due is taken as due.
            if self._wake is not None and self._wake - clock() < 0.001:
                due, self._wake = self._wake, None
                self._feed(ev.Tick(), max(due, clock()))
            self._patrol()

    def _recover(self, death: WorkerDied) -> None:
        """Stages are gone. Those of this machine are started again, others may come back; what the engine has under
        way goes on from the tokens. Raises what ended them where that is no help."""
        while True:
            gone = self._gone(death)
            self._restarts = [at for at in self._restarts if clock() - at < FORGIVEN] + [clock()]
            if not gone or len(self._restarts) > RESTARTS:
                raise death
            again = "Starting it again." if not any(peer.remote for peer in gone) else "Waiting for it to come back."
            self._tell(f"{death} {again}")
            try:
                self._session.restart(gone, self._unwanted)
            except WorkerDied as another:
                if self._unwanted():
                    raise death from None
                death = another
            except PipeInferError as why:
                raise WorkerDied(f"{death} {why}") from None
            else:
                break
        self._arrivals = Arrivals(self._links[1:])
        self._watch = Watch(self._stages, self._patience, self._tell)
        self._moved, self._passed, self._wake = clock(), {}, None
        self._runs.clear()
        names = " and ".join(peer.name for peer in gone)
        back = f"{names} {'is' if len(gone) == 1 else 'are'} back, and the text goes on."
        self._tell(back)
        for answer in self._answers.values():
            answer.tally.warnings.append(back)
            answer.job.cached = 0
        self._feed(ev.Lost())

    def _gone(self, death: WorkerDied) -> list[Peer]:
        """The stages that are. One that only lost its neighbour may have been heard first."""
        until = clock() + 0.3
        while True:
            gone = [peer for peer in self._stages if peer is death.peer or peer.gone]
            if gone or clock() > until:
                return gone
            time.sleep(0.02)

    def _unwanted(self) -> bool:
        """Nobody waits for the stages that are started again."""
        answers = self._answers.values()
        return self._closing or (bool(answers) and all(answer.job.stopping for answer in answers))

    def _receive(self, peer: Peer, link: Link[msg.ToCoordinator]) -> None:
        while (message := self._heard_from(peer, link)) is not None:
            peer.heard = clock()
            if self._links and isinstance(message, msg.RunBack | msg.Passed):
                sent = message.sent if isinstance(message, msg.RunBack) else message.ended
                self._arrivals.push(self._stages.index(peer), sent, 24, (peer, message))
            else:
                self._take(peer, message)

    def _heard_from(self, peer: Peer, link: Link[msg.ToCoordinator]) -> msg.ToCoordinator | None:
        """What it says next. The draft worker is given up where that is no message; a stage ends this."""
        try:
            return link.receive()
        except UserError as error:
            if peer in self._stages:
                raise
            self._lose_draft(str(error))
            return None

    def _take(self, peer: Peer, message: msg.Message) -> None:
        match message:
            case (
                msg.RunBack(epoch=epoch) | msg.Passed(epoch=epoch) | msg.Failed(epoch=int(epoch))
            ) if epoch != self._session.epoch:
                pass  # of stages as they were before they were loaded again
            case msg.RunBack(run, dead, draws, memory, held, _, lost, tops) if peer in self._stages:
                self._believe(peer, claims.back(message, self.engine.pipe.in_flight, self._n_vocab))
                self._lost = lost or self._lost
                self._moved = clock()
                self._memory.update(memory)
                self.held = held or self.held
                self._read(run, dead)
                if self.trace is not None:
                    self.trace.instant("coordinator", f"back {run}", clock(), run=run, dead=dead)
                self._feed(ev.RunDone(run, () if dead else draws, () if dead else tops))
            case msg.Progress():  # a part of something large has come in
                self._moved = clock()
            case msg.Passed() if peer in self._stages:
                self._believe(peer, claims.ready(message, self._stages.index(peer), self._sent))
                self._stage_ready(peer, message)
            case msg.Guessed() if peer is self._draft:
                if (wrong := claims.drafted(message, self._n_vocab)) is not None:
                    self._lose_draft(wrong)
                else:
                    self._drafted(message)
            case msg.Failed(reason) if peer is self._draft:
                self._lose_draft(reason)
            case msg.Failed(reason) if peer in self._stages:
                raise WorkerDied(f"{peer.name} failed: {reason.rstrip('.')}.")

    def _believe(self, stage: Peer, wrong: str | None) -> None:
        if wrong is not None:
            raise WorkerDied(f"{stage.title} sent something impossible: {wrong}. This pipeline has ended: reopen it.")

    def _begin(self, job: Job, before: Callable[[Slot], None]) -> None:
        slot = self.engine.slots[job.slot]
        if self.failure is not None or slot.phase != IDLE:
            job.end(self.failure or PipeInferError("Another generation is under way on this pipeline."))
            return
        before(slot)
        self._take_up_draft()
        now = clock()
        if not self._answers:
            switching.enter()
        answer = self._answers[job.slot] = Answer(job, now, self._piece, self._outbox.other_bytes)
        self.tally = answer.tally
        self.tally.memory_mb = self._memory
        if self.draft_note:
            self.tally.warnings.append(self.draft_note)
        self._start(job)
        if self._draft is not None and self.engine.worker.alive and self.engine.settings.mode != "off":
            self._draft.link.send(msg.DraftTurn(job.sampling, job.slot))
        self._figures.event(f"Slot {job.slot}: a prompt of {(n := len(job.prompt))} token{'s' if n != 1 else ''}.")
        self._feed(ev.Prompt(job.prompt, job.max_tokens, job.goes_on, job.slot, job.owner), now)
        job.cached = self.engine.slots[job.slot].turn.kept

    def _start(self, job: Job, said: tuple[int, ...] = (), root: int = 0) -> None:
        """The next run of the slot tells the sampler of its turn."""
        look_back = max(job.sampling.repeat_last_n, 1)
        self._outbox.begin(msg.TurnStart(job.sampling, job.prompt[-look_back:], job.slot, said, root))

    def _stop(self, job: Job) -> None:
        answer = self._answers.get(job.slot)
        if answer is not None and answer.job is job:
            self._feed(ev.Stop("cancelled", slot=job.slot))

    def _read(self, run: int, dead: bool) -> None:
        """A run is back: of a prompt so much is read."""
        about = self._runs.get(run)
        if about is None or dead or about.kind != "prefill":
            return
        last = about.rows[-1]
        if (answer := self._answers.get(last.slot)) is not None:
            answer.job.read = max(answer.job.read, last.pos + 1)

    def _shares(self, run: int) -> list[tuple[Tally, float]]:
        """Whose decoding the run is, by share of its rows."""
        about = self._runs.get(run)
        if about is None or about.kind != "decode":
            return []
        rows = Counter(row.slot for row in about.rows)
        return [(self._answers[s].tally, n / len(about.rows)) for s, n in rows.items() if s in self._answers]

    def _stage_ready(self, peer: Peer, ready: msg.Passed) -> None:
        done = ready.outcome == "done"
        self._moved, self._passed[ready.stage] = clock(), ready.run
        self._figures.computed(ready.stage, ready.ended - ready.began, ready.bytes_out, self._moved)
        for tally, share in self._shares(ready.run):
            if ready.outcome == "aborted":
                tally.aborted.add(ready.run)
            tally.link(ready.stage + 1, share * ready.bytes_out)
            tally.busy[ready.stage] = tally.busy.get(ready.stage, 0.0) + share * (ready.ended - ready.began)
        if self.trace is not None:
            began, ended = ready.began - peer.offset, ready.ended - peer.offset
            name = f"run {ready.run}" + ("" if done else f" {ready.outcome}")
            self.trace.span(
                f"stage-{ready.stage}", name, began, ended, ready.outcome, run=ready.run, outcome=ready.outcome
            )
        self._feed(ev.StageReady(ready.stage, ready.run, ready.ended - ready.began if done else None))

    def _drafted(self, said: msg.Guessed) -> None:
        self._memory["draft"] = said.memory_mb
        if self.trace is not None:
            self.trace.span("draft", f"draft {said.pos}", said.began, said.ended, path=said.path, prob=said.prob)
        seconds = said.ended - said.began
        event = ev.Drafted(said.path, said.pos, said.token, said.prob, said.second, said.second_prob, seconds)
        self._feed(event)

    def _feed(self, event: ev.Event, now: float | None = None) -> None:
        actions = self.engine.handle(event, clock() if now is None else now)
        # What the stages wait for goes first: handing a token out wakes its reader, who takes the GIL.
        for action in actions:
            if not isinstance(action, ev.Emit):
                self._carry_out(action)
        for action in actions:
            if isinstance(action, ev.Emit):
                self._emit(action)
        for slot, answer in list(self._answers.items()):
            if answer.stops_now():
                self._feed(ev.Stop("stop", answer.keep, slot))

    def _carry_out(self, action: ev.Action) -> None:
        match action:
            case ev.Dispatch(run):
                if len(self.engine.pipe) <= 1:
                    self._moved = clock()
                self._sent = run.id
                self._runs[run.id] = run
                if len(self._runs) > REMEMBERED:
                    del self._runs[next(iter(self._runs))]
                sent = self._outbox.dispatch(run, len(self.engine.pipe))
                for tally, share in self._shares(run.id):
                    tally.link(0, share * sent)
            case ev.Cancel(runs):
                self._outbox.cancel(runs)
            case ev.Wake(at):
                self._wake = at
            case ev.Finish(reason, slot):
                self._finish(slot, reason)
            case ev.Again(said, root, slot):
                self._start(self._answers[slot].job, said, root)
            case _:
                self._outbox.order(action)

    def _emit(self, action: ev.Emit) -> None:
        answer, now = self._answers.get(action.slot), clock()
        self._restarts.clear()
        self._figures.emitted(action.slot, self.engine.slots[action.slot].stats, now)
        if answer is not None and answer.emit(action, now) and self.trace is not None:
            self.trace.instant("coordinator", "token", now, pos=action.pos, origin=action.origin)

    def _finish(self, slot: int, reason: str) -> None:
        answer = self._answers.pop(slot, None)
        if answer is None:
            return
        try:
            result = self._result(answer, slot, reason)
        except BaseException as error:  # whatever it is: whoever reads must not wait for ever
            answer.job.end(error)
            raise
        answer.job.end(FormLost(self._lost) if reason == "form" else result)

    def _result(self, answer: Answer, slot: int, reason: str) -> Result:
        engine = self.engine
        if not self._answers:
            self._wake = None
            switching.leave()
        if (slower := self._slowdown.look(engine.pipe.pace)) is not None:
            answer.tally.warnings.append(slower)
        result = answer.finish(
            reason,
            engine.slots[slot].stats,
            mode=engine.settings.mode,
            stages=len(self._stages),
            exact=self.exact,
            other_bytes=self._outbox.other_bytes,
        )
        n = result.n_generated
        self._figures.event(f"Slot {slot}: {n} token{'s' if n != 1 else ''}, ended by {result.finish_reason}.")
        return result

    def _tell(self, text: str) -> None:
        self._figures.event(text)
        self._notice(text)

    def _patrol(self) -> None:
        for _, death in self._watch.look():
            raise death
        for gone, death in self._draft_watch.look():
            self._draft_watch.lost(gone)
            self._lose_draft(str(death))
        if (draft := self._draft) is not None and draft in self._draft_watch.quiet:
            process = draft.process
            if clock() - draft.heard > self._patience or (process is not None and process.stopped()):
                self._lose_draft(f"{draft.name} does not answer any more, though its process is there")
                self._silent = draft
        in_flight = self.engine.pipe.in_flight
        if self._watch.quiet or not in_flight:
            self._moved = clock()  # silence is judged by the watch
        elif clock() - self._moved > max(DEADLINE * self._patience, 20 * self._longest()):
            self._give_up(min(in_flight))

    def _longest(self) -> float:
        """Seconds that a stage may take for a run."""
        settings = self.engine.settings
        return max(curve(max(settings.chunk, settings.max_rows)) for curve in self._curves)

    def _give_up(self, run: int) -> None:
        """A run came no further, though everybody answers."""
        at = next((i for i in range(len(self._stages)) if self._passed.get(i, 0) < run), len(self._stages) - 1)
        stage = self._stages[at]
        where = f" at {stage.address}" if stage.remote else ""
        slow = "; on a slow network a smaller --wire (bf16, q8) or more --patience helps" if stage.remote else ""
        raise WorkerDied(
            f"{stage.name}{where} answers, but run {run} has not come from it for {clock() - self._moved:.0f} s{slow}."
        )

    def _lose_draft(self, reason: str) -> None:
        self.draft_note = f"The draft worker is gone, so the text continues without speculation ({reason.rstrip('.')})."
        self._figures.event(self.draft_note)
        for answer in self._answers.values():
            answer.tally.warnings.append(self.draft_note)
        self._draft = self._outbox.draft = self._silent = None
        self._feed(ev.DraftLost())

    def _take_up_draft(self) -> None:
        """Between turns: a draft worker that was silent and answers again speculates again."""
        if self._silent is not None and self._silent not in self._draft_watch.quiet and self.engine.idle:
            self._draft = self._outbox.draft = self._silent
            self._silent, self.draft_note = None, ""
            self.engine.worker.alive = self.engine.settings.mode != "off"
