"""Slice plans with one rule taken out, and cuts that should be refused: each must be noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeinfer_cpp.gguf import LEFT_OUT, Cuts, LayerRange, SlicePlan, Source
from pipeinfer_cpp.gguf.encoding import STRING, encode_value
from pipeinfer_cpp.gguf.steps import COPIED

Change = Callable[[SlicePlan], SlicePlan]


@dataclass(frozen=True)
class Sabotage:
    """A model by its name in specimens, what is changed in each slice's plan, and the cuts (None: the finest split
    that is allowed)."""

    model: str
    change: Change
    cuts: Sequence[int] | None = None

    def split(self, source: Source) -> list[LayerRange]:
        if self.cuts is None:
            return Cuts(source).finest()
        return list(zip([0, *self.cuts], [*self.cuts, source.n_layers], strict=True))


def _as_in_source(*names: str) -> Change:
    """The keys (without the architecture) as the whole model has them, or not at all."""

    def change(plan: SlicePlan) -> SlicePlan:
        full = {f"{plan.source.architecture}.{name}" for name in names}
        keys = [step for step in plan.keys if step.name not in full]
        kept = [step for step in plan.keys if step.name in full and step.key is not None]
        keys += [dataclasses.replace(step, action=COPIED, data=None) for step in kept]
        return dataclasses.replace(plan, keys=tuple(keys))

    return change


def _without(target: str) -> Change:
    """A tensor left out of every slice, by the end of its name there."""

    def change(plan: SlicePlan) -> SlicePlan:
        tensors = tuple(
            dataclasses.replace(step, action=LEFT_OUT, target=None) if (step.target or "").endswith(target) else step
            for step in plan.tensors
        )
        return dataclasses.replace(plan, tensors=tensors)

    return change


def _as_copied(target: str) -> Change:
    """A tensor whose values are rewritten, with its old values."""

    def change(plan: SlicePlan) -> SlicePlan:
        tensors = tuple(
            dataclasses.replace(step, data=None) if (step.target or "").endswith(target) and step.origin else step
            for step in plan.tensors
        )
        return dataclasses.replace(plan, tensors=tensors)

    return change


def _first_columns(plan: SlicePlan) -> SlicePlan:
    """Every slice with the per-layer inputs of the first layers."""
    tensors = tuple(
        dataclasses.replace(step, stripe=dataclasses.replace(step.stripe, start=0)) if step.stripe else step
        for step in plan.tensors
    )
    return dataclasses.replace(plan, tensors=tensors)


def _node(which: str, name: str | None) -> Change:
    """Another node of the graph to read at or to give from, or none."""

    def change(plan: SlicePlan) -> SlicePlan:
        full = f"pipeinfer.slice.{which}"
        keys = [step for step in plan.keys if step.name != full or name is not None]
        data = encode_value(STRING, name) if name is not None else b""
        keys = [dataclasses.replace(step, data=data) if step.name == full else step for step in keys]
        return dataclasses.replace(plan, keys=tuple(keys))

    return change


def _nothing(plan: SlicePlan) -> SlicePlan:
    return plan


_PATTERN = _as_in_source("attention.sliding_window_pattern")
_INTERVAL = _as_in_source("attention.recurrent_layers", "full_attention_interval")

SABOTAGES: dict[str, Sabotage] = {
    "gemma3 period": Sabotage("gemma3-default", _PATTERN, [4]),
    "gpt-oss period": Sabotage("gpt-oss-default", _PATTERN, [3]),
    "olmo2 period": Sabotage("olmo2-default", _PATTERN, [2]),
    "cohere2 period": Sabotage("cohere2-default", _PATTERN, [3]),
    "laguna period, the first is full": Sabotage("laguna", _PATTERN, [2]),
    "window list": Sabotage("mimo2", _PATTERN),
    "recurrent interval": Sabotage("qwen35-interval-4", _INTERVAL, [6]),
    "recurrent list": Sabotage("qwen35-list", _INTERVAL),
    "leading dense layers": Sabotage("glm4moe", _as_in_source("leading_dense_block_count")),
    "hash layers": Sabotage("deepseek4-12", _as_in_source("hash_layer_count")),
    "layers of several tokens": Sabotage("qwen35+mtp", _as_in_source("nextn_predict_layers")),
    "heads list": Sabotage("openelm-lists", _as_in_source("attention.head_count")),
    "KV heads list": Sabotage("granitehybrid", _as_in_source("attention.head_count_kv")),
    "FFN list": Sabotage("deci-lists", _as_in_source("feed_forward_length")),
    "head size of the first layer": Sabotage("openelm-no-sizes", _as_in_source("attention.key_length")),
    "clamp list": Sabotage("bailingmoe3", _as_in_source("swiglu_clamp_exp")),
    "indexer list": Sabotage("hy_v4", _as_in_source("attention.indexer.types")),
    "indexer default": Sabotage("glm-dsa-long", _as_in_source("attention.indexer.types")),
    "compression list": Sabotage("deepseek4-12", _as_in_source("attention.compress_ratios")),
    "shared caches": Sabotage("gemma4-e", _as_in_source("attention.shared_kv_layers")),
    "deepstack": Sabotage("qwen3vl-deepstack", _as_in_source("n_deepstack_layers", "deepstack_mapping")),
    "residual scale": Sabotage("minicpm-scales", _as_in_source("residual_scale")),
    "lite queries": Sabotage("deepseek2-lite", _as_in_source("attention.q_lora_rank")),
    "number of layers": Sabotage("llama", _as_in_source("block_count")),
    "rope frequencies": Sabotage("llama", _without("rope_freqs.weight")),
    "long rope": Sabotage("phi3", _without("rope_factors_short.weight")),
    "Gemma 2 27B scale": Sabotage("gemma2-27b", _without("attn_q.scale"), [20]),
    "Gemma 3 27B scale": Sabotage("gemma3-27b", _as_copied("attn_q_norm.weight"), [30]),
    "columns": Sabotage("gemma4-e", _first_columns),
    "embedding restored": Sabotage("gemma4-e", _node("restored_at", None)),
    "node read, Gemma": Sabotage("gemma", _node("reads", "embd")),
    "node read, none there": Sabotage("qwen35", _node("reads", "embd")),
    "node given": Sabotage("llama", _node("gives", "ffn_inp-0")),
    "rope in groups of four": Sabotage("smollm3", _nothing, [2]),
    "experts in every second layer": Sabotage("ernie4_5-moe", _nothing, [3]),
    "a slice without a state": Sabotage("qwen35", _nothing, [1]),
    "a slice without a window": Sabotage("gpt-oss-default", _nothing, [7]),
    "64 layers": Sabotage("exaone4-32b", _nothing, [32]),
    "26 layers": Sabotage("deepseek2-30", _nothing, [26]),
    "among shared caches": Sabotage("gemma4-e", _nothing, [12]),
    "behind a full indexer": Sabotage("hy_v4", _nothing, [3]),
    "one kind of compressed cache": Sabotage("deepseek4", _nothing, [7]),
    "a first layer without heads": Sabotage("deci-lists", _nothing, [4]),
}
