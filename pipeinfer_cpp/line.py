"""Conversations over one pipeline: each is a line, and stands in a slot while it is in use."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from pipeinfer_cpp.arguments import sampling_of, stop_strings, text, token_ids, truth, whole
from pipeinfer_cpp.cluster.driver import Driver
from pipeinfer_cpp.cluster.job import Job
from pipeinfer_cpp.engine import Settings
from pipeinfer_cpp.engine.cached import Past
from pipeinfer_cpp.engine.slot import Slot
from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.generation import Generation, Reading
from pipeinfer_cpp.llama.sampler import Sampler
from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.results import Result
from pipeinfer_cpp.sampling import Sampling


class Line:
    """One conversation over a pipeline, with one generation at a time. Any thread may use it.

    As many lines as the pipeline has slots generate at once. The one that was used longest ago gives its slot up to
    another; what it said is computed again, in the batches it was first computed in, when it goes on.
    """

    def __init__(self, board: Switchboard, owner: str, pipeline: object = None) -> None:
        """Use `Pipeline.conversation`. `pipeline` stays open as long as this is held."""
        self._board, self._pipeline = board, pipeline
        self.owner = owner
        self.job: Job | None = None
        """The last one."""
        self._last: Result | None = None
        self.past_elsewhere: Past | None = None
        """The conversation while it stands in no slot; only the driver's thread changes it."""
        self.stashed = 0
        """The number under which the stages keep its cells meanwhile, 0 where they do not."""

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        sampling: Sampling | Mapping[str, Any] | None = None,
        stop: str | Sequence[str] = (),
        goes_on: bool = False,
        reading: Reading | None = None,
    ) -> Generation:
        """As `Pipeline.generate`, in this conversation. Raises PipeInferError while one is under way in it, and
        where all slots are busy."""
        board = self._board
        job = board.job_of(prompt, max_tokens, sampling, stop, goes_on, self.owner)
        with board.lock:
            board.check_alive()
            self.rest("This conversation generates one text at a time")
            if self.job is not None and self.job.result is not None:
                self._last = self.job.result
            job.slot, others = board.take(self, job)
            self.job = job
            board.driver.begin(job, lambda slot: self._move_in(slot, others))
        return Generation(job, board.driver.cancel, reading)

    @property
    def last(self) -> Result | None:
        """The result of the last generation that ended well."""
        if self.job is not None and self.job.result is not None:
            return self.job.result
        return self._last

    def past(self) -> Past:
        """The conversation so far, as it was computed: what `recall` needs to go on with it on another pipeline."""
        board = self._board
        with board.lock:
            self.rest()
            slot = board.slot_of(self)
            if slot is not None:
                return board.driver.past(slot)
            board.driver.run(lambda: None)  # it may be on its way out of its slot
            return self.past_elsewhere or Past((), (), board.settings.chunk)

    def recall(self, past: Past) -> None:
        """Go on with a conversation of another pipeline of the same model and settings. The next generation that
        `goes_on` computes it again in the batches that it was first computed in, so that the same text follows."""
        board = self._board
        board.check_past(past)
        with board.lock:
            self.rest()
            slot = board.slot_of(self)
            if slot is not None:
                board.driver.recall(slot, past)
            else:
                board.driver.run(lambda: self._elsewhere(past))

    def forget(self) -> None:
        """Compute the next prompt from its beginning, whatever the stages still hold of it."""
        with self._board.lock:
            self.rest()
            self._board.driver.run(lambda: self._elsewhere(None))
            if (slot := self._board.slot_of(self)) is not None:
                self._board.driver.forget(slot)

    def close(self) -> None:
        """End what is under way, and give the slot up."""
        if self.job is not None and not self.job.over:
            self.job.stopping = True
            self._board.driver.cancel(self.job)
            self.job.wait()
        with self._board.lock:
            self._board.leave(self)
            self._board.driver.run(lambda: self._elsewhere(self.past_elsewhere), wait=False)

    def rest(self, refused: str = "This can only be done between generations") -> None:
        """Nothing is under way in it: wait for a generation that was told to stop, refuse while another one runs."""
        if self.job is not None and not self.job.over:
            if not self.job.stopping:
                raise PipeInferError(f"{refused}: another one is under way; read it to its end, or close() it.")
            self.job.wait()
        self._board.check_alive()

    def _move_in(self, slot: Slot, others: Line | None) -> None:
        """In the driver's thread: the slot is this conversation's from now on."""
        if others is self:
            return
        before = slot.past
        stashed = slot.change(self.past_elsewhere, self.stashed, keep=others is not None)
        if others is not None:
            others.past_elsewhere, others.stashed = before, stashed
        self.past_elsewhere, self.stashed = None, 0

    def _elsewhere(self, past: Past | None) -> None:
        """In the driver's thread: this is the conversation now, and the stages keep nothing of it without a slot."""
        self._board.driver.engine.drop(self.stashed)
        self.past_elsewhere, self.stashed = past, 0


class Switchboard:
    """Which line stands in which slot. What is asked for is checked here, before the driver gets it.

    A line that nobody holds any more leaves its slot. Hold `lock` around `take`, `slot_of` and `leave`.
    """

    def __init__(self, driver: Driver, vocabulary: Vocabulary, settings: Settings) -> None:
        self.driver, self.vocabulary, self.settings = driver, vocabulary, settings
        self.lock = threading.Lock()
        self._lines: list[weakref.ref[Line] | None] = [None] * settings.slots
        self._jobs: list[Job | None] = [None] * settings.slots
        """The last one of each slot."""
        self._used = [0] * settings.slots
        self._count = itertools.count(1)

    def slot_of(self, line: Line) -> int | None:
        """The line's slot, None where it has none."""
        return next((i for i, ref in enumerate(self._lines) if ref is not None and ref() is line), None)

    def take(self, line: Line, job: Job) -> tuple[int, Line | None]:
        """A slot for the job: the line's own, a free one, or that of the line that was used longest ago. Returns
        it, and the line that stood there. Raises PipeInferError where all are busy."""
        slot = self.slot_of(line)
        if slot is None:
            idle = [i for i, last in enumerate(self._jobs) if last is None or last.over]
            if not idle:
                n = len(self._jobs)
                raise PipeInferError(
                    f"All {n} slots of this pipeline are busy: wait for a generation to end, or open it with more."
                    if n > 1
                    else "This pipeline generates one text at a time: another one is under way; read it to its end, "
                    "close() it, or open the pipeline with more slots."
                )
            slot = min(idle, key=lambda i: (self._line(i) is not None, self._used[i]))
        before = self._line(slot)
        self._lines[slot], self._jobs[slot], self._used[slot] = weakref.ref(line), job, next(self._count)
        return slot, before

    def leave(self, line: Line) -> None:
        if (slot := self.slot_of(line)) is not None:
            self._lines[slot] = None

    def _line(self, slot: int) -> Line | None:
        ref = self._lines[slot]
        return ref() if ref is not None else None

    # ------------------------------------------------------------------------------------- checks

    def job_of(
        self,
        prompt: str | Sequence[int],
        max_tokens: int,
        sampling: Sampling | Mapping[str, Any] | None,
        stop: str | Sequence[str],
        goes_on: bool,
        owner: str,
    ) -> Job:
        """What `generate` was asked for, checked and made plain. Raises UserError."""
        self.check_alive()
        sampling = sampling_of(sampling).seeded().within(self.settings.n_ctx)
        notes = []
        if isinstance(prompt, str):
            tokens = tuple(self.vocabulary.tokenize(text("prompt", prompt), begin=True))
            if self.vocabulary.begins(prompt):
                notes.append("The prompt begins with the model's start token itself and gets no second one.")
        else:
            tokens = token_ids(prompt, self.vocabulary.size)
        if not tokens:
            raise UserError("The prompt is empty: give it at least one token.")
        if (max_tokens := whole("max_tokens", max_tokens)) == -1:
            max_tokens = self.settings.n_ctx  # it ends with the context
        if max_tokens < 1:
            raise UserError("--max-tokens must be at least 1, or -1 for as many as fit into the context.")
        if len(tokens) >= self.settings.n_ctx:
            raise UserError(
                f"The prompt has {len(tokens)} tokens and the context {self.settings.n_ctx}: "
                "shorten it or raise --ctx-size."
            )
        self.check_grammar(sampling)
        stops, goes_on = stop_strings(stop), truth("goes_on", goes_on)
        stop_tokens = self.vocabulary.control_tokens(stops)
        return Job(tokens, max_tokens, sampling, stops, goes_on, stop_tokens, owner, notes)

    def check_alive(self) -> None:
        if self.driver.failure is not None:
            raise PipeInferError(f"This pipeline has ended: {self.driver.failure}")

    def check_grammar(self, sampling: Sampling) -> None:
        """Raise UserError for an invalid grammar or bias here, before any stage sees it."""
        if sampling.forms or sampling.logit_bias:
            of = self.vocabulary
            Sampler(of.pointer, of.size, sampling.within(self.settings.n_ctx), pieces=of.pieces).close()

    def check_past(self, past: Past) -> None:
        """Raise UserError for a past of another model."""
        if any(not 0 <= token < self.vocabulary.size for token in past.tokens):
            raise UserError("This past of a conversation has tokens that the model does not have: use its own model.")
