"""Metadata of a tiny model of each architecture, after llama.cpp's own tests/test-llama-archs.cpp, with so many
layers that a period, a pattern or a leading block lies on both sides of a cut; and of variants of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from pipeinfer_cpp.gguf.encoding import STRING, encode_array, encode_value
from pipeinfer_cpp.proof.random_model import write_random

N_VOCAB = 128
U32, U64, F32, BOOL = (int(getattr(GGUFValueType, n)) for n in ("UINT32", "UINT64", "FLOAT32", "BOOL"))


class Arr(list[Any]):
    """A list with its GGUF item type."""

    def __init__(self, values: Any, kind: int) -> None:
        super().__init__(values)
        self.kind = kind


def u32s(values: Any) -> Arr:
    return Arr([int(x) for x in values], U32)


def encoded(value: Any) -> bytes:
    """Type and value as in a GGUF."""
    if isinstance(value, Arr):
        return encode_array(value.kind, value)
    if isinstance(value, list):
        kinds = {bool: BOOL, str: STRING, float: F32, int: U32}
        return encode_array(kinds[type(value[0])], value)
    if isinstance(value, bool):
        return encode_value(BOOL, value)
    if isinstance(value, str):
        return encode_value(STRING, value)
    return encode_value(F32, value) if isinstance(value, float) else encode_value(U32, value)


_MOE = """
llama4 cohere2moe grok qwen2moe qwen3moe qwen3next qwen3vlmoe qwen35moe qwen4exp phimoe dbrx olmoe arctic
deepseek deepseek2 deepseek32 dots3note deepseek4 glm4moe glm-dsa exaone-moe bailingmoe bailingmoe2 bailingmoe3 dots1
afmoe ernie4_5 ernie4_5-moe hunyuan-moe hy_v3 hy_v4 gpt-oss lfm2moe smallthinker llada-moe grovemoe minimax-01
minimax-m2
minimax-m3 rnd1 paddleocr mimo2 kimi-linear kimi-k3 glm5-next step35 mistral4 mellum laguna maple nemotron_h_moe
deepseek2-ocr granitemoe
"""
MOE = set(_MOE.split())
_PERHEAD = """
plamo2 jamba nemotron_h nemotron_h_moe granitehybrid lfm2 lfm2moe kimi-linear bailingmoe3 kimi-k3
glm5-next
"""
PERHEAD = set(_PERHEAD.split())
_MLA = """
deepseek2 deepseek32 glm-dsa dots3note kimi-linear bailingmoe3 kimi-k3 glm5-next hy_v4 mistral4
"""
MLA = set(_MLA.split())
_PATTERN_LIST = """
cohere2moe mimo2 step35 spark2_5 muse-glimmer granite_swa dots3note maple gemma4
"""
PATTERN_LIST = set(_PATTERN_LIST.split())
QWEN_SSM = ("qwen3next", "qwen35", "qwen35moe", "qwen4exp")


def keys_for(arch: str, n_layer: int = 8, moe: bool | None = None, **over: Any) -> dict[str, Any]:
    """Metadata by full name; `over` changes or (None) takes away keys of the architecture."""
    moe = arch in MOE if moe is None else moe
    n_layer = 16 if arch == "smallthinker" and n_layer == 8 else n_layer  # of 4 none can be cut
    n_ctx, n_embd, n_head, n_ff = 256, 128, 2, 192
    if arch == "gemma4":
        n_embd, n_head, n_ff = 128, 2, 192
    elif arch == "deepseek4":
        n_embd, n_head, n_ff = 512, 8, 128
    elif arch in ("step35", "laguna"):
        n_embd = 160
    elif arch in ("qwen3", "muse-glimmer", "afmoe"):
        n_head = 4
    elif arch in MLA:
        n_embd, n_head, n_ff = 128, 1, 192
    n_head_kv = {"qwen3": 1, "muse-glimmer": 2, "afmoe": 2, "deepseek4": 1}.get(arch, n_head)
    head = n_embd // n_head
    a = arch + "."
    k: dict[str, Any] = {
        a + "vocab_size": N_VOCAB, a + "context_length": n_ctx, a + "embedding_length": n_embd,
        a + "features_length": n_embd, a + "block_count": n_layer, a + "leading_dense_block_count": 3 if moe else 1,
    }
    attn = [0 if i % 2 else n_head for i in range(n_layer)]
    if arch in ("nemotron_h", "nemotron_h_moe"):
        # mamba, attention, ffn in turn
        k[a + "feed_forward_length"] = u32s([n_ff if i % 3 == 2 else 0 for i in range(n_layer)])
        attn = [n_head if i % 3 == 1 else 0 for i in range(n_layer)]
    else:
        k[a + "feed_forward_length"] = n_ff
    k |= {
        a + "use_parallel_residual": False, a + "logit_scale": 1.0, a + "time_mix_extra_dim": 64,
        a + "time_decay_extra_dim": 128, a + "full_attention_interval": 3,
    }
    if arch in PERHEAD:
        k[a + "attention.head_count"] = n_head
        k[a + "attention.head_count_kv"] = u32s(attn)
    else:
        k[a + "attention.head_count"] = n_head
        k[a + "attention.head_count_kv"] = n_head_kv
    k[a + "attention.max_alibi_bias"] = 8.0
    if arch == "deepseek4":
        k |= {a + "attention.key_length": head, a + "attention.value_length": head,
        a + "rope.dimension_count": head // 2}
    elif arch in MLA:
        k |= {
            a + "attention.key_length": 512 if arch == "glm5-next" else 576, a + "attention.value_length": 512,
            a + "rope.dimension_count": 0 if arch == "glm5-next" else 64,
            a + "attention.key_length_mla": 192, a + "attention.value_length_mla": 128,
        }
        if arch == "dots3note":
            k |= {
                a + "attention.kv_lora_rank_swa": 512, a + "attention.key_length_swa": 576,
                a + "attention.value_length_swa": 512, a + "attention.key_length_mla_swa": 192,
                a + "attention.value_length_mla_swa": 128, a + "rope.freq_base_swa": 10000.0,
                a + "attention.indexer.types": u32s([0 if i % 2 else 1 for i in range(n_layer)]),
            }
    elif arch == "minimax-m3":
        k[a + "rope.dimension_count"] = 64
    k |= {
        a + "attention.clamp_kqv": 1.0, a + "attention.layer_norm_epsilon": 1e-5,
        a + "attention.layer_norm_rms_epsilon": 1e-5, a + "attention.group_norm_epsilon": 1e-5,
        a + "attention.group_norm_groups": 8, a + "attention.q_lora_rank": 64 if arch == "deepseek4" else 512,
        a + "attention.relative_buckets_count": 8, a + "attention.sliding_window": 8,
    }
    if arch in MLA:
        k[a + "attention.kv_lora_rank"] = 512
    if arch == "gemma4":
        k |= {
            a + "embedding_length_per_layer_input": 0, a + "attention.shared_kv_layers": 0,
            a + "attention.key_length_swa": head, a + "attention.value_length_swa": head,
            a + "rope.freq_base_swa": 10000.0,
        }
    if arch in PATTERN_LIST:
        k[a + "attention.sliding_window_pattern"] = u32s([1 if i % 3 else 0 for i in range(n_layer)])
    else:
        k[a + "attention.sliding_window_pattern"] = 3
    if arch in ("qwen4exp", "glm5-next"):
        k |= {
            a + "hyper_connection.count": 4, a + "hyper_connection.sinkhorn_iterations": 2,
            a + "hyper_connection.epsilon": 1e-6, a + "hyper_connection.low_rank": 8,
            a + "attention.compress_ratios": u32s([4] * n_layer), a + "ple.layers": u32s([0]), a + "ple.ngram_size": 3,
            a + "ple.heads_per_ngram": 2, a + "ple.conv_kernel": 4, a + "ple.eos_token_id": 0,
            a + "embedding_length_per_layer_input": n_embd // 4,
            a + "ple.layer_multipliers": Arr([1, 3, 5], U64),
            a + "ple.head_offsets": Arr([h * N_VOCAB for h in range(4)], U64),
            a + "ple.head_vocab_sizes": Arr([N_VOCAB] * 4, U64),
        }
    k |= {
        a + "attention.indexer.head_count": n_head if arch == "minimax-m3" else 4,
        a + "attention.indexer.key_length": head if arch == "qwen4exp" else 128,
        a + "attention.indexer.top_k": 16, a + "attention.indexer.block_size": 4, a + "attention.indexer.kpool": 4,
        a + "attention.indexer.kpool_select_tail": True, a + "attention.indexer.local_blocks": 1,
    }
    k[a + "rope.dimension_sections"] = u32s([8, 12, 12, 0] if arch == "bailingmoe3" else [head // 4] * 4)
    if arch == "hy_v4":
        k |= {
            a + "hyper_connection.count": 4, a + "hyper_connection.epsilon": 1e-6,
            a + "hyper_connection.magnitude": 2.0,
            a + "swiglu_clamp_exp": 10.0, a + "expert_weights_scale": 1.0, a + "expert_weights_norm": True,
            a + "attention.indexer.types": u32s([0 if i % 2 else 1 for i in range(n_layer)]),
        }
    if arch == "deepseek4":
        ratios = [0, 0, 4, 128]
        k |= {
            a + "attention.output_group_count": 8, a + "attention.output_lora_rank": 32,
            a + "attention.compress_ratios": u32s([ratios[i % 4] for i in range(n_layer)]),
            a + "attention.compress_rope_freq_base": 160000.0, a + "hyper_connection.count": 4,
            a + "hyper_connection.sinkhorn_iterations": 2, a + "hyper_connection.epsilon": 1e-6,
            a + "hash_layer_count": 2,
            a + "swiglu_clamp_exp": 10.0, a + "expert_weights_scale": 1.0, a + "expert_weights_norm": True,
        }
    if arch == "maple":
        k[a + "swiglu_clamp_exp"] = 7.0
    k |= {
        "tokenizer.ggml.model": "test",
        "tokenizer.ggml.tokens": [f"tok_{i}" for i in range(N_VOCAB)],
        "tokenizer.ggml.scores": [0.0] * N_VOCAB,
    }
    if moe:
        k |= {
            a + "expert_feed_forward_length": n_ff, a + "expert_shared_feed_forward_length": n_ff // 2,
            a + "expert_latent_length": n_ff, a + "interleave_moe_layer_step": 2, a + "expert_count": 4,
            a + "expert_used_count": 2, a + "expert_shared_count": 1,
            a + "expert_gating_func": 4 if arch == "deepseek4" else 2,
            a + "expert_group_scale": 1.0, a + "experts_per_group": 1, a + "moe_latent_size": n_ff,
        }
    k |= {
        a + "xielu.alpha_n": 1.0, "xielu.alpha_n": 1.0, "xielu.alpha_p": 1.0, "xielu.beta": 1.0, "xielu.eps": 1e-7,
        a + "ssm.inner_size": 256 if arch in QWEN_SSM else 2 * n_embd, a + "ssm.conv_kernel": 4,
        a + "ssm.state_size": 128,
        a + "ssm.time_step_rank": n_head, a + "ssm.group_count": 0 if arch == "plamo2" else 2, a + "kda.head_dim": 128,
        a + "kda.safe_gate": True, a + "kda.gate_lower_bound": -5.0,
    }
    if arch == "bailingmoe3":
        k |= {
            a + "swiglu_clamp_exp": Arr([0.0, 4.0] * (n_layer // 2), F32),
            a + "swiglu_clamp_shexp": Arr([0.0, 5.0] * (n_layer // 2), F32),
        }
        k.pop(a + "kda.safe_gate")
    k |= {
        a + "wkv.head_size": n_embd // n_head, a + "shortconv.l_cache": 3, a + "residual_scale": 0.5,
        a + "embedding_scale": 3.0, a + "attn_res.block_size": 4, a + "activation.situ_beta": 4.0,
        a + "activation.situ_linear_beta": 25.0,
    }
    for name, value in over.items():
        if value is None:
            k.pop(a + name, None)
        else:
            k[a + name] = value
    return k


@dataclass(frozen=True)
class Specimen:
    """A tiny model: its architecture, metadata, and which optional tensors it lacks."""

    arch: str
    keys: Mapping[str, Any]
    lacks: Callable[[str], bool] = lambda name: False

    def build(self, path: Path, **how: Any) -> Path:
        """Write it, as proof.random_model.write_random does."""
        keys = {"general.architecture": encoded(self.arch)} | {k: encoded(v) for k, v in self.keys.items()}
        n_experts = self.keys.get(f"{self.arch}.expert_count", 1)
        return write_random(path, keys, wanted=lambda name: not self.lacks(name), n_experts=n_experts, **how)


def specimen(name: str) -> Specimen:
    """A variant by its name, or the plain model of an architecture."""
    make = VARIANTS.get(name) or UNCUTTABLE.get(name)
    return make() if make else Specimen(name, keys_for(name))


def _head(name: str) -> bool:
    return name in ("output.weight", "output.scale", "output.input_scale")


def _with_mtp(arch: str, n: int = 8) -> Specimen:
    keys = keys_for(arch, n + 1, nextn_predict_layers=1)
    return Specimen(arch, keys, lambda name: name.startswith(f"blk.{n}.") and name.endswith("scale"))


def _tied(arch: str) -> Specimen:
    return Specimen(arch, keys_for(arch), _head)


def _gemma4(moe: bool) -> Specimen:
    """26B-A4B and 31B: heads of two sizes, no per-layer inputs."""
    n, a = 12, "gemma4."
    slides = [i % 6 != 5 for i in range(n)]
    keys = keys_for("gemma4", n, moe=moe)
    keys |= {
        a + "attention.sliding_window_pattern": slides, a + "attention.head_count": 4,
        a + "attention.head_count_kv": u32s(2 if s else 1 for s in slides), a + "attention.key_length": 64,
        a + "attention.value_length": 64, a + "attention.key_length_swa": 32, a + "attention.value_length_swa": 32,
        a + "rope.dimension_count": 64, a + "rope.dimension_count_swa": 32, a + "final_logit_softcapping": 30.0,
    }  # fmt: skip
    del keys[a + "rope.dimension_sections"]
    return Specimen("gemma4", keys, _head)


def _gemma4_e(n: int = 15, shared: int = 5, inputs: int = 64) -> Specimen:
    """E2B and E4B: inputs of each layer, and layers that share the caches of those before."""
    a = "gemma4."
    keys = keys_for("gemma4", n)
    keys |= {
        a + "embedding_length_per_layer_input": inputs, a + "attention.shared_kv_layers": shared,
        a + "attention.sliding_window_pattern": [i % 5 != 4 for i in range(n)],
        a + "feed_forward_length": u32s(192 if i < n - shared else 384 for i in range(n)),
    }  # fmt: skip
    del keys[a + "rope.dimension_sections"]
    return Specimen("gemma4", keys, _head)


def _gemma2_27b(head: int) -> Specimen:
    sizes = {"attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head}
    keys = keys_for("gemma2", 46, embedding_length=256, **sizes)
    spare = ("attn_q.scale", "attn_q.bias", "attn_qkv.weight", "attn_qkv.bias")
    return Specimen("gemma2", keys, lambda name: name.endswith(spare))


def _other(arch: str, n_layer: int = 8, moe: bool | None = None, **over: Any) -> Callable[[], Specimen]:
    return lambda: Specimen(arch, keys_for(arch, n_layer, moe, **over))


_NO_PATTERN = {"attention.sliding_window_pattern": None}
_NO_WINDOW = {"attention.sliding_window": None, "attention.sliding_window_pattern": None}
_HEADS = {"attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64}

_MTP = """
qwen35 qwen35moe qwen3next glm4moe glm-dsa deepseek2 deepseek32 cohere2moe hy_v3 mimo2 step35 ernie4_5-moe deepseek4
glm5-next qwen4exp minimax-m2
"""
_TIED = """
llama qwen2 qwen3 qwen35 granite granitehybrid lfm2 mistral3 smollm3 falcon-h1 exaone4 ernie4_5 phi3 qwen3next
"""

VARIANTS: dict[str, Callable[[], Specimen]] = {
    **{
        f"{arch}+mtp": lambda arch=arch: _with_mtp(arch)
        for arch in _MTP.split()
    },
    **{
        f"{arch}-tied": lambda arch=arch: _tied(arch)
        for arch in _TIED.split()
    },
    "gemma4-31b": lambda: _gemma4(False),
    "gemma4-26b-a4b": lambda: _gemma4(True),
    "gemma4-e": _gemma4_e,
    "gemma2-27b": lambda: _gemma2_27b(32),
    "gemma3-27b": _other(
        "gemma3", 62, embedding_length=128, **{"attention.head_count": 1, "attention.head_count_kv": 1,
        "attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32}, **_NO_PATTERN,
    ),
    "deepseek2-30": _other("deepseek2", 30),
    "deepseek2-lite": _other("deepseek2", 27, **{"attention.q_lora_rank": None, "expert_gating_func": None}),
    "minicpm-scales": _other("minicpm", residual_scale=None, embedding_scale=None, logit_scale=None),
    "deepseek2-no-gating": _other("deepseek2", expert_gating_func=None),
    "qwen35-interval-4": _other("qwen35", 12, full_attention_interval=4),
    "qwen35moe-default-interval": _other("qwen35moe", 12, full_attention_interval=None),
    "qwen35-list": _other(
        "qwen35", 9, full_attention_interval=None, **{"attention.recurrent_layers": u32s([1, 1, 0] * 3)}
    ),
    "qwen3vl-deepstack": _other("qwen3vl", n_deepstack_layers=3),
    "qwen3vlmoe-deepstack": _other("qwen3vlmoe", n_deepstack_layers=3),
    "llama-moe": _other("llama", moe=True),
    "granite-moe": _other("granite", moe=True),
    "mistral3-moe": _other("mistral3", moe=True),
    "olmo2-no-window": _other("olmo2", **_NO_WINDOW),
    "laguna-no-window": _other("laguna", **_NO_WINDOW),
    "smallthinker-no-window": _other("smallthinker", **_NO_WINDOW),
    "gpt-oss-default": _other("gpt-oss", **_NO_PATTERN),
    "cohere2-default": _other("cohere2", **_NO_PATTERN),
    "gemma2-default": _other("gemma2", **_NO_PATTERN),
    "gemma3-default": _other("gemma3", 12, **_NO_PATTERN),
    "olmo2-default": _other("olmo2", **_NO_PATTERN),
    "smollm3-12": _other("smollm3", 12),
    "smallthinker-16": _other("smallthinker", 16, **_NO_PATTERN),
    "llama4-default": _other("llama4", 12, interleave_moe_layer_step=1, **_NO_PATTERN),
    "deepseek4-12": _other("deepseek4", 12),
    "glm-dsa-long": _other("glm-dsa", 12, context_length=1048576),
    "deci-lists": _other(
        "deci", 6, **{"attention.head_count": u32s([4, 4, 2, 4, 0, 4]),
        "attention.head_count_kv": u32s([2, 1, 1, 2, 0, 2]),
        "feed_forward_length": u32s([384, 256, 384, 0, 384, 128]), **_HEADS},
    ),
    "openelm-lists": _other(
        "openelm", 6, **{"attention.head_count": u32s([4, 8, 4, 8, 4, 8]),
        "attention.head_count_kv": u32s([2, 2, 1, 4, 2, 2]),
        "feed_forward_length": u32s([384, 256, 384, 128, 384, 128]), **_HEADS},
    ),
    "openelm-no-sizes": _other(
        "openelm", 4, **{"attention.head_count": u32s([4, 8, 4, 8]), "attention.head_count_kv": u32s([2, 2, 1, 4])},
    ),
    "nemotron_h-lists": _other(
        "nemotron_h_moe", 9, expert_used_count=u32s([2, 1, 2, 2, 1, 2, 2, 2, 1]),
        expert_feed_forward_length=u32s([384, 384, 256, 384, 384, 128, 384, 384, 64]),
    ),
}  # fmt: skip
"""What real files have besides: layers behind the trunk, tied heads, lists, default patterns, code by layer counts."""

UNCUTTABLE: dict[str, Callable[[], Specimen]] = {
    "gemma4-e-16": lambda: _gemma4_e(n=16, inputs=16),
    "exaone4-32b": _other("exaone4", 64),
    "baichuan-13b": _other("baichuan", 40),
    "command-r-plus": _other("command-r", 64),
}
"""Models that llama.cpp knows by their number of layers; and one whose inputs of each layer are less than a block."""
