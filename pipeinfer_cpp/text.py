"""Tokens become text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


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
