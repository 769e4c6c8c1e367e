"""A model or a pair as a table."""

from __future__ import annotations

from collections import Counter
from typing import Any

import gguf
from rich.table import Table
from rich.text import Text

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import SlicePlan, Source, check_pair, even_split, fit_split, slice_plan
from pipeinfer_cpp.models import Pair
from pipeinfer_cpp.ui.consoles import escaped, shown


def pair_lines(pair: Pair) -> Text:
    """Name, description and what its entry sets."""
    given = {name: value for name in pair.speculation.__struct_fields__
             if (value := getattr(pair.speculation, name)) is not None}  # fmt: skip
    text = shown(pair.name, "bold").append(escaped(f"  {pair.description}"), "default not bold")
    if given:
        settings = ", ".join(f"{name} {value}" for name, value in given.items())
        text.append(f"\nspeculation: {settings}", "default not bold")
    return text


def source_table(source: Source, title: str = "") -> Table:
    table = Table(show_header=False, title=shown(title) if title else None, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: object, style: str = "") -> None:
        table.add_row(Text(name, "bold"), shown(value, style))

    n_parts = len(source.parts)
    row("file", f"{source.path}" + (f" and {n_parts - 1} more parts" if n_parts > 1 else ""))
    row("name", source.name)
    row("architecture", source.architecture)
    row("layers", source.n_layers)
    row("width", source.n_embd)
    row("parameters", _count(_parameters(source)))
    row("size", f"{source.size_bytes / 1e6:,.1f} MB")
    row("quantisation", ", ".join(f"{name} {100 * share:.1f}%" for name, share in _quantisation(source).items()))
    row("context", source.n_ctx_train or "not stated")
    row("vocabulary", f"{source.n_vocab:,} tokens ({source.vocab_type}; {'adds' if source.add_bos else 'no'} bos)")
    row("output head", "tied to the embedding" if source.tied else "its own")
    row("chat template", "yes" if source.chat_template else "no")
    why = _why_not_sliceable(source)
    row("can be sliced", "yes" if why is None else f"no: {why}", "green" if why is None else "red")
    return table


def source_fields(source: Source) -> dict[str, Any]:
    """The same for programs."""
    return {
        "files": [str(part) for part in source.parts],
        "name": source.name,
        "architecture": source.architecture,
        "layers": source.n_layers,
        "width": source.n_embd,
        "parameters": _parameters(source),
        "size": source.size_bytes,
        "quantisation": _quantisation(source),
        "context": source.n_ctx_train or None,
        "vocabulary": source.n_vocab,
        "tied": source.tied,
        "chat_template": source.chat_template is not None,
        "not_sliced": _why_not_sliceable(source),
    }


def fit_line(target: Source, draft: Source) -> Text:
    try:
        check_pair(target, draft)
    except UserError as error:
        return shown(f"These two models do not fit together: {error}", "red")
    return Text("The vocabularies fit: this draft can draft for this target.", "green")


def _why_not_sliceable(source: Source) -> str | None:
    try:
        ranges, _ = fit_split(source, even_split(source.n_layers, min(2, source.n_layers)))
        for first, end in ranges:
            slice_plan(source, first, end)
    except UserError as error:
        return str(error)
    return None


def _parameters(source: Source) -> int:
    return sum(_elements(tensor.shape) for tensor in source.tensors.values())


def _quantisation(source: Source) -> dict[str, float]:
    """Tensor types by their share of the elements."""
    elements: Counter[str] = Counter()
    for tensor in source.tensors.values():
        elements[gguf.GGMLQuantizationType(tensor.kind).name] += _elements(tensor.shape)
    return {name: n / _parameters(source) for name, n in elements.most_common()}


def _elements(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _count(n: int) -> str:
    return f"{n / 1e9:.2f}B" if n >= 1e9 else f"{n / 1e6:.2f}M"


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
