"""Pictures of measurements, with matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.lab.sweep import Done
from pipeinfer_cpp.system.versions import installing

COLOURS = ("#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def check(path: Path) -> None:
    """A word before the work rather than behind it."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot {path}: the name must end in .png, .svg or .pdf.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--plot {path}: that folder does not exist.")
    figure()


def figure(width: float = 8.0, height: float = 4.5) -> tuple[Any, Any]:
    """A figure and its axes. Raises UserError without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise UserError(f"Pictures need matplotlib: run {installing('matplotlib')}") from None
    return plt.subplots(figsize=(width, height), layout="constrained")


def bars(path: Path, cells: Sequence[Done]) -> None:
    """Tokens a second of each arm in each cell, with the interval of its speed-up."""
    fig, axes = figure(max(6.0, 1.2 + 1.4 * len(cells)))
    arms = list(dict.fromkeys(name for done in cells for name in done.comparison.arms))
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        at, heights, errors = [], [], []
        for j, done in enumerate(cells):
            measurement, ratio = done.comparison.arms.get(arm), done.comparison.ratios.get(arm)
            if measurement is None or ratio is None:
                continue
            at.append(j + (i - (len(arms) - 1) / 2) * width)
            heights.append(measurement.tokens_per_s)
            scale = measurement.tokens_per_s / ratio.value
            low, high = (ratio.value if bound is None else bound for bound in (ratio.low, ratio.high))
            errors.append((max(ratio.value - low, 0) * scale, max(high - ratio.value, 0) * scale))
        spread = [list(side) for side in zip(*errors, strict=True)]
        axes.bar(at, heights, width, label=arm, color=COLOURS[i % len(COLOURS)], yerr=spread, capsize=2)
    axes.set_xticks(range(len(cells)), [done.cell for done in cells], rotation=20 if len(cells) > 3 else 0)
    axes.set_ylabel("tokens/s")
    kinds = {m.kind for done in cells for m in done.comparison.arms.values()}
    axes.set_title(", ".join(sorted(kinds)), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    try:
        fig.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
