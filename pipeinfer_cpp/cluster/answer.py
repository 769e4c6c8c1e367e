"""A slot's turn as the driver sees it: text and counts of what the engine says, and the result at the end."""

from __future__ import annotations

from collections.abc import Callable

from pipeinfer_cpp.cluster.turn import Turn
from pipeinfer_cpp.engine import Stats
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.results import Result, Tally, Token
from pipeinfer_cpp.text import TextStream


class Answer:
    """What was generated for a turn so far. `keep`: tokens that count, once a stop string has come."""

    def __init__(self, turn: Turn, now: float, piece: Callable[[int], bytes], bytes_before: int) -> None:
        """`bytes_before`: of cancellations, sent before the turn."""
        self.turn, self.tally = turn, Tally(now, warnings=[*turn.notes])
        self.keep: int | None = None
        self._text, self._piece, self._bytes_before = TextStream(turn.stops), piece, bytes_before

    def emit(self, action: ev.Emit, now: float) -> bool:
        """A token is final. False when the text had ended before."""
        if self._text.stopped:
            return False
        ends = action.token in self.turn.stop_tokens
        shown = self._text.stop() if ends else self._text.feed(self._piece(action.token))
        self.tally.ids.append(action.token)
        self.tally.times.append(now)
        self.tally.texts.append(shown)
        self.turn.put(Token(action.token, shown, action.logprob, action.origin, action.top))
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
            self.turn.put(Token(-1, rest, 0.0, "target"))
        self.tally.other_bytes = other_bytes - self._bytes_before
        return self.tally.result(
            "stop" if self._text.stopped else reason,  # it may have been completed by the last token there was room for
            stats,
            mode=mode,
            stages=stages,
            exact=exact,
            n_prompt=len(self.turn.prompt),
            seed=self.turn.sampling.seed,
            keep=self.keep,
        )
