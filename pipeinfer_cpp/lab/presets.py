"""Clusters by name. Figures for a 70B-class model; those of the paper's clusters are analogues, not its own."""

from __future__ import annotations

from typing import Any

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
