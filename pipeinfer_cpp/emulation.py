"""Emulated clusters: how fast nodes and links are, from a cluster.toml or by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pipeinfer_cpp.engine import CostCurve
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.messages import Stretch
from pipeinfer_cpp.net.transit import LinkSpeed
from pipeinfer_cpp.system.formats import read_toml

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


def stretched(stretch: Stretch) -> CostCurve:
    """Seconds of a stage that is made so slow, by number of rows."""
    if stretch.curve:
        return CostCurve({1: stretch.first, **{rows: stretch.first * times for rows, times in stretch.curve.items()}})
    return CostCurve.linear(stretch.first, stretch.further)


class NodeSpeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node's compute speed: for a run of one row `ms_per_layer` for each of its layers, or `ms` for all
    of them. What more rows cost: `further`, the share of one row's time that each further one takes, or
    `curve`, times of one row by number of rows. `count`: as many nodes of this kind."""

    ms_per_layer: Positive | None = None
    ms: Positive | None = None
    further: NotNegative = 0.3
    curve: dict[str, Positive] = {}
    count: Annotated[int, msgspec.Meta(ge=1, le=128)] = 1


class Emulation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[emulate]` part. `nodes`: in the order of the stages. `link`: all links between machines, or
    `links`: one each, from the coordinator to the first stage, between stages, and from the last one back.
    `draft_ms`: the draft's time for a token."""

    nodes: list[NodeSpeed]
    link: LinkSpeed = LinkSpeed()
    links: list[LinkSpeed] = []
    draft_ms: Positive = 4.0


class _File(msgspec.Struct, forbid_unknown_fields=True):
    emulate: dict[str, object]


class Cluster(msgspec.Struct, frozen=True):
    """An emulation unfolded for n stages: one node each, n + 1 links."""

    name: str
    nodes: tuple[NodeSpeed, ...]
    links: tuple[LinkSpeed, ...]
    draft_ms: float

    @property
    def n_stages(self) -> int:
        return len(self.nodes)

    def stretches(self, layers: Sequence[int]) -> list[Stretch]:
        """What makes each stage, of so many layers, as slow as its node."""
        return [_stretch(node, n) for node, n in zip(self.nodes, layers, strict=True)]

    def curves(self, layers: Sequence[int]) -> list[CostCurve]:
        """The same for the simulation."""
        return [stretched(stretch) for stretch in self.stretches(layers)]

    def with_link(self, link: LinkSpeed) -> Cluster:
        return msgspec.structs.replace(self, links=(link,) * len(self.links))


def load_cluster(what: str, n_stages: int | None = None) -> Cluster:
    """A preset by name, or a cluster.toml by path. `n_stages` repeats or cuts a preset's nodes.

    Raises UserError, naming what is wrong.
    """
    if what in PRESETS:
        return unfold(what, PRESETS[what], n_stages)
    path = Path(what)
    if not path.suffix and not path.exists():
        raise UserError(
            f"There is no preset {what!r}: it is one of {', '.join(PRESETS)}, or the path of a cluster.toml."
        )
    data = read_toml(path)
    return unfold(path.stem, data, n_stages, str(path))


def unfold(name: str, data: object, n_stages: int | None = None, where: str = "the preset") -> Cluster:
    """Check the data of a file; one node a stage. Raises UserError."""
    try:
        emulate = dict(msgspec.convert(data, _File).emulate)
        base = emulate.pop("preset", None)
        if base is not None:
            if base not in PRESETS:
                raise UserError(f"{where}: there is no preset {base!r}: it is one of {', '.join(PRESETS)}.")
            emulate = {**PRESETS[str(base)]["emulate"], **emulate}
        emulation = msgspec.convert(emulate, Emulation)
    except msgspec.ValidationError as error:
        raise UserError(f"{where} is not a valid cluster.toml: {error}.") from None
    nodes = [msgspec.structs.replace(node, count=1) for node in emulation.nodes for _ in range(node.count)]
    if not nodes:
        raise UserError(f"{where} lists no nodes.")
    for node in nodes:
        if (node.ms is None) == (node.ms_per_layer is None):
            raise UserError(f"{where}: each node needs either ms_per_layer or ms.")
        if any(not rows.isdigit() or int(rows) < 2 for rows in node.curve):
            raise UserError(f"{where}: a curve gives times by number of rows, such as {{ 2 = 1.3, 8 = 2.4 }}.")
    if n_stages is not None and n_stages != len(nodes):
        if not where.startswith("the preset") and base is None:
            raise UserError(f"{where} has {len(nodes)} nodes, but {n_stages} stages were asked for.")
        nodes = [nodes[i % len(nodes)] for i in range(n_stages)]
    links = emulation.links or [emulation.link] * (len(nodes) + 1)
    if len(links) != len(nodes) + 1:
        raise UserError(f"{where} lists {len(links)} links; {len(nodes)} stages have {len(nodes) + 1}, in a ring.")
    return Cluster(name, tuple(nodes), tuple(links), emulation.draft_ms)


def _stretch(node: NodeSpeed, layers: int) -> Stretch:
    first = (node.ms if node.ms is not None else (node.ms_per_layer or 0.0) * layers) / 1000
    return Stretch(first, node.further * first, {int(rows): times for rows, times in node.curve.items()})


# Clusters by name. Figures for a 70B-class model; those of the paper's clusters are analogues, not its own.
_NODE = {"ms": 20.0, "further": 0.3}


def _cluster(
    link: dict[str, float], nodes: list[dict[str, Any]] | None = None, draft_ms: float = 4.0
) -> dict[str, Any]:
    return {"emulate": {"nodes": nodes or [{**_NODE, "count": 8}], "link": link, "draft_ms": draft_ms}}


PRESETS: dict[str, dict[str, Any]] = {
    # The paper's kinds of cluster.
    "fast": _cluster({"mbit": 100_000, "latency_ms": 0.005}),
    "gigabit": _cluster({"mbit": 1000, "latency_ms": 0.1, "jitter_ms": 0.05}),
    "constrained": _cluster(
        {"mbit": 100, "latency_ms": 0.3, "jitter_ms": 0.2}, [{"ms": 60.0, "further": 0.5, "count": 8}], 10.0
    ),
    "heterogeneous": _cluster(
        {"mbit": 1000, "latency_ms": 0.1, "jitter_ms": 0.05},
        [{**_NODE, "count": 4}, {"ms": 35.0, "further": 0.4, "count": 2}, {"ms": 60.0, "further": 0.5, "count": 2}],
    ),
    # Home networks.
    "wifi": _cluster({"mbit": 150, "latency_ms": 2.0, "jitter_ms": 3.0}),
    "powerline": _cluster({"mbit": 100, "latency_ms": 3.0, "jitter_ms": 2.0}),
    "10mbit": _cluster({"mbit": 10, "latency_ms": 1.0, "jitter_ms": 0.5}),
}
