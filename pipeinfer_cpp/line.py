"""Conversations over one pipeline: each is a line, and stands in a slot while it is in use."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeinfer_cpp.cluster.job import Job
from pipeinfer_cpp.engine.cached import Past
from pipeinfer_cpp.engine.slot import Slot
from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.generation import Generation, Reading
from pipeinfer_cpp.results import Result

if TYPE_CHECKING:
    from pipeinfer_cpp.pipeline import Pipeline
    from pipeinfer_cpp.sampling import Sampling


class Line:
    """One conversation over a pipeline, with one generation at a time. Any thread may use it.

    As many lines as the pipeline has slots generate at once. The one that was used longest ago gives its slot up to
    another; what it said is computed again, in the batches it was first computed in, when it goes on.
    """

    def __init__(self, pipeline: Callable[[], Pipeline | None], owner: str) -> None:
        """`pipeline` gives it, or None once it is gone. Use `Pipeline.conversation`."""
        self._pipeline = pipeline
        self.owner = owner
        self.job: Job | None = None
        """The last one."""
        self._last: Result | None = None
        self.past_elsewhere: Past | None = None
        """The conversation while it stands in no slot; only the driver's thread changes it."""

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
        pipeline = self._there()
        job = pipeline.job_of(prompt, max_tokens, sampling, stop, goes_on, self.owner)
        with pipeline.lock:
            pipeline.check_alive()
            self.rest("This conversation generates one text at a time")
            if self.job is not None and self.job.result is not None:
                self._last = self.job.result
            job.slot, others = pipeline.seats.take(self, job)
            self.job = job
            pipeline.driver.begin(job, lambda slot: self._move_in(slot, others))
        return Generation(job, pipeline.driver.cancel, reading)

    @property
    def last(self) -> Result | None:
        """The result of the last generation that ended well."""
        if self.job is not None and self.job.result is not None:
            return self.job.result
        return self._last

    def past(self) -> Past:
        """The conversation so far, as it was computed: what `recall` needs to go on with it on another pipeline."""
        pipeline = self._there()
        with pipeline.lock:
            self.rest()
            slot = pipeline.seats.of(self)
            if slot is not None:
                return pipeline.driver.past(slot)
            return self.past_elsewhere or Past((), (), pipeline.settings.chunk)

    def recall(self, past: Past) -> None:
        """Go on with a conversation of another pipeline of the same model and settings. The next generation that
        `goes_on` computes it again in the batches that it was first computed in, so that the same text follows."""
        pipeline = self._there()
        pipeline.check_past(past)
        with pipeline.lock:
            self.rest()
            slot = pipeline.seats.of(self)
            if slot is not None:
                pipeline.driver.recall(slot, past)
            else:
                self.past_elsewhere = past

    def forget(self) -> None:
        """Compute the next prompt from its beginning, whatever the stages still hold of it."""
        pipeline = self._there()
        with pipeline.lock:
            self.rest()
            self.past_elsewhere = None
            if (slot := pipeline.seats.of(self)) is not None:
                pipeline.driver.forget(slot)

    def close(self) -> None:
        """End what is under way, and give the slot up."""
        pipeline = self._pipeline()
        if pipeline is None:
            return
        if self.job is not None and not self.job.over:
            self.job.stopping = True
            pipeline.driver.cancel(self.job)
            self.job.wait()
        with pipeline.lock:
            pipeline.seats.leave(self)

    def rest(self, refused: str = "This can only be done between generations") -> None:
        """Nothing is under way in it: wait for a generation that was told to stop, refuse while another one runs."""
        if self.job is not None and not self.job.over:
            if not self.job.stopping:
                raise PipeInferError(f"{refused}: another one is under way; read it to its end, or close() it.")
            self.job.wait()
        self._there().check_alive()

    def _move_in(self, slot: Slot, others: Line | None) -> None:
        """In the driver's thread: the slot is this conversation's from now on."""
        if others is self:
            return
        if others is not None:
            others.past_elsewhere = slot.past
        if self.past_elsewhere is not None:
            slot.recall(self.past_elsewhere)
        else:
            slot.forget()
        self.past_elsewhere = None

    def _there(self) -> Pipeline:
        pipeline = self._pipeline()
        if pipeline is None:
            raise PipeInferError("This conversation's pipeline is gone.")
        return pipeline


class Seats:
    """Which line stands in which slot. A line that nobody holds any more leaves its seat."""

    def __init__(self, n: int) -> None:
        self._lines: list[weakref.ref[Line] | None] = [None] * n
        self._jobs: list[Job | None] = [None] * n
        """The last one of each slot."""
        self._used = [0] * n
        self._count = itertools.count(1)

    def of(self, line: Line) -> int | None:
        """The line's slot, None where it has none."""
        return next((i for i, ref in enumerate(self._lines) if ref is not None and ref() is line), None)

    def take(self, line: Line, job: Job) -> tuple[int, Line | None]:
        """A slot for the turn: the line's own, a free one, or that of the line that was used longest ago. Returns
        it, and the line that stood there. Raises PipeInferError where all are busy."""
        slot = self.of(line)
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
        if (slot := self.of(line)) is not None:
            self._lines[slot] = None

    def _line(self, slot: int) -> Line | None:
        ref = self._lines[slot]
        return ref() if ref is not None else None
