"""What a stage needs of its machine's memory, from a model's header alone.

Weights, caches and logits are counted; scratch, vocabulary and program are estimates, fitted to contexts of
real models (scripts/memory_table.py compares them with what processes hold).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeinfer_cpp.gguf.kv import LayerCache, layer_caches
from pipeinfer_cpp.gguf.plan import slice_plan
from pipeinfer_cpp.gguf.source import Source

PROGRAM = 62_000_000
"""Python, its libraries and llama.cpp's code in each process."""
_TOKEN, _MERGE, _BARE_TOKEN = 165, 150, 60
"""Bytes of llama.cpp's vocabulary by token, by merge of a byte-level one, and by token where it has no texts."""
CELL = 64
"""Bytes that llama.cpp keeps of each cell beside keys and values."""


@dataclass(frozen=True)
class Room:
    """How large a context is asked for. `cells` of the cache, sequences, rows of a prompt chunk, rows whose
    logits are wanted at once, and checkpoints of a recurrent state that are kept."""

    cells: int
    n_seq: int = 2
    chunk: int = 64
    draws: int = 8
    kv_type: str = "f16"
    flash_attn: bool = True
    checkpoints: int = 8


@dataclass(frozen=True)
class Needs:
    """Bytes of one process."""

    weights: int
    kv: int
    """Keys and values, and the states of recurrent layers."""
    compute: int
    """Scratch of a prompt chunk, logits and vocabulary."""
    checkpoints: int
    cell: float
    """Of `kv`, for each position of the context."""
    program: int = PROGRAM

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute + self.checkpoints + self.program


class Model:
    """A model whose stages are weighed; reads the header once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._weights: dict[tuple[int, int], int] = {}

    def stage(self, first: int, end: int, room: Room) -> Needs:
        """Of the layers [first, end)."""
        source, caches = self.source, self.caches[first:end]
        last = end == source.n_layers
        logits = 4 * source.n_vocab * (2 * max(room.draws, room.n_seq) if last else max(room.chunk, room.n_seq))
        return Needs(
            weights=self._weight(first, end),
            kv=sum(c.bytes(room.cells, room.n_seq, room.kv_type) for c in caches) + CELL * room.cells,
            compute=self._scratch(first, end, room) + logits + self._vocabulary(last),
            checkpoints=4 * sum(c.state for c in caches) * room.checkpoints,
            cell=sum(c.cell_bytes(room.kv_type) for c in caches),
        )

    def whole(self, room: Room) -> Needs:
        """Of a model in one process."""
        return self.stage(0, self.source.n_layers, room)

    @cached_property
    def caches(self) -> list[LayerCache]:
        return layer_caches(self.source)

    def kv_type(self, asked: str, exact: bool) -> str:
        """The type that a stage takes: `auto` is q8_0 in exact mode where the heads allow it, else f16."""
        if asked != "auto":
            return asked
        return "q8_0" if exact and self._quantisable else "f16"

    @cached_property
    def _quantisable(self) -> bool:
        lengths = [n for c in self.caches for n in (*c.rows, *(length for length, _ in c.sparse))]
        return self._head % 32 == 0 and all(n % 32 == 0 for n in lengths)

    @cached_property
    def _head(self) -> int:
        """Length of a head's keys."""
        heads = _largest(self.source.get("{arch}.attention.head_count"), 1)
        return _largest(self.source.get("{arch}.attention.key_length"), self.source.n_embd // heads)

    def _weight(self, first: int, end: int) -> int:
        """Of what is computed with. Of an embedding only the rows of some tokens are read, from the mapped file,
        unless it is the output head too."""
        if (first, end) not in self._weights:
            plan = slice_plan(self.source, first, end)
            sizes = {step.target: step.n_bytes for step in plan.tensors if step.target and not step.is_hole}
            by_rows = {"per_layer_token_embd.weight"}
            if not plan.gives_logits or "output.weight" in sizes:
                by_rows.add("token_embd.weight")
            self._weights[first, end] = sum(n for name, n in sizes.items() if name not in by_rows)
        return self._weights[first, end]

    def _vocabulary(self, last: bool) -> int:
        if not last:
            return _BARE_TOKEN * self.source.n_vocab
        merges = self.source.keys.get("tokenizer.ggml.merges")
        return _TOKEN * self.source.n_vocab + _MERGE * (merges.count if merges is not None else 0)

    def _scratch(self, first: int, end: int, room: Room) -> int:
        """Activations of a chunk's rows, and what attention needs for all cells."""
        get, n_embd = self.source.get, self.source.n_embd
        heads = _largest(get("{arch}.attention.head_count"), 1)
        wide = _largest(get("{arch}.feed_forward_length"), 0)
        used = _largest(get("{arch}.expert_used_count"), 0)
        if used:
            wide = max(wide, used * _largest(get("{arch}.expert_feed_forward_length"), wide))
        streams = _largest(get("{arch}.hyper_connection.count"), 1)
        row = 3 * wide + (4 * streams + used) * n_embd + 2 * heads * self._head
        if any(c.state for c in self.caches[first:end]):
            groups, state = (_largest(get(f"{{arch}}.ssm.{name}"), 0) for name in ("group_count", "state_size"))
            row += 4 * (_largest(get("{arch}.ssm.inner_size"), n_embd) + 2 * groups * state)
        masks = 2 if get("{arch}.attention.sliding_window") else 1
        attention = 2 * masks + (0 if room.flash_attn else 4 * heads)
        return room.chunk * (4 * row + attention * room.cells)


def _largest(value: Any, default: int) -> int:
    if isinstance(value, list):
        value = max(value, default=None)
    return max(int(value), 0) if value is not None else default
