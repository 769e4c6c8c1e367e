"""What the layers of a model are: which slide, which are recurrent, which share something with layers before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.architectures import Architecture
from pipeinfer_cpp.gguf.source import Source

SWA_PATTERN, SWA_WINDOW = "attention.sliding_window_pattern", "attention.sliding_window"
_LONG_CONTEXT = 1 << 20


@dataclass(frozen=True)
class Layers:
    """The layers of the trunk (those that predict several tokens at once are not in it), from 0."""

    source: Source
    rules: Architecture

    def get(self, name: str, default: Any = None) -> Any:
        """The value of one of the architecture's keys."""
        return self.source.get(f"{{arch}}.{name}", default)

    @property
    def n(self) -> int:
        return self.source.n_layers

    @cached_property
    def windows(self) -> list[bool]:
        """Whether each layer has a sliding window; [] where the file names no pattern and the code has none."""
        window, pattern = self.get(SWA_WINDOW), self.get(SWA_PATTERN)
        if window == 0:
            return []
        if isinstance(pattern, list):
            return [bool(v) for v in self._cut_to_trunk(SWA_PATTERN, pattern)]
        known = self.rules.window_period
        if window is None and (self.rules.window_by_key or not known):
            return []
        period = pattern if pattern is not None else known
        if not known and pattern is None:
            return []
        full = 0 if self.rules.window_first_full else period - 1
        return [period == 0 or i % period != full for i in range(self.n)]

    @cached_property
    def recurrent(self) -> list[bool]:
        """Whether each layer is recurrent, where an interval or a list says so; else []."""
        if self.rules.recurrent not in ("", "interval"):
            return []
        listed = self.get("attention.recurrent_layers")
        if isinstance(listed, list):
            return [bool(v) for v in self._cut_to_trunk("attention.recurrent_layers", listed)]
        if not self.rules.recurrent:
            return []
        period = int(self.get("full_attention_interval", self.rules.attention_period))
        if period < 1:
            raise self._damaged("full_attention_interval", "is no positive number")
        return [(i + 1) % period != 0 for i in range(self.n)]

    @cached_property
    def memories(self) -> list[str]:
        """What each layer of a hybrid model keeps: "state", "cache" or "" (neither); [] of other models."""
        if self.recurrent:
            return ["state" if r else "cache" for r in self.recurrent]
        if self.rules.recurrent != "no kv heads":
            return []
        heads, ffn = self.get("attention.head_count_kv"), self.get("feed_forward_length")
        if not isinstance(heads, list):
            return []
        heads = self._cut_to_trunk("attention.head_count_kv", heads)
        bare = ffn[: self.n] if self.rules.bare_ffn and isinstance(ffn, list) else [0] * self.n
        return ["cache" if h else "" if f else "state" for h, f in zip(heads, bare, strict=True)]

    @cached_property
    def ratios(self) -> list[int]:
        """DeepSeek V4: how far each layer's cache is compressed; [] of other models."""
        if self.rules.recurrent != "ratios":
            return []
        return [int(v) for v in self._cut_to_trunk("attention.compress_ratios", self.get("attention.compress_ratios"))]

    @cached_property
    def own_indexer(self) -> list[bool]:
        """Whether each layer picks its own tokens to look at, not those that a layer before picked; [] where
        layers do not differ in that."""
        kinds = self.get("attention.indexer.types")
        if kinds is None and self.default_indexer is not None:
            kinds = self.default_indexer
        return [bool(v) for v in kinds[: self.n]] if isinstance(kinds, list) else []

    @cached_property
    def default_indexer(self) -> list[int] | None:
        """glm-dsa.cpp: the kinds that a model of a million tokens has where its file does not list them."""
        absent = self.get("attention.indexer.types") is None
        if self.source.architecture != "glm-dsa" or not absent or self.source.n_ctx_train < _LONG_CONTEXT:
            return None
        return ([1, 1] + [1, 0, 0, 0] * self.n)[: self.n]

    @cached_property
    def n_own_cache(self) -> int:
        """The layers from this one on attend over the caches of layers before."""
        return self.n - int(self.get("attention.shared_kv_layers", 0) or 0)

    @cached_property
    def with_id_tables(self) -> frozenset[int]:
        """Layers that read tables by token ids, as the file lists them."""
        return frozenset(int(v) for v in self.get("ple.layers", []) or [])

    @cached_property
    def per_layer_input(self) -> int:
        """Gemma 4 E: floats that each layer gets for each token besides the hidden states, else 0."""
        return int(self.get("embedding_length_per_layer_input", 0) or 0) if self.source.architecture == "gemma4" else 0

    def _cut_to_trunk(self, name: str, values: Any) -> list[Any]:
        if not isinstance(values, list) or len(values) < self.n:
            raise self._damaged(name, "is shorter than its layers")
        return values[: self.n]

    def _damaged(self, name: str, what: str) -> UserError:
        return UserError(f"{self.source.path} is damaged: its key {name} {what}; fetch it again.")


@dataclass(frozen=True)
class Part:
    """The layers `[first, end)` of a source under its architecture's rules."""

    source: Source
    rules: Architecture
    first: int
    end: int

    @cached_property
    def layers(self) -> Layers:
        """Those of the whole source."""
        return Layers(self.source, self.rules)

    @property
    def within(self) -> slice:
        """Picks this part's out of a list of one value a layer."""
        return slice(self.first, self.end)

    @property
    def n_layers(self) -> int:
        return self.end - self.first

    @property
    def takes_tokens(self) -> bool:
        return self.first == 0

    @property
    def gives_logits(self) -> bool:
        return self.end == self.source.n_layers

    @property
    def is_whole(self) -> bool:
        return self.takes_tokens and self.gives_logits
