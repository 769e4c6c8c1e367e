"""One answer as its tokens come: its text, and what is counted."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from pipeinfer_cpp.cluster.job import Job
from pipeinfer_cpp.engine import Stats
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.results import Result, Tally, Token


class TextStream:
    """Feed the bytes of one token after the other; take the text that is certain."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = [s for s in stops if s]
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """The text to show now. After a stop string, `stopped` is set and nothing more is shown."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(piece)
        at = min((i for s in self._stops if (i := self._held.find(s)) >= 0), default=-1)
        if at >= 0:
            self.stopped = True
            shown, self._held = self._held[:at], ""
            return shown
        keep = self._beginning()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def stop(self) -> str:
        """Stop here, at a token that has no text. What was held back is shown."""
        shown = self.finish()
        self.stopped = True
        return shown

    def finish(self) -> str:
        """What was held back, when the generation ended without completing a stop string."""
        if self.stopped:
            return ""
        shown = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return shown

    def _beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for n in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:n]):
                    longest = n
                    break
        return longest


class Answer:
    """What was generated for a turn so far. `keep`: tokens that count, once a stop string has come."""

    def __init__(self, job: Job, now: float, piece: Callable[[int], bytes], bytes_before: int) -> None:
        """`bytes_before`: of cancellations, sent before the turn."""
        self.job, self.tally = job, Tally(now, warnings=[*job.notes])
        self.keep: int | None = None
        self._text, self._piece, self._bytes_before = TextStream(job.stops), piece, bytes_before

    def emit(self, action: ev.Emit, now: float) -> bool:
        """A token is final. False when the text had ended before."""
        if self._text.stopped:
            return False
        ends = action.token in self.job.stop_tokens
        shown = self._text.stop() if ends else self._text.feed(self._piece(action.token))
        self.tally.ids.append(action.token)
        self.tally.times.append(now)
        self.tally.texts.append(shown)
        self.job.put(Token(action.token, shown, action.logprob, action.origin, action.top))
        return True

    def stops_now(self) -> bool:
        """True once: a stop string came with the last token."""
        if not self._text.stopped or self.keep is not None:
            return False
        self.keep = len(self.tally.ids)
        return True

    def finish(self, reason: str, stats: Stats, *, mode: str, stages: int, exact: bool, other_bytes: int) -> Result:
        """The turn is over."""
        rest = self._text.finish()
        self.tally.texts.append(rest)
        if rest:
            self.job.put(Token(-1, rest, 0.0, "target"))
        self.tally.other_bytes = other_bytes - self._bytes_before
        return self.tally.result(
            "stop" if self._text.stopped else reason,  # it may have been completed by the last token there was room for
            stats,
            mode=mode,
            stages=stages,
            exact=exact,
            n_prompt=len(self.job.prompt),
            seed=self.job.sampling.seed,
            keep=self.keep,
        )
