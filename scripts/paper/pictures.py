"""The figures as PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from runs import Arms

from pipeinfer_cpp.lab.measurement import Measurement
from pipeinfer_cpp.lab.plots import COLOURS, figure

ARMS = ("off", "sync", "async")


def lines(
    path: Path,
    nodes: Sequence[int],
    by_pair: Mapping[str, Mapping[int, Arms]],
    emulated: Mapping[tuple[str, int], Arms],
    value: Callable[[Measurement], float],
    label: str,
) -> None:
    """A value over the number of nodes: simulated as lines, emulated as marks."""
    fig, axes = figure(8.4, 4.2)
    for style, (pair, by_n) in zip(("-", "--"), by_pair.items(), strict=False):
        for colour, arm in zip(COLOURS, ARMS, strict=False):
            axes.plot(nodes, [value(by_n[n][arm]) for n in nodes], style, color=colour, label=f"{arm}, {pair}")
    for (pair, n), arms in emulated.items():
        mark = "o" if pair == next(iter(by_pair)) else "s"
        for colour, arm in zip(COLOURS, ARMS, strict=False):
            axes.plot([n], [value(arms[arm])], mark, color=colour)
    axes.set_xlabel("nodes")
    axes.set_ylabel(label)
    axes.set_xticks(nodes)
    axes.set_ylim(bottom=0)
    axes.set_title("lines: simulated, marks: emulated with real processes", loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    fig.savefig(path, dpi=130)


def bars(path: Path, values: Mapping[str, float], label: str) -> None:
    fig, axes = figure(7.2, 0.9 + 0.42 * len(values))
    names = list(values)[::-1]
    axes.barh(names, [values[name] for name in names], color=COLOURS[1])
    for i, name in enumerate(names):
        axes.text(values[name], i, f" {values[name]:.1f}", va="center", fontsize=8)
    axes.set_xlabel(label)
    axes.set_title("simulated", loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=130)
