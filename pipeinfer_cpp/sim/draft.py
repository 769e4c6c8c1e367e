"""The draft worker in virtual time."""

from __future__ import annotations

from collections.abc import Callable

from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.sim.clock import Clock
from pipeinfer_cpp.sim.worlds import World


class SimDraft:
    """Extends its paths in turn, one token every `seconds`, as far as there is room."""

    def __init__(
        self, clock: Clock, world: World, seconds: float, eog: frozenset[int], say: Callable[[ev.Event], None]
    ) -> None:
        self._clock, self._world, self._seconds, self._eog, self._say = clock, world, seconds, eog, say
        self.paths: dict[int, list[int]] = {}
        self._slots: dict[int, int] = {}
        """Of each path."""
        self._room: dict[int, int] = {}
        self._working: int | None = None
        self._turn = 0

    def command(self, action: ev.Action) -> None:
        match action:
            case ev.DraftReset(path, keep, tokens, slot):
                own = [p for p in self.paths if self._slots[p] == slot]
                base = max((self.paths.pop(p) for p in own), key=len, default=[])
                self.paths[path], self._slots[path] = base[:keep] + list(tokens), slot
                if self._working in own:
                    self._working = None
            case ev.DraftFork(path, of, keep, token):
                if of in self.paths:
                    self.paths[path], self._slots[path] = [*self.paths[of][:keep], token], self._slots[of]
            case ev.DraftDrop(paths):
                for path in paths:
                    self.paths.pop(path, None)
            case ev.DraftRoom(pos, slot):
                self._room[slot] = pos
        self._go()

    def _go(self) -> None:
        if self._working is not None and self._working in self.paths:
            return
        able = {
            p: t
            for p, t in self.paths.items()
            if len(t) <= self._room.get(self._slots[p], -1) and t[-1] not in self._eog
        }
        if not able:
            self._working = None
            return
        path = min(able, key=lambda p: len(able[p]) - self._room[self._slots[p]])
        self._working = path
        self._turn += 1
        turn = self._turn
        self._clock.at(self._clock.now + self._seconds, lambda: self._done(turn, path))

    def _done(self, turn: int, path: int) -> None:
        if turn != self._turn:
            return
        self._working = None
        if path in self.paths:
            tokens = self.paths[path]
            guess = self._world.draft(tokens)
            said = ev.Drafted(
                path, len(tokens), guess.token, guess.prob, guess.second, guess.second_prob, self._seconds
            )
            tokens.append(guess.token)
            self._say(said)
        self._go()
