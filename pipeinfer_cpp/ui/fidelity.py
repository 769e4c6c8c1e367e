"""What codecs change, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from pipeinfer_cpp.lab.fidelity import Fidelity


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
