"""Every message between the processes, one struct each; the type's name is its tag.

Changing any of them is a new PROTOCOL. Hidden states travel as a second frame behind a RunHeader,
`float32[rows, n_embd]`, little-endian.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from pipeinfer_cpp.net.transit import LinkSpeed
from pipeinfer_cpp.sampling import Sampling

PROTOCOL = 11
WIRES = ("f32", "f16", "bf16", "q8", "q4")
"""Names of the codecs in `net.codecs`."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all messages."""


# ------------------------------------------------------------------------------ both directions


class Hello(Message, frozen=True):
    """The first message on a connection. `role` is `coordinator`, `runs` (the coordinator's second
    connection, where a stage has a second socket), or `stage` for the stage before it."""

    protocol: int
    package: str
    llama: str
    role: str
    session: str


class Welcome(Message, frozen=True):
    """The worker's answer: what it is. `runs`: the address of its second socket, for runs and their
    results, which its computing thread reads itself; None where all goes over the one socket.
    `machine` is the same for all workers of one machine. Memory in bytes, 0 where it is not known."""

    protocol: int
    package: str
    llama: str
    pid: int
    cpus: int
    runs: str | None = None
    machine: str = ""
    memory_total: int = 0
    memory_free: int = 0


class Refuse(Message, frozen=True):
    """The worker's other answer: one sentence. `user` says that the mistake is the user's."""

    reason: str
    user: bool = True


class Ping(Message, frozen=True):
    """Are you there? A worker answers from a thread that does not compute."""

    sent: float


class Pong(Message, frozen=True):
    """`sent` as it came, and the worker's own clock (seconds, its monotonic clock)."""

    sent: float
    clock: float


class Bye(Message, frozen=True):
    """The session is over."""


# ----------------------------------------------------------------------- coordinator to a worker


class ContextOptions(msgspec.Struct, frozen=True):
    """How llama.cpp contexts are made. n_ctx counts cells; kv_type is `auto` or a KV type's name.
    threads 0: the worker's own cores, divided by `sharing`, the workers of this pipeline on its machine."""

    n_ctx: int
    n_seq: int
    chunk: int = 64
    kv_type: str = "auto"
    flash_attn: bool = True
    threads: int = 1
    gpu_layers: int = 0
    sharing: int = 1
    apart: bool = False
    """Each sequence has cells of its own, an n_seq-th of n_ctx."""


class ModelRef(msgspec.Struct, frozen=True):
    """A GGUF by content: another machine looks for its own copy of it."""

    path: str
    sha256: str
    pair: str | None = None


class Stretch(msgspec.Struct, frozen=True):
    """Makes each decode last at least `first` + (rows - 1) x `further` seconds: a slow machine to study.
    `curve`, where there is one, gives times of `first` by number of rows instead."""

    first: float
    further: float = 0.0
    curve: dict[int, float] = {}


class LoadSlice(Message, frozen=True):
    """Load layers [first, end) of the model and get ready. `following` is the next stage's address."""

    model: ModelRef
    index: int
    n_stages: int
    first: int
    end: int
    options: ContextOptions
    exact: bool
    following: str | None = None
    stretch: Stretch | None = None
    max_rows: int = 16
    active: bool = False
    """Wait for runs without sleeping (this machine has cores to spare)."""
    wire_in: str = "f32"
    wire_out: str = "f32"
    """Codecs of the hidden states that come and that go; see `net.codecs`."""
    link: LinkSpeed | None = None
    """Emulated: how what comes to this stage, runs and cancellations, travels."""
    patience: float = 10.0
    """Seconds that the next stage and the coordinator may be silent."""
    previous: str | None = None
    """The key of the stage before, which may connect for the length of the session."""
    epoch: int = 0
    """Counts how often the stages of a session were loaded. Runs and answers of another epoch are void."""


class LoadDraft(Message, frozen=True):
    """Load the draft model."""

    path: str
    options: ContextOptions
    slots: int
    eog: tuple[int, ...]
    stretch: Stretch | None = None


class TurnStart(msgspec.Struct, frozen=True):
    """What the sampler needs to begin a slot's turn; rides on the turn's first run header."""

    sampling: Sampling
    prompt: tuple[int, ...]
    """The prompt's last tokens: as many as the penalties look at."""
    slot: int = 0
    said: tuple[int, ...] = ()
    """Final tokens behind it, of a turn that goes on after its stages were lost."""
    root: int = 0
    """The node of the last of all these tokens."""


class WireOp(NamedTuple):
    """See engine.sequences.Op: an array of its five fields."""

    kind: str
    seq: int
    p0: int
    p1: int
    src: int


class WireRow(NamedTuple):
    """See engine.run.Row: an array of its seven fields."""

    token: int
    pos: int
    seq: int
    node: int
    parent: int
    draw: bool
    slot: int


class RunHeader(Message, frozen=True):
    """A run on its way through the stages. A dead one is only this header."""

    id: int
    kind: str
    ops: tuple[WireOp, ...]
    rows: tuple[WireRow, ...]
    finals: tuple[tuple[int, int], ...]
    """Of each slot with rows in it the last final node: (slot, node)."""
    slot: int = -1
    """Whose turn an `end` ends."""
    turns: tuple[TurnStart, ...] = ()
    dead: bool = False
    memory: dict[str, float] = {}
    """On an `end` header: resident megabytes by stage, added as it passes."""
    held: dict[str, tuple[int, ...]] = {}
    """On an `end` header: by stage, the last cached position of each sequence id (-1: none)."""
    sent: float = 0.0
    """The sender's clock, for emulated links."""
    epoch: int = 0
    """See LoadSlice."""

    @property
    def size(self) -> int:
        """Bytes of the header, about."""
        return 40 + 12 * len(self.ops) + 16 * len(self.rows)


class Piece(Message, frozen=True):
    """The second frame is a part of the payload of the message that follows: the receiver sees that something comes."""


class Cancel(Message, frozen=True):
    """These runs are dead. Overtakes them."""

    runs: tuple[int, ...]
    sent: float = 0.0


class DraftTurn(Message, frozen=True):
    """A slot's turn begins; the draft draws with the same noise as the target."""

    sampling: Sampling
    slot: int = 0


class DraftReset(Message, frozen=True):
    """See engine.events.DraftReset."""

    path: int
    keep: int
    tokens: tuple[int, ...]
    slot: int = 0


class DraftFork(Message, frozen=True):
    """See engine.events.DraftFork."""

    path: int
    of: int
    keep: int
    token: int


class DraftDrop(Message, frozen=True):
    """See engine.events.DraftDrop."""

    paths: tuple[int, ...]


class DraftRoom(Message, frozen=True):
    """See engine.events.DraftRoom."""

    pos: int
    slot: int = 0


# ----------------------------------------------------------------------- a worker to the coordinator


class Progress(Message, frozen=True):
    """Something long is going on: `done` of `total` (any unit)."""

    what: str
    done: int
    total: int


class Loaded(Message, frozen=True):
    """Ready to work. `curve`: seconds by number of rows. `safe_width`: the widest run that gives the bits
    of single rows (1 where it was not tested). `threads`: it computes with so many. `checkpointed`: its
    memory cannot remove a part of a sequence. `stash`: positions of the longest sequence that can leave its cache and
    come back."""

    curve: dict[int, float]
    safe_width: int
    kv_type: str
    memory_mb: float
    threads: int
    checkpointed: bool = False
    stash: int = 0
    epoch: int = 0


class Passed(Message, frozen=True):
    """A stage passed a run on. `outcome`: `done`, `skipped` or `aborted`; times on its own clock."""

    stage: int
    run: int
    outcome: str
    began: float
    ended: float
    bytes_out: int
    epoch: int = 0


class RunBack(Message, frozen=True):
    """From the last stage: token and log-probability for each row that wanted a draw.

    `lost`: why the text's form cannot be kept behind rows whose token is LOST.
    """

    run: int
    dead: bool
    draws: tuple[tuple[int, float], ...]
    memory: dict[str, float] = {}
    held: dict[str, tuple[int, ...]] = {}
    sent: float = 0.0
    lost: str = ""
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    """See engine.events.RunDone."""
    epoch: int = 0


class Guessed(Message, frozen=True):
    """See engine.events.Drafted; `began`, `ended` on the worker's clock."""

    path: int
    pos: int
    token: int
    prob: float
    second: int
    second_prob: float
    began: float
    ended: float
    memory_mb: float = 0.0


class Failed(Message, frozen=True):
    """The worker cannot go on: one sentence. `epoch`: of the slice that failed, where it was one."""

    reason: str
    user: bool = False
    epoch: int | None = None


ToWorker = (
    Hello
    | Ping
    | Bye
    | LoadSlice
    | LoadDraft
    | RunHeader
    | Piece
    | Cancel
    | DraftTurn
    | DraftReset
    | DraftFork
    | DraftDrop
    | DraftRoom
)
ToCoordinator = Welcome | Refuse | Pong | Progress | Loaded | Passed | RunBack | Guessed | Failed


def objection(hello: Hello, package: str, llama: str) -> str | None:
    """Why this peer cannot be worked with, in one sentence; None when it can."""
    pairs = [
        ("protocol", str(hello.protocol), str(PROTOCOL)),
        ("pipeinfer_cpp", hello.package, package),
        ("llama-cpp-python", hello.llama.partition("+")[0], llama.partition("+")[0]),
    ]
    for what, theirs, ours in pairs:
        if theirs != ours:
            return f"{what} {theirs} there, {ours} here: install the same version on both machines"
    return None
