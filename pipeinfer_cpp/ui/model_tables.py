"""Models and pairs as tables."""

from __future__ import annotations

from collections import Counter

import gguf
from rich.table import Table
from rich.text import Text

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source, check_pair, even_split, fit_split, slice_plan
from pipeinfer_cpp.models import ModelFile, Pair, Registry


def pairs_table(registry: Registry) -> Table:
    table = Table()
    for column in ("pair", "what it is", "target", "draft", "on this machine"):
        table.add_column(column, overflow="fold")
    for pair in registry.pairs.values():
        here = Text("no: " + pair.reason, "red") if not pair.supported else _here(pair)
        table.add_row(Text(pair.name, "bold"), Text(pair.description), _size(pair.target), _size(pair.draft), here)
    return table


def _size(model: ModelFile | None) -> Text:
    return Text("none" if model is None else model.size or "?")


def _here(pair: Pair) -> Text:
    files = [model for model in (pair.target, pair.draft) if model is not None]
    n = sum(model.local() is not None for model in files)
    if n == len(files):
        return Text("yes", "green")
    return Text("in part" if n else "no", "yellow" if n else "dim")


def pair_lines(pair: Pair) -> Text:
    """Name, description and what its entry sets."""
    given = {name: value for name in pair.speculation.__struct_fields__
             if (value := getattr(pair.speculation, name)) is not None}  # fmt: skip
    text = Text(pair.name, "bold").append(f"  {pair.description}", "default not bold")
    if given:
        settings = ", ".join(f"{name} {value}" for name, value in given.items())
        text.append(f"\nspeculation: {settings}", "default not bold")
    return text


def source_table(source: Source, title: str = "") -> Table:
    table = Table(show_header=False, title=title or None, title_justify="left")

    def row(name: str, value: object, style: str = "") -> None:
        table.add_row(Text(name, "bold"), Text(str(value), style))

    n_parts = len(source.parts)
    row("file", f"{source.path}" + (f" and {n_parts - 1} more parts" if n_parts > 1 else ""))
    row("name", source.name)
    row("architecture", source.architecture)
    row("layers", source.n_layers)
    row("width", source.n_embd)
    row("parameters", _count(sum(_elements(tensor.shape) for tensor in source.tensors.values())))
    row("size", f"{source.size_bytes / 1e6:,.1f} MB")
    row("quantisation", _quantisation(source))
    row("context", source.n_ctx_train or "not stated")
    row("vocabulary", f"{source.n_vocab:,} tokens ({source.vocab_type}; {'adds' if source.add_bos else 'no'} bos)")
    row("output head", "tied to the embedding" if source.tied else "its own")
    row("chat template", "yes" if source.chat_template else "no")
    why = _why_not_sliceable(source)
    row("can be sliced", "yes" if why is None else f"no: {why}", "green" if why is None else "red")
    return table


def fit_line(target: Source, draft: Source) -> Text:
    try:
        check_pair(target, draft)
    except UserError as error:
        return Text(f"The pair does not fit: {error}", "red")
    return Text("The vocabularies fit: this draft can draft for this target.", "green")


def _why_not_sliceable(source: Source) -> str | None:
    try:
        ranges, _ = fit_split(source, even_split(source.n_layers, min(2, source.n_layers)))
        for first, end in ranges:
            slice_plan(source, first, end)
    except UserError as error:
        return str(error)
    return None


def _quantisation(source: Source) -> str:
    """Tensor types by their share of the elements."""
    elements: Counter[str] = Counter()
    for tensor in source.tensors.values():
        elements[gguf.GGMLQuantizationType(tensor.kind).name] += _elements(tensor.shape)
    total = sum(elements.values())
    return ", ".join(f"{name} {100 * n / total:.1f}%" for name, n in elements.most_common())


def _elements(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _count(n: int) -> str:
    return f"{n / 1e9:.2f}B" if n >= 1e9 else f"{n / 1e6:.2f}M"
