"""Which layers of a model are alike in all that llama.cpp's kernels see, and the smallest slices that hold them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.architectures import rules_for
from pipeinfer_cpp.gguf.encoding import ARRAY
from pipeinfer_cpp.gguf.layers import Layers
from pipeinfer_cpp.gguf.plan import SlicePlan, slice_plan
from pipeinfer_cpp.gguf.source import Source
from pipeinfer_cpp.gguf.splits import LayerRange
from pipeinfer_cpp.gguf.steps import LEFT_OUT

_FLOATS = {6: "<f4", 12: "<f8"}
"""GGUF's numbers of the types float32 and float64, and numpy's names."""
_SIZES = ("block_count", "context_length", "vocab_size")


@dataclass(frozen=True)
class Sample:
    """A small slice, layers `[first, end)` of the model, that stands for layers of a stage.

    `signature`: the same for slices of equal tensor types, shapes and whole-numbered settings, of any model.
    `share`: how often its time is in the stage's. `deep`: taken for its layers, not only for the output head
    behind them, which knows no depth.
    """

    first: int
    end: int
    signature: str
    share: float
    deep: bool = True

    @property
    def layers(self) -> LayerRange:
        return self.first, self.end


def samples_of(source: Source, first: int, end: int) -> list[Sample]:
    """The slices that tell what the stage of layers `[first, end)` costs and how exact it is: one for each kind
    of layer, as small as the model can be cut, and one for the head where the stage has it (first of all).
    Stages with the same kinds of layers get the same ones."""
    kinds = _Kinds(source)
    here = [kinds.of_layer(layer) for layer in range(first, end)]
    samples, rest = [], Counter(here)
    tail = end
    if end == source.n_layers:
        tail = next(k for k in range(end - 1, first - 1, -1) if k == first or kinds.signature((k, end)))
        rest.subtract(here[tail - first :])
        samples.append(Sample(tail, end, kinds.signature((tail, end)), 1.0, deep=False))
    left = dict.fromkeys(here)
    while left:
        layers = kinds.smallest_with(next(iter(left)), end - first) or (first, end)
        inside = {kinds.of_layer(layer) for layer in range(*layers)}
        count = sum(rest[kind] for kind in inside if kind in left)
        if samples and layers == (tail, end):  # no other slice has this kind of layer
            samples[0] = Sample(tail, end, samples[0].signature, 1.0 + count / (end - tail))
        else:
            samples.append(Sample(*layers, kinds.signature(layers), count / (layers[1] - layers[0])))
        left = {kind: None for kind in left if kind not in inside and layers != (first, end)}
    return samples


class _Kinds:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._windows = Layers(source, rules_for(source, whole=True)).windows
        self._signatures: dict[LayerRange, str] = {}
        self._layers: list[str] = [self._kind(layer) for layer in range(source.n_layers)]

    def of_layer(self, layer: int) -> str:
        return self._layers[layer]

    def signature(self, layers: LayerRange) -> str:
        """"" where the model cannot be cut so."""
        if layers not in self._signatures:
            try:
                plan = slice_plan(self._source, *layers)
                self._signatures[layers] = _digest([*_settings(plan), *_tensors(plan, "")])
            except UserError:
                self._signatures[layers] = ""
        return self._signatures[layers]

    def smallest_with(self, kind: str, most: int) -> LayerRange | None:
        """The smallest slice with such a layer, of at most `most` layers: best one without embedding and head."""
        n = self._source.n_layers
        mine = [layer for layer in range(n) if self._layers[layer] == kind]
        for size in range(1, most + 1):
            starts = {at for layer in mine for at in range(layer - size + 1, layer + 1) if 0 <= at <= n - size}
            for at in sorted(starts, key=lambda at: ((at + size == n) + 2 * (at == 0), at)):
                if self.signature((at, at + size)):
                    return at, at + size
        return None

    def _kind(self, layer: int) -> str:
        try:
            plan = slice_plan(self._source, layer, layer + 1)
        except UserError:  # not alone: what its tensors say must do
            start = f"blk.{layer}."
            own = (t for t in self._source.tensors.values() if t.name.startswith(start))
            windows = self._windows[layer : layer + 1]
            return _digest([*sorted(f"{t.name[len(start) :]} {t.kind} {t.shape}" for t in own), str(windows)])
        return _digest([*_settings(plan), *_tensors(plan, "blk.")])


def _settings(plan: SlicePlan) -> Iterator[str]:
    """What of the architecture's keys may choose kernels and shapes: no sizes of the whole, and of floats only
    whether they are 0."""
    arch = plan.source.architecture
    yield arch
    for step in sorted(plan.keys, key=lambda step: step.name):
        name = step.name.removeprefix(f"{arch}.")
        if step.action != LEFT_OUT and name != step.name and name not in _SIZES:
            yield f"{name} {_chooses(step.encoded())}"


def _chooses(data: bytes) -> str:
    """A key's type and value; of floats which are 0."""
    kind, is_array = int.from_bytes(data[:4], "little"), False
    if kind == ARRAY:
        kind, is_array = int.from_bytes(data[4:8], "little"), True
    if kind not in _FLOATS:
        return data.hex()
    numbers = np.frombuffer(data[16 if is_array else 4 :], _FLOATS[kind])
    return "".join("01"[bool(number)] for number in numbers)


def _tensors(plan: SlicePlan, start: str) -> Iterator[str]:
    for step in sorted(plan.tensors, key=lambda step: step.target or ""):
        if step.target and step.target.startswith(start) and not step.is_hole:
            yield f"{step.target} {step.kind} {step.shape}"


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
