"""A file's own metadata with small widths: what its layers are stays, how wide they are does not.

Counts of layers, lists of one value a layer, periods, scales and kinds are kept. Widths become small in a way
that keeps what they have to do with one another: the same ones stay the same, multiples stay multiples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from pipeinfer_cpp.gguf.constants import GGUFValueType
from pipeinfer_cpp.gguf.encoding import STRING, encode_array, encode_value
from pipeinfer_cpp.gguf.header import Key
from pipeinfer_cpp.gguf.plan_keys import PER_LAYER_OF_ALL
from pipeinfer_cpp.gguf.source import Source

N_VOCAB = 128
_U32 = int(GGUFValueType.UINT32)
_WIDTH, _FFN, _RANK, _STATE, _WINDOW, _EXPERTS = 128, 192, 64, 64, 8, 8
_ROPE_OF_MLA = 32
_RECOGNISED = {"gemma2": 46, "gemma3": 62}
"""llama.cpp takes another attention scale at these layer counts: the ratio of the two has to be a power of two, so
that folding it into weights loses no bit (with real widths it rounds once more)."""


def shrunk(source: Source, *, beyond: bool = True) -> dict[str, bytes]:
    """Keys of a small model by name, encoded. Without `beyond`, layers behind the trunk are left out."""
    arch = source.architecture
    widths = _Widths(source)
    keys = {"general.architecture": encode_value(STRING, arch)}
    for key in source.keys.values():
        prefix, _, rest = key.name.partition(".")
        if prefix == arch:
            keys[key.name] = _encoded(key, widths.small(rest, key.read()), beyond, source)
        elif key.name in PER_LAYER_OF_ALL:
            keys[key.name] = _encoded(key, key.read(), beyond, source)
    keys[f"{arch}.vocab_size"] = encode_value(_U32, N_VOCAB)
    keys["tokenizer.ggml.model"] = encode_value(STRING, "no_vocab")
    if not beyond and source.n_layers_beyond:
        keys[f"{arch}.block_count"] = encode_value(_U32, source.n_layers)
        keys[f"{arch}.nextn_predict_layers"] = encode_value(_U32, 0)
    return keys


def n_experts(source: Source) -> int:
    """Experts of the small model."""
    return _few_experts(source.get("{arch}.expert_count", 0) or 0)


def _encoded(key: Key, value: Any, beyond: bool, source: Source) -> bytes:
    if not key.is_array:
        return encode_value(key.kind, value)
    assert key.item_kind is not None
    if not beyond and source.n_layers_beyond and len(value) == source.n_layers + source.n_layers_beyond:
        value = value[: source.n_layers]
    return encode_array(key.item_kind, value)


def _few_experts(n: int) -> int:
    return min(n, _EXPERTS)


def _ranked(values: Iterable[int], small: Callable[[int], int]) -> dict[int, int]:
    """Each distinct positive value to the small one of its rank; the others to themselves."""
    distinct = sorted({v for v in values if v > 0})
    return {v: small(i) for i, v in enumerate(distinct)} | {v: v for v in values if v <= 0}


def _if_any(small: int, value: Any) -> Any:
    return small if value else value


def _looked_up(small: dict[int, int], value: Any) -> Any:
    return small.get(int(value), value)


def _stepped(start: int, rank: int) -> int:
    return start + 32 * (rank % 4)


def _in_proportion(small: int, whole: int, part: Any) -> Any:
    """What `part` of `whole` is of `small`, an even number."""
    return max(2, small * int(part) // whole // 2 * 2) if part else part


def _listed(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, list) else [] if value is None else [int(value)]


class _Widths:
    """The small value of each width of one source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[str, Callable[[Any], Any]] = {}
        special = _RECOGNISED.get(source.architecture) == source.n_layers
        self._width = 2 * _WIDTH if special else _WIDTH
        self._fixed(embedding_length=self._width, vocab_size=N_VOCAB, features_length=self._width)
        self._attention(special)
        self._experts()
        self._states()
        self._others()

    def small(self, name: str, value: Any) -> Any:
        """The value that the key `name` (without the architecture) has in the small model."""
        rule = self._known.get(name)
        if rule is None:
            return value
        return [rule(v) for v in value] if isinstance(value, list) and name not in _WHOLE_LISTS else rule(value)

    def _get(self, name: str, default: Any = None) -> Any:
        return self._source.get(f"{{arch}}.{name}", default)

    def _fixed(self, **values: int) -> None:
        for name, small in values.items():
            self._known[name] = partial(_if_any, small)

    def _attention(self, special: bool) -> None:
        heads = _listed(self._get("attention.head_count"))
        kv = _listed(self._get("attention.head_count_kv"))
        fewest = 1 if min((v for v in heads + kv if v > 0), default=1) == 1 else 2
        small = _ranked(heads + kv, lambda i: fewest << min(i, 2))
        if special:
            small = {v: min(2, s) for v, s in small.items()}
        self._heads = small
        self._known["attention.head_count"] = self._known["attention.head_count_kv"] = partial(_looked_up, small)
        n_head = self._n_head = next((h for h in heads if h > 0), 0)
        derived = self._source.n_embd // n_head if n_head else 0
        small_derived = self._width // small[n_head] if n_head else 0
        if self._get("attention.key_length_mla") or self._get("attention.kv_lora_rank"):
            self._mla()
            return
        names = [f"attention.{what}_length{where}" for what in ("key", "value") for where in ("", "_swa")]
        sizes = _ranked([int(self._get(name, 0) or 0) for name in names], lambda i: 32 << min(i, 2))
        if special:
            sizes = {v: small_derived // 4 if s else s for v, s in sizes.items()}
        elif derived in sizes:
            sizes[derived] = small_derived
        self._head_sizes = sizes
        for name in names:
            self._known[name] = partial(_looked_up, sizes)
        for where in ("", "_swa"):
            size = int(self._get(f"attention.key_length{where}") or self._get("attention.key_length") or derived)
            small_size = sizes.get(size, small_derived)
            self._known[f"rope.dimension_count{where}"] = partial(_in_proportion, small_size, max(1, size))
        rotated = self._known["rope.dimension_count"](self._get("rope.dimension_count") or derived)
        self._known["rope.dimension_sections"] = lambda v: _sections(v, rotated // 2)

    def _mla(self) -> None:
        """Keys and values through a common small vector, and beside it the part of the keys that is rotated."""
        rope = _ROPE_OF_MLA if self._get("rope.dimension_count") else 0
        absorbed = bool(self._get("attention.key_length_mla"))
        self._head_sizes = {int(self._get("attention.key_length", 0) or 0): (_RANK if absorbed else 32) + rope}
        for where in ("", "_swa"):
            self._known[f"attention.key_length{where}"] = lambda v: (_RANK if absorbed else 32) + rope
            self._known[f"attention.value_length{where}"] = lambda v: _RANK if absorbed else 32
            self._known[f"attention.key_length_mla{where}"] = lambda v: 32 + rope
            self._known[f"attention.value_length_mla{where}"] = lambda v: 32
            self._known[f"attention.kv_lora_rank{where}"] = lambda v: _RANK if v else v
            self._known[f"rope.dimension_count{where}"] = lambda v: rope
        self._known["rope.dimension_sections"] = lambda v: _sections(v, rope // 2)

    def _experts(self) -> None:
        for name, step in (
            ("feed_forward_length", _FFN), ("expert_feed_forward_length", 64),
            ("expert_shared_feed_forward_length", 64), ("expert_chunk_feed_forward_length", 64),
            ("expert_latent_length", 64), ("moe_latent_size", 64),
        ):  # fmt: skip
            self._known[name] = partial(_looked_up, _ranked(_listed(self._get(name)), partial(_stepped, step)))
        self._known["expert_count"] = _few_experts
        self._known["expert_used_count"] = lambda v: min(int(v), 2)
        self._known["expert_group_count"] = lambda v: min(int(v), 2)
        self._known["expert_group_used_count"] = lambda v: min(int(v), 1)

    def _states(self) -> None:
        inner, rank = int(self._get("ssm.inner_size", 0) or 0), int(self._get("ssm.time_step_rank", 0) or 0)
        state, groups = int(self._get("ssm.state_size", 0) or 0), int(self._get("ssm.group_count", 0) or 0)
        alike = bool(rank) and state == inner // rank
        small_groups = groups if groups <= 1 else 2 if groups < rank else 4
        self._fixed(**{
            "ssm.inner_size": 4 * _STATE, "ssm.time_step_rank": 4, "ssm.group_count": small_groups,
            "ssm.state_size": _STATE if alike else 16 if state <= 16 else 32, "kda.head_dim": 32,
            "wkv.head_size": self._width // self._heads.get(self._n_head, 4),
            "time_mix_extra_dim": 32, "time_decay_extra_dim": 32,
        })  # fmt: skip

    def _others(self) -> None:
        self._fixed(**{
            "attention.sliding_window": _WINDOW, "attention.q_lora_rank": _RANK, "attention.output_lora_rank": 32,
            "attention.indexer.top_k": 8, "hyper_connection.low_rank": 8,
        })  # fmt: skip
        same = self._get("attention.indexer.head_count") == self._n_head
        indexers = self._heads.get(self._n_head, 2) if same else 2
        size = int(self._get("attention.indexer.key_length", 0) or 0)
        self._fixed(**{
            "attention.indexer.head_count": indexers, "attention.indexer.key_length": self._head_sizes.get(size, 64),
            "attention.output_group_count": min(2, self._heads.get(self._n_head, 2)),
        })  # fmt: skip
        per_layer = 32 if self._source.architecture != "qwen4exp" else self._width // 4
        self._fixed(embedding_length_per_layer_input=per_layer)
        self._known["ple.head_vocab_sizes"] = lambda v: [N_VOCAB] * len(v)
        self._known["ple.head_offsets"] = lambda v: [i * N_VOCAB for i in range(len(v))]
        self._known["ple.eos_token_id"] = lambda v: 0


_WHOLE_LISTS = ("rope.dimension_sections", "ple.head_vocab_sizes", "ple.head_offsets")


def _sections(sections: Any, total: int) -> Any:
    """In the old proportions, `total` in all; a 0 stays 0."""
    if not isinstance(sections, list) or not sum(sections):
        return sections
    small = [total * int(s) // sum(sections) for s in sections]
    small[next(i for i, s in enumerate(sections) if s)] += total - sum(small)
    return small
