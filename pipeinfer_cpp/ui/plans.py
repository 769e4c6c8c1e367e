"""A slice plan as a table: what becomes of every key and tensor."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from pipeinfer_cpp.gguf import SlicePlan

_STYLES = {"copied": "green", "rewritten": "yellow", "left out": "dim", "added": "cyan"}


def plan_table(plan: SlicePlan) -> Table:
    counts = plan.counts()

    def summary(kind: str) -> str:
        return ", ".join(f"{n} {action}" for action, n in counts[kind].items() if n)

    title = f"{plan.source.path.name}, layers {plan.first_layer}-{plan.end_layer - 1}"
    caption = f"keys: {summary('keys')}; tensors: {summary('tensors')}; {plan.data_bytes / 1e6:.1f} MB of data"
    table = Table(title=Text(title), caption=Text(caption), title_justify="left", caption_justify="left")
    for column in ("kind", "name", "what becomes of it", "why"):
        table.add_column(column, overflow="fold")
    for kind, steps in (("key", plan.keys), ("tensor", plan.tensors)):
        for step in steps:
            target = getattr(step, "target", None)
            name = step.name if target in (None, step.name) else f"{step.name} → {target}"
            table.add_row(kind, Text(name), Text(step.action, _STYLES.get(step.action, "")), Text(step.reason))
    return table
