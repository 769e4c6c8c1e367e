"""Where a model can be cut: before which layers, into which slices, and the nearest cuts that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.architectures import rules_for, why_not_cut
from pipeinfer_cpp.gguf.layers import SWA_WINDOW, Layers
from pipeinfer_cpp.gguf.source import Source
from pipeinfer_cpp.gguf.splits import LayerRange

_BY_COUNT = {("exaone4", 64), ("baichuan", 32), ("baichuan", 40), ("command-r", 64)}
"""llama.cpp recognises these models by their number of layers and computes otherwise without it."""


CONDITIONS = {
    "baichuan": "not the 7B and 13B, which llama.cpp knows by their layers",
    "command-r": "not the one of 64 layers, which llama.cpp knows by them",
    "deci": "not before a layer without attention heads",
    "deepseek2": "no slice of 26 or 27 layers, but of the lite models",
    "dots3note": "not before a layer that shares an indexer",
    "ernie4_5-moe": "where not every layer has experts, at multiples of their period",
    "exaone4": "not the 32B, which llama.cpp knows by its 64 layers",
    "gemma2": "of the 27B the slices differ from the uncut model in the last bits",
    "gemma3": "of the 27B the slices differ from the uncut model in the last bits",
    "gemma4": "two layers with caches of their own in each slice; E2B and E4B: before the layers that share caches, "
    "and each slice holds the embedding",
    "glm-dsa": "GLM 5.2: not before a layer that shares an indexer",
    "glm5-next": "not before a layer that shares an indexer",
    "hy_v4": "not before a layer that shares an indexer",
    "llama4": "where not every layer has experts, at multiples of their period too",
    "smallthinker": "no slice of 4 layers",
}
"""What else the cuts of single architectures depend on, in the words of the documentation."""


class Cuts:
    """The cuts of one source. Each refusal is the end of a sentence; "" means that nothing speaks against it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.layers = Layers(source, rules_for(source, whole=True))
        self._slices: dict[LayerRange, str] = {}

    def refusal_at(self, at: int) -> str:
        """Why the model cannot be cut before layer `at`."""
        layers, step = self.layers, self._step
        never = why_not_cut(self.source.architecture)
        if never:
            return never
        if (self.source.architecture, layers.n) in _BY_COUNT:
            return f"llama.cpp recognises this model by its {layers.n} layers and computes differently with fewer"
        if self.source.architecture == "llama4" and layers.get(SWA_WINDOW) == 0:
            return "llama.cpp leaves out rope in the last layer of such a model, and would do so in each slice"
        if at % step:
            return f"its layers differ in groups of {step}, and llama.cpp counts them from a slice's first one"
        heads = layers.get("attention.head_count")
        if isinstance(heads, list) and not heads[at]:
            return f"layer {at} has no attention heads, and llama.cpp takes their size from a slice's first layer"
        if layers.own_indexer and not layers.own_indexer[at]:
            return f"layer {at} looks at the tokens that a layer before it picked"
        if at > layers.n_own_cache - 2 and layers.n_own_cache < layers.n:
            return f"layers {layers.n_own_cache}-{layers.n - 1} attend over the caches of the two layers before them"
        return ""

    def refusal_of(self, first: int, end: int) -> str:
        """Why `[first, end)` cannot be a slice."""
        if (first, end) == (0, self.layers.n):
            return ""
        if (first, end) not in self._slices:
            reasons = [self.refusal_at(at) for at in (first, end) if 0 < at < self.layers.n]
            self._slices[first, end] = next(filter(None, reasons), "") or self._refusal_within(first, end)
        return self._slices[first, end]

    def nearest(self, wanted: Sequence[LayerRange]) -> list[LayerRange]:
        """The split into as many slices whose cuts lie nearest to the wanted ones (least squares).

        Raises UserError, with the largest number that is possible, when there is none."""
        n, k = self.layers.n, len(wanted)
        best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
        for index in range(k):
            ends = [n] if index == k - 1 else range(index + 1, n)
            best.append({})
            for end in ends:
                off = float(end - wanted[index][1]) ** 2
                froms = [(c + off, -a) for a, (c, _) in best[index].items() if a < end and not self.refusal_of(a, end)]
                if froms:  # of two that are as near the later cut: the last slice has the head to compute
                    cost, negative = min(froms)
                    best[-1][end] = (cost, -negative)
        if n not in best[-1]:
            raise self._too_many(k)
        ends_back = [n]
        for index in range(k, 0, -1):
            ends_back.append(best[index][ends_back[-1]][1])
        ends_back.reverse()
        return list(pairwise(ends_back))

    def finest(self) -> list[LayerRange]:
        """The split into as many slices as there can be."""
        most: dict[int, tuple[int, int]] = {0: (0, 0)}
        for end in range(1, self.layers.n + 1):
            froms = [(most[a][0] + 1, a) for a in range(end) if a in most and not self.refusal_of(a, end)]
            if froms:
                most[end] = max(froms)
        ends = [self.layers.n]
        while ends[-1]:
            ends.append(most[ends[-1]][1])
        ends.reverse()
        return list(pairwise(ends))

    @cached_property
    def _step(self) -> int:
        layers, step = self.layers, self.layers.rules.step
        if self.source.architecture == "smallthinker" and not layers.windows:
            step = 1  # all layers have rope then
        if self.source.architecture in ("llama4", "ernie4_5-moe"):
            step = math.lcm(step, int(layers.get("interleave_moe_layer_step", 1) or 1))
        return step

    def _refusal_within(self, first: int, end: int) -> str:
        layers, within = self.layers, slice(first, end)
        which = f"layers {first}-{end - 1}" if end - first > 1 else f"layer {first}"
        if layers.memories and not {"state", "cache"} <= set(layers.memories[within]):
            kind = "recurrent" if "state" not in layers.memories[within] else "attention"
            return f"llama.cpp needs a recurrent and an attention layer in each slice, and {which} has no {kind} one"
        if layers.ratios and not {4, 128} <= set(layers.ratios[within]):
            return f"llama.cpp needs layers of both kinds of compressed cache in each slice, and {which} lacks one"
        if self.source.architecture == "gemma4" and min(end, layers.n_own_cache) - first < 2:
            return f"llama.cpp needs two layers with a cache of their own in each slice, and {which} has fewer"
        if layers.rules.window_in_each and layers.windows and not any(layers.windows[within]):
            return f"llama.cpp needs a layer with a sliding window in each slice, and {which} has none"
        if self.source.architecture == "smallthinker" and layers.windows and end - first == 4:
            return f"llama.cpp takes a model of 4 layers for one without a pattern, and {which} would be one"
        if self.source.architecture == "deepseek2" and layers.get("attention.q_lora_rank") and self._lite(end - first):
            return f"llama.cpp takes any model of {end - first} layers for DeepSeek V2 Lite, with other queries"
        return ""

    def _lite(self, n_layers: int) -> bool:
        """deepseek2.cpp: the lite models, without a compressed query, are recognised by this."""
        return n_layers in (26, 27) or (n_layers == 48 and self.source.n_vocab == 128256)

    def _too_many(self, n_stages: int) -> UserError:
        most = len(self.finest())
        name, n = self.source.path.name, self.layers.n
        if most == 1:
            reason = next(filter(None, (self.refusal_at(at) or self._first_refusal(at) for at in range(1, n))), "")
            return UserError(f"{name} cannot be cut at all: {reason or 'it has one layer'}. Run it with one stage.")
        if n_stages < most:
            return UserError(f"{name} cannot be cut into {n_stages} slices, but into {most}: use that many stages.")
        why = next(filter(None, (self.refusal_of(i, i + 1) for i in range(n))), "it has no more layers")
        return UserError(f"{name} can be cut into {most} slices at most, not {n_stages}: {why}. Use fewer stages.")

    def _first_refusal(self, at: int) -> str:
        return self.refusal_of(0, at) or self.refusal_of(at, self.layers.n)


def fit_split(source: Source, wanted: Sequence[LayerRange]) -> tuple[list[LayerRange], list[str]]:
    """The allowed split nearest to `wanted`, and one sentence for the user where that is another one.

    For splits that nobody typed layer by layer: even ones and those by shares. Raises UserError when the model cannot
    be cut into that many slices.
    """
    ranges, cuts = list(wanted), Cuts(source)
    reason = _refusal(cuts, ranges)
    if not reason:
        return ranges, []
    moved = cuts.nearest(ranges)
    return moved, [f"The layers are divided {text_of(moved)}, not {text_of(ranges)}: {reason}."]


def check_split(source: Source, ranges: Sequence[LayerRange]) -> None:
    """Raises UserError, with the nearest split that fits, when a slice of `ranges` cannot be."""
    cuts = Cuts(source)
    reason = _refusal(cuts, ranges)
    if reason:
        fits = text_of(cuts.nearest(ranges))
        raise UserError(f"{source.path.name} cannot be cut at {text_of(ranges)}: {reason}. Use --layers {fits}.")


def text_of(ranges: Sequence[LayerRange]) -> str:
    """As --layers takes them: `0-9,10-19`."""
    return ",".join(str(first) if end - first == 1 else f"{first}-{end - 1}" for first, end in ranges)


def _refusal(cuts: Cuts, ranges: Sequence[LayerRange]) -> str:
    return next(filter(None, (cuts.refusal_of(first, end) for first, end in ranges)), "")
