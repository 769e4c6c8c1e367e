"""Everything a pipeline can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeinfer_cpp.arguments import maybe, number, path, several, stage_list, text, truth, whole
from pipeinfer_cpp.emulation import Cluster, load_cluster
from pipeinfer_cpp.engine.settings import MODES, TECHNIQUES
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.messages import WIRES, Stretch
from pipeinfer_cpp.net.transit import LinkSpeed

KV_TYPES = ("auto", "f32", "f16", "bf16", "q8_0", "q4_0")
_KINDS = {
    "stages": stage_list,
    "split": maybe(several(number)),
    "ablate": several(text),
    "wire": several(text, one=True),
    "links": maybe(several(LinkSpeed)),
    "stretch": maybe(several(Stretch, one=True)),
    "draft_stretch": maybe(Stretch),
    **dict.fromkeys(("target", "draft", "models"), maybe(path)),
    **dict.fromkeys(("pair", "layers", "mode"), maybe(text)),
    "kv_type": text,
    **dict.fromkeys(("threads", "ctx", "branches", "draft_max", "max_ahead", "max_rows"), maybe(whole)),
    **dict.fromkeys(("gpu_layers", "chunk", "slots"), whole),
    **dict.fromkeys(("cutoff", "recovery", "decay", "split_threshold"), maybe(number)),
    "patience": number,
    **dict.fromkeys(("flash_attn", "trace", "tuned"), truth),
    "exact": maybe(truth),
}
"""What each argument must be, made plain (numpy's numbers become Python's)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """None means: decide for me.

    pair, or target (and draft): which models; models: a further models.toml. stages: how many processes
    to start here, or the addresses of stages that run already: a list, or one text with commas. split: shares
    of the layers; layers: the ranges themselves, "0-9,10-19". threads: of each process. ctx: positions a
    conversation can have, 0 for as many as the model was trained for. slots: conversations at a time.
    stretch: makes each stage (one for all, or one each) as slow as given; draft_stretch: the draft.
    patience: seconds that a stage elsewhere may be silent before it is given up; a run may go nowhere for six times
    as long.
    wire: codec of the hidden states (see `net.codecs`), one for all links or one each.
    links: emulated ones, from the coordinator to stage 0, between stages, from the last back.
    emulate: nodes and links as slow as this cluster's, in place of stretch, draft_stretch and links: a preset's
    name, the path of a cluster.toml, or a cluster.
    The speculation settings left None come from what `pipeinfer tune` found for the pair on these machines
    (not where `tuned` is False), then from the pair's entry in models.toml, then from `engine.Settings`.
    """

    pair: str | None = None
    target: str | Path | None = None
    draft: str | Path | None = None
    models: str | Path | None = None
    stages: int | Sequence[str] = 2
    split: Sequence[float] | None = None
    layers: str | None = None
    threads: int | None = None
    mode: str | None = None
    ctx: int | None = None
    slots: int = 1
    kv_type: str = "auto"
    flash_attn: bool = True
    gpu_layers: int = 0
    exact: bool | None = None
    chunk: int = 64
    branches: int | None = None
    cutoff: float | None = None
    recovery: float | None = None
    decay: float | None = None
    split_threshold: float | None = None
    draft_max: int | None = None
    max_ahead: int | None = None
    max_rows: int | None = None
    ablate: Sequence[str] = ()
    stretch: Stretch | Sequence[Stretch] | None = None
    draft_stretch: Stretch | None = None
    patience: float = 10.0
    wire: str | Sequence[str] = "f32"
    links: Sequence[LinkSpeed] | None = None
    emulate: Cluster | None = None
    trace: bool = False
    tuned: bool = True

    def __post_init__(self) -> None:
        """Raises TypeError, which names the argument, for a value of another kind."""
        for name, kind in _KINDS.items():
            object.__setattr__(self, name, kind(name, getattr(self, name)))
        if isinstance(emulate := getattr(self, "emulate"), str):  # noqa: B009 - its type says that there is none
            object.__setattr__(self, "emulate", _cluster(emulate, self.n_stages))
        if not isinstance(self.emulate, Cluster | None):
            raise TypeError(f"emulate: a cluster or the name of one is needed, not {self.emulate!r}")

    @property
    def ngram(self) -> bool:
        """In place of a draft model the text itself guesses what comes next."""
        return str(self.draft) == "ngram"

    @property
    def drafting(self) -> bool:
        """A draft model has a use."""
        return self.mode != "off" and not self.ngram

    def check(self) -> None:
        """Raise UserError for values that cannot be."""
        n = self.n_stages
        rules = [
            (self.pair is None or self.target is None, "Give --pair or --target, not both."),
            (n >= 1, "--stages must be at least 1."),
            (self.mode is None or self.mode in MODES, f"--mode must be one of {', '.join(MODES)}."),
            (self.split is None or self.layers is None, "Give --split or --layers, not both."),
            (self.threads is None or 1 <= self.threads <= 512, "--threads must be between 1 and 512."),
            (1.0 <= self.patience <= 86400.0, "--patience must be between 1 and 86400 seconds."),
            (-1 <= self.gpu_layers < 1 << 31, "--gpu-layers must be 0 or more, or -1 for all."),
            (self.kv_type in KV_TYPES, f"--kv-type must be one of {', '.join(KV_TYPES)}."),
            (self.flash_attn or not self.kv_type.startswith("q"), f"--kv-type {self.kv_type} needs --flash-attn."),
            (not self.ctx or self.ctx >= 16, "--ctx-size must be at least 16, or 0 for the model's own."),
            (1 <= self.slots <= 64, "--slots must be between 1 and 64."),
            (self.branches is None or 1 <= self.branches <= 16, "--branches must be between 1 and 16."),
            (self.cutoff is None or 0.0 <= self.cutoff <= 1.0, "--cutoff must be between 0 and 1."),
            (self.draft_max is None or 1 <= self.draft_max <= 63, "--draft-max must be between 1 and 63."),
            (self.max_rows is None or 1 <= self.max_rows <= self.chunk, f"max_rows must be 1 to {self.chunk}."),
            (self.max_ahead is None or 1 <= self.max_ahead <= 1024, "max_ahead must be 1 to 1024."),
            (
                all(v is None or 0.0 <= v <= 1.0 for v in (self.recovery, self.decay, self.split_threshold)),
                "recovery, decay and split_threshold must be between 0 and 1.",
            ),
            (
                all(0.0 < share < float("inf") for share in self.split or ()),
                "--split must name a share above 0 for each stage.",
            ),
            (8 <= self.chunk <= 512, "--chunk must be between 8 and 512."),
            (
                not (self.exact and (self.branches or 1) > 1),
                "--exact needs --branches 1: side branches change the order of KV cells and with it the last bits.",
            ),
        ]
        for holds, sentence in rules:
            if not holds:
                raise UserError(sentence)
        for name in self.ablate:
            if name not in TECHNIQUES:
                raise UserError(f"--ablate {name!r} is not one of {', '.join(TECHNIQUES)}.")
        if not isinstance(self.stretch, Stretch | None) and len(self.stretch) != n:
            raise UserError(f"--stretch names {len(self.stretch)} stages, but there are {n}.")

        links = [self.wire] if isinstance(self.wire, str) else list(self.wire)
        for name in links:
            if name not in WIRES:
                raise UserError(f"--wire {name} is not one of {', '.join(WIRES)}.")
        if not isinstance(self.wire, str) and len(links) != n - 1:
            raise UserError(f"--wire names {len(links)} links, but {n} stages have {n - 1}.")

        if self.emulate is not None and self.emulate.n_stages != n:
            raise UserError(f"The emulated cluster has {self.emulate.n_stages} nodes, but --stages is {n}.")
        if self.emulate is not None and not isinstance(self.stages, int):
            raise UserError("A cluster is emulated on one machine: --emulate takes a number of --stages.")
        if self.links is not None and len(self.links) != n + 1:
            raise UserError(f"{len(self.links)} links are emulated, but {n} stages have {n + 1}, in a ring.")

    @property
    def n_stages(self) -> int:
        return self.stages if isinstance(self.stages, int) else len(self.stages)

    def wire_of(self, link: int) -> str:
        """The codec from stage `link` to the next; `f32` where there is no such link."""
        if not 0 <= link < self.n_stages - 1:
            return "f32"
        return self.wire if isinstance(self.wire, str) else self.wire[link]

    def stretch_of(self, stage: int) -> Stretch | None:
        if self.stretch is None or isinstance(self.stretch, Stretch):
            return self.stretch
        return self.stretch[stage]


def _cluster(what: str, n_stages: int) -> Cluster:
    try:
        return load_cluster(what, n_stages)
    except UserError as error:
        raise UserError(f"emulate {what!r}: {error}") from None
