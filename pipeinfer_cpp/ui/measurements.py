"""Measurements side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from pipeinfer_cpp.lab.fidelity import Fidelity
from pipeinfer_cpp.lab.limits import Limits
from pipeinfer_cpp.lab.measurement import Measurement

if TYPE_CHECKING:
    from pipeinfer_cpp.lab.bench import Comparison


def measurements_table(arms: Mapping[str, Measurement], title: str, ratios: Mapping[str, str] | None = None) -> Table:
    """One column an arm. `ratios`: its speed over that of the first, with an interval where there is one."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in arms:
        table.add_column(name, justify="right")

    def row(name: str, show: object) -> None:
        table.add_row(name, *(_text(show(m)) for m in arms.values()))  # type: ignore[operator]

    row("tokens/s", lambda m: f"{m.tokens_per_s:.2f}")
    if ratios:
        table.add_row("over the first", *(ratios.get(name, "") for name in arms))
    row("time to first token", lambda m: _ms(m.ttft_s))
    row("inter-token latency, mean", lambda m: _ms(m.itl_mean_s))
    row("inter-token latency, p50 / p99", lambda m: f"{_ms(m.itl_p50_s)} / {_ms(m.itl_p99_s)}")
    row("acceptance", lambda m: m.acceptance)
    row("accepted by depth", lambda m: " ".join(f"{x:.2f}" for x in m.accept_by_depth[:4]) or None)
    row("second choice right", lambda m: m.sibling_hit)
    row("runs sent / cancelled / aborted", lambda m: f"{m.runs_sent} / {m.runs_cancelled} / {m.runs_aborted}")
    row("rows sent a token", lambda m: m.rows_per_token)
    row("runs in flight, mean", lambda m: m.in_flight)
    row("utilisation of the stages", lambda m: _range([100 * u for u in m.utilisation], "%"))
    row("bytes a token, links between stages", lambda m: _range(m.link_bytes[1:-1], ""))
    if any(m.memory_mb for m in arms.values()):
        row("memory, MB", lambda m: f"{sum(m.memory_mb.values()):.0f}")
        row("tokens/s a GB", lambda m: m.tokens_per_s_per_gb)
    return table


def grid_table(cells: Mapping[str, Comparison]) -> Table:
    """One row a cell, one column an arm: tokens/s, and the speed over the first arm's."""
    names = list(dict.fromkeys(name for comparison in cells.values() for name in comparison.arms))
    table = Table(title="ALL CELLS: tokens/s, and over the first", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for cell, comparison in cells.items():
        texts = []
        for i, name in enumerate(names):
            arm, ratio = comparison.arms.get(name), comparison.ratios.get(name)
            over = f"  {ratio.value:.2f} x" if ratio is not None and i else ""
            texts.append("-" if arm is None else f"{arm.tokens_per_s:.2f}{over}")
        table.add_row(cell, *texts)
    return table


def limits_lines(found: Limits, reached: float) -> list[str]:
    """The analytic limits, and how close the engine comes."""
    lines = [
        f"limit of the pipeline (slowest stage or link, best width)  {found.pipeline:8.2f} tokens/s",
    ]
    if found.draft is not None:
        lines.append(f"limit of the draft (its own speed, and off beside it)      {found.draft:8.2f} tokens/s")
    if found.acceptance is not None:
        lines.append(f"limit of the acceptance (1 / (1 - a) tokens a miss)        {found.acceptance:8.2f} tokens/s")
    lines.append(f"async reaches {100 * reached / found.bound:.0f}% of the lowest of them.")
    return lines


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _range(values: list[float], unit: str) -> str | None:
    if not values:
        return None
    low, high = round(min(values)), round(max(values))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def fidelity_table(results: Sequence[Fidelity]) -> Table:
    """One row a codec; the first is what a change in the last bits does by itself."""
    first = results[0]
    table = Table(title=f"{first.positions} positions, {first.links} link{'s' if first.links != 1 else ''}")
    table.add_column("codec")
    for name in ("bytes a row", "greedy tokens changed per 1,000", "KL mean (nats)", "KL 99%"):
        table.add_column(name, justify="right")
    for r in results:
        if r.refused is not None:
            table.add_row(r.wire, str(r.bytes_per_row), "refused", "-", "-")
            continue
        figures = (f"{r.changed_per_1000:.1f}", f"{r.kl_mean:.2e}", f"{r.kl_p99:.2e}")
        table.add_row(r.wire, str(r.bytes_per_row), *figures)
    table.caption = f"largest hidden state {first.max_hidden:.0f}"
    return table
