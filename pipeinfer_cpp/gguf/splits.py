"""Which layers each stage holds: half-open ranges `(first, end)` that cover the model in order."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pipeinfer_cpp.errors import UserError

LayerRange = tuple[int, int]


def even_split(n_layers: int, n_stages: int) -> list[LayerRange]:
    """Ranges as equal as can be; the earlier stages get the odd layers, since the last one also
    computes the output head. Raises UserError when there are more stages than layers."""
    _check_stages(n_layers, n_stages)
    base, odd = divmod(n_layers, n_stages)
    return _ranges([base + (i < odd) for i in range(n_stages)])


def split_by_shares(shares: Sequence[float], n_layers: int) -> list[LayerRange]:
    """Ranges in proportion to `shares` (any positive numbers), each of at least one layer."""
    _check_stages(n_layers, len(shares))
    if not all(math.isfinite(s) and s > 0 for s in shares):
        raise UserError(f"Each share of a split must be a positive number: {', '.join(map(str, shares))} is not.")
    wanted = [s / sum(shares) * n_layers for s in shares]
    counts = [max(1, int(w)) for w in wanted]
    while sum(counts) != n_layers:
        step = 1 if sum(counts) < n_layers else -1
        able = [i for i in range(len(counts)) if counts[i] + step >= 1]
        best = max(able, key=lambda i: step * (wanted[i] - counts[i]))
        counts[best] += step
    return _ranges(counts)


def parse_shares(text: str) -> list[float]:
    """`"0.3,0.3,0.4"` as numbers. Raises UserError when a part is no number."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"The split {text!r} is not a list of numbers: write it like 0.3,0.3,0.4.") from None


def parse_layers(text: str, n_layers: int) -> list[LayerRange]:
    """`"0-9,10-19"` (both ends included; `"5"` is one layer) as ranges.

    Raises UserError for text of another form and for ranges that overlap, leave a gap or do not
    end with the model's last layer.
    """
    ranges: list[LayerRange] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise UserError(f"The layers {text!r} are not ranges: write them like 0-9,10-19.")
        first = int(match[1])
        end = (int(match[2]) if match[2] else first) + 1
        if end <= first:
            raise UserError(f"The layers {part.strip()} run backwards: write the lower number first.")
        ranges.append((first, end))
    expected = 0
    for first, end in ranges:
        if first > expected:
            raise _gap(text, expected, first)
        if first < expected:
            raise UserError(f"The layers {text} overlap: {_named(first, min(expected, end))} would be computed twice.")
        expected = end
    if expected > n_layers:
        raise UserError(f"The layers {text} end at {expected - 1}, but the model's last layer is {n_layers - 1}.")
    if expected < n_layers:
        raise _gap(text, expected, n_layers)
    return ranges


def _named(first: int, end: int) -> str:
    return f"layer {first}" if end - first == 1 else f"layers {first}-{end - 1}"


def _gap(text: str, first: int, end: int) -> UserError:
    verb = "lies" if end - first == 1 else "lie"
    return UserError(f"The layers {text} leave a gap: {_named(first, end)} {verb} on no stage.")


def _check_stages(n_layers: int, n_stages: int) -> None:
    if n_stages < 1:
        raise UserError(f"There must be at least one stage, not {n_stages}.")
    if n_stages > n_layers:
        raise UserError(f"{n_stages} stages are more than the model's {n_layers} layers: use {n_layers} or fewer.")


def _ranges(counts: Sequence[int]) -> list[LayerRange]:
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return list(zip([0, *ends[:-1]], ends, strict=True))
