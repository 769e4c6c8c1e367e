"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeinfer_cpp.engine.run import Run

# ---------------------------------------------------------------------------------------- events


LOST = -2
"""Instead of a drawn token: the text ends here, with an error."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A turn of a slot begins: the whole token list of the conversation so far. What the cache already holds of
    it is kept. At most `max_tokens` are generated. `goes_on`: it is a further turn of the conversation before.
    `owner`: slots of one owner may use each other's cells where their prompts begin alike."""

    tokens: tuple[int, ...]
    max_tokens: int
    goes_on: bool = False
    slot: int = 0
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Drafted:
    """The draft worker extended `path` by one token at `pos`, in `seconds`, and would else have said `second`."""

    path: int
    pos: int
    token: int
    prob: float
    second: int = -1
    second_prob: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StageReady:
    """A stage passed a run on. `seconds` is its compute time, None for a dead run."""

    stage: int
    run: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RunDone:
    """A run is back from the last stage: (token, log-probability) for each row that wanted a draw,
    token -1 where the grammar forbids the row itself, LOST where the text's form cannot be kept behind it.
    A dead run may come back without draws."""

    run: int
    draws: tuple[tuple[int, float], ...] = ()
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each draw the likeliest tokens there with their log-probabilities, where they were asked for."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End a slot's turn and keep the first `keep` generated tokens (None: all that were emitted)."""

    reason: str
    keep: int | None = None
    slot: int = 0


@dataclass(frozen=True, slots=True)
class DraftLost:
    """The draft worker is gone: go on without speculation."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The stages are other ones now, and hold nothing: nothing that was under way comes back. Turns go on."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time asked for by Wake has come."""


Event = Prompt | Drafted | StageReady | RunDone | Stop | DraftLost | Lost | Tick

# --------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the run to stage 0."""

    run: Run


@dataclass(frozen=True, slots=True)
class Cancel:
    """These runs are dead: tell every stage, out of band."""

    runs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DraftReset:
    """Drop all draft paths of the slot; go on from the first `keep` tokens of its history plus `tokens`, as `path`."""

    path: int
    keep: int
    tokens: tuple[int, ...]
    slot: int = 0


@dataclass(frozen=True, slots=True)
class DraftFork:
    """Extend a side branch too: the first `keep` tokens of path `of`, then `token`."""

    path: int
    of: int
    keep: int
    token: int


@dataclass(frozen=True, slots=True)
class DraftDrop:
    """These draft paths are dead."""

    paths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DraftRoom:
    """Draft up to and including position `pos` on every path of the slot; -1: its turn is over."""

    pos: int
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Emit:
    """A token is final. `origin`: `target`, `draft` or `sibling`."""

    token: int
    pos: int
    logprob: float
    origin: str
    slot: int = 0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """A slot's turn is over on every stage. `reason`: `stop` (end of generation), `length`, or the Stop's."""

    reason: str
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Again:
    """What the stages lost of a slot's turn is computed again with the next runs: its samplers begin behind these
    final tokens, the last of which is node `root`."""

    said: tuple[int, ...]
    root: int
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Wake:
    """Send a Tick at this time, unless something else happens first."""

    at: float


Action = Dispatch | Cancel | DraftReset | DraftFork | DraftDrop | DraftRoom | Emit | Finish | Again | Wake
