"""The layers of models that people run: counts, patterns and, where they are at hand, the real widths.

For `popular_models.py`. An entry with an `embedding_length` is the metadata of the real file as far as it
matters; the others are the plain model of their architecture with the real layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specimens import encoded, keys_for, u32s

from pipeinfer_cpp.gguf import Source
from pipeinfer_cpp.proof.random_model import write_gguf

Shape = tuple[str, int, dict[str, Any]]
"""Architecture, layers (all of them, also those behind the trunk), keys without the architecture."""


def _slides(n: int, period: int) -> list[bool]:
    return [i % period != period - 1 for i in range(n)]


def _at(n: int, layers: set[int], value: int) -> Any:
    return u32s(value if i in layers else 0 for i in range(n))


def _every(n: int, period: int, value: int) -> Any:
    return u32s(value if i % period == period - 1 else 0 for i in range(n))


def _dense(width: int, ffn: int, heads: int, kv: int, size: int | None = None, **more: Any) -> dict[str, Any]:
    keys = {
        "context_length": 32768, "embedding_length": width, "feed_forward_length": ffn, "attention.head_count": heads,
        "attention.head_count_kv": kv, "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.layer_norm_epsilon": 1e-6, "rope.freq_base": 1e6,
    }  # fmt: skip
    if size:
        keys |= {"attention.key_length": size, "attention.value_length": size}
    return keys | more


def _moe(n: int, used: int, ffn: int, **more: Any) -> dict[str, Any]:
    return {"expert_count": n, "expert_used_count": used, "expert_feed_forward_length": ffn} | more


def _deltanet(rank: int) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 16, "ssm.time_step_rank": rank,
        "ssm.inner_size": 128 * rank, "full_attention_interval": 4, "rope.dimension_count": 64,
        "rope.dimension_sections": u32s([11, 11, 10, 0]),
    }  # fmt: skip


def _mla(width: int, ffn: int, heads: int, q_rank: int, **more: Any) -> dict[str, Any]:
    return _dense(width, ffn, heads, 1) | {
        "attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192,
        "attention.value_length_mla": 128, "attention.q_lora_rank": q_rank, "attention.kv_lora_rank": 512,
        "rope.dimension_count": 64, "expert_shared_count": 1, "expert_weights_scale": 2.5, "expert_weights_norm": True,
        "expert_gating_func": 2,
    } | more  # fmt: skip


def _gemma4(n: int, width: int, ffn: Any, heads: int, kv: Any, **more: Any) -> dict[str, Any]:
    return _dense(width, ffn, heads, kv, 512) | {
        "attention.key_length_swa": 256, "attention.value_length_swa": 256, "rope.dimension_count": 512,
        "rope.dimension_count_swa": 256, "attention.sliding_window": 1024, "rope.freq_base_swa": 10000.0,
        "attention.sliding_window_pattern": _slides(n, 6), "embedding_length_per_layer_input": 0,
        "attention.shared_kv_layers": 0, "final_logit_softcapping": 30.0,
    } | more  # fmt: skip


def _gemma4_e(n: int, width: int, ffn: Any, shared: int, period: int) -> dict[str, Any]:
    keys = _gemma4(n, width, ffn, 8, 1)
    keys["embedding_length_per_layer_input"], keys["attention.shared_kv_layers"] = 256, shared
    return keys | {"attention.sliding_window": 512, "attention.sliding_window_pattern": _slides(n, period)}


_NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
_NANO_LAYERS = {
    "attention.head_count_kv": u32s(2 if c == "*" else 0 for c in _NANO),
    "feed_forward_length": u32s(1856 if c == "E" else 0 for c in _NANO),
}
_MTP = {"nextn_predict_layers": 1}
_NO_PATTERN = {"attention.sliding_window_pattern": None}

POPULAR: dict[str, Shape] = {
    "Qwen3 8B": ("qwen3", 36, _dense(4096, 12288, 32, 8, 128)),
    "Qwen3 0.6B": ("qwen3", 28, _dense(1024, 3072, 16, 8, 128)),
    "Qwen2.5 7B": ("qwen2", 28, _dense(3584, 18944, 28, 4)),
    "Qwen3 30B-A3B": ("qwen3moe", 48, _dense(2048, 6144, 32, 4, 128) | _moe(128, 8, 768)),
    "Qwen3 235B-A22B": ("qwen3moe", 94, _dense(4096, 12288, 64, 4, 128) | _moe(128, 8, 1536)),
    "Qwen3-VL 8B": (
        "qwen3vl", 36, _dense(4096, 12288, 32, 8, 128)
        | {"rope.dimension_sections": u32s([24, 20, 20, 0]), "n_deepstack_layers": 3},
    ),
    "Qwen3.6 27B (3.5, 3.8 too)": ("qwen35", 65, _dense(5120, 17408, 24, 4, 256) | _deltanet(48) | _MTP),
    "Qwen3.6 35B-A3B": (
        "qwen35moe", 41, _dense(2048, 512, 16, 2, 256) | _deltanet(32) | _MTP
        | _moe(256, 8, 512, expert_shared_feed_forward_length=512),
    ),
    "Qwen3.5 122B-A10B": ("qwen35moe", 49, {"full_attention_interval": 4} | _MTP),
    "Qwen3.5 397B-A17B": ("qwen35moe", 61, {"full_attention_interval": 4} | _MTP),
    "Qwen3-Coder-Next 80B": (
        "qwen3next", 48, _dense(2048, 5120, 16, 2, 256) | _deltanet(32)
        | _moe(512, 10, 512, expert_shared_feed_forward_length=512),
    ),
    "Qwen3.8 Flash-Next": (
        "qwen4exp", 48, {"full_attention_interval": 4, "attention.compress_ratios": u32s([4] * 48)},
    ),
    "Gemma 2 9B": (
        "gemma2", 42, _dense(3584, 14336, 16, 8, 256) | {"attention.sliding_window": 4096},
    ),
    "Gemma 2 27B": ("gemma2", 46, _dense(4608, 36864, 32, 16, 128) | {"attention.sliding_window": 4096}),
    "Gemma 3 4B": ("gemma3", 34, _dense(2560, 10240, 8, 4, 256) | {"attention.sliding_window": 1024}),
    "Gemma 3 27B": ("gemma3", 62, _dense(5376, 21504, 32, 16, 128) | {"attention.sliding_window": 1024}),
    "Gemma 4 31B": ("gemma4", 60, _gemma4(60, 5376, 21504, 32, u32s(16 if s else 4 for s in _slides(60, 6)))),
    "Gemma 4 26B-A4B": (
        "gemma4", 30, _gemma4(30, 2816, 2112, 16, u32s(8 if s else 2 for s in _slides(30, 6))) | _moe(128, 8, 704),
    ),
    "Gemma 4 E2B": ("gemma4", 35, _gemma4_e(35, 1536, u32s([6144] * 15 + [12288] * 20), 20, 5)),
    "Gemma 4 E4B": ("gemma4", 42, _gemma4_e(42, 2560, 10240, 18, 6)),
    "gpt-oss 20B": (
        "gpt-oss", 24, _dense(2880, 2880, 64, 8, 64) | _moe(32, 4, 2880, **{"attention.sliding_window": 128}),
    ),
    "gpt-oss 120B": (
        "gpt-oss", 36, _dense(2880, 2880, 64, 8, 64) | _moe(128, 4, 2880, **{"attention.sliding_window": 128}),
    ),
    "Llama 3.1 8B": ("llama", 32, _dense(4096, 14336, 32, 8, **{"rope.dimension_count": 128})),
    "Llama 3.3 70B": ("llama", 80, _dense(8192, 28672, 64, 8, **{"rope.dimension_count": 128})),
    "Llama 4 Scout": (
        "llama4", 48, _dense(5120, 16384, 40, 8, 128) | _moe(16, 1, 8192, interleave_moe_layer_step=1),
    ),
    "Llama 4 Maverick": (
        "llama4", 48, _dense(5120, 16384, 40, 8, 128) | _moe(128, 1, 8192, interleave_moe_layer_step=2),
    ),
    "Mistral Small 3.2, Magistral, Devstral 24B": (
        "llama", 40, _dense(5120, 32768, 32, 8, 128, **{"rope.dimension_count": 128}),
    ),
    "Ministral 3 14B, Devstral 2": (
        "mistral3", 40, _dense(5120, 16384, 32, 8, 128, **{"rope.dimension_count": 128})
        | {"attention.temperature_scale": 0.1, "rope.scaling.original_context_length": 16384},
    ),
    "Mistral Small 4": ("mistral4", 36, {}),
    "Phi-4 14B": ("phi3", 40, _dense(5120, 17920, 40, 10, **{"rope.dimension_count": 128})),
    "Phi-4 mini": (
        "phi3", 32, _dense(3072, 8192, 24, 8, **{"rope.dimension_count": 96,
        "rope.scaling.original_context_length": 4096}),
    ),
    "SmolLM3 3B": ("smollm3", 36, _dense(2048, 11008, 16, 4, **{"rope.dimension_count": 128})),
    "DeepSeek V3.1 and R1, Kimi K2": (
        "deepseek2", 61, _mla(7168, 18432, 128, 1536, leading_dense_block_count=3)
        | _moe(256, 8, 2048, expert_group_count=8, expert_group_used_count=4),
    ),
    "GLM 4.7 Flash": (
        "deepseek2", 48, _mla(2048, 10240, 20, 768, leading_dense_block_count=1) | _moe(64, 4, 1536) | _MTP
        | {"attention.key_length_mla": 256, "attention.value_length_mla": 256},
    ),
    "DeepSeek V3.2": ("deepseek32", 62, {"leading_dense_block_count": 3} | _MTP),
    "DeepSeek V4 Flash": (
        "deepseek4", 43, {"attention.compress_ratios": u32s([0, 0, *([4, 128] * 20), 4]), "hash_layer_count": 3},
    ),
    "GLM 4.5 Air": (
        "glm4moe", 47, _dense(4096, 10944, 96, 8, 128) | _MTP | _moe(
            128, 8, 1408, expert_shared_count=1, leading_dense_block_count=1, expert_gating_func=2,
            expert_weights_norm=True, expert_weights_scale=1.0, **{"rope.dimension_count": 64},
        ),
    ),
    "GLM 4.7": ("glm4moe", 93, {"leading_dense_block_count": 3} | _MTP),
    "GLM 5.1": ("glm-dsa", 79, {"leading_dense_block_count": 3} | _MTP),
    "GLM 5.2": ("glm-dsa", 79, {"leading_dense_block_count": 3, "context_length": 1048576} | _MTP),
    "GLM 5.3 Flash": ("glm5-next", 45, {"attention.head_count_kv": _every(45, 3, 1)}),
    "Kimi Linear 48B": (
        "kimi-linear", 27, {"attention.head_count_kv": _at(27, {*range(3, 27, 4), 26}, 1),
        "leading_dense_block_count": 1},
    ),
    "MiniMax M2.7": (
        "minimax-m2", 62, _dense(3072, 1536, 48, 8, 128) | _moe(
            256, 8, 1536, expert_gating_func=2, **{"rope.dimension_count": 64},
        ),
    ),
    "MiniMax M3": ("minimax-m3", 60, {}),
    "Nemotron 3 Nano 30B-A3B": (
        "nemotron_h_moe", 52, _dense(2688, 0, 32, 2, 128) | _NANO_LAYERS | _moe(
            128, 6, 1856, expert_shared_feed_forward_length=3712, expert_shared_count=1, expert_gating_func=2,
            expert_weights_norm=True, expert_weights_scale=2.5,
        ) | {
            "ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 8, "ssm.inner_size": 4096,
            "ssm.time_step_rank": 64,
        },
    ),
    "Granite 4 H Small": (
        "granitehybrid", 40, _dense(4096, 1536, 32, 8) | {"attention.head_count_kv": _at(40, {5, 15, 25, 35}, 8)}
        | _moe(72, 10, 768, expert_shared_feed_forward_length=1536) | {
            "ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 1, "ssm.inner_size": 8192,
            "ssm.time_step_rank": 128, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 16.0,
            "attention.scale": 0.0078125,
        },
    ),
    "Granite 4.1 30B": ("granite", 64, {}),
    "LFM2 8B-A1B": (
        "lfm2moe", 24, {"attention.head_count_kv": _at(24, {2, 6, 10, 14, 18, 21}, 2), "leading_dense_block_count": 2},
    ),
    "LFM2.5 1.2B": (
        "lfm2", 16, _dense(2048, 8192, 32, 8) | {
            "attention.head_count_kv": _at(16, {2, 5, 8, 10, 12, 14}, 8), "shortconv.l_cache": 3,
        },
    ),
    "Falcon-H1 34B": ("falcon-h1", 72, {}),
    "OLMo 3.1 32B": ("olmo2", 64, _NO_PATTERN),
    "Seed-OSS 36B": ("seed_oss", 64, {}),
    "Command A 111B": ("cohere2", 64, _NO_PATTERN),
    "Step 3.5 Flash": (
        "step35", 48, {"nextn_predict_layers": 3,
        "attention.sliding_window_pattern": u32s(i % 4 != 0 for i in range(48))},
    ),
    "MiMo V2 Flash": (
        "mimo2", 48, {"attention.sliding_window_pattern": u32s(i % 6 != 5 and i != 0 for i in range(48))},
    ),
    "Hunyuan A13B": ("hunyuan-moe", 32, {}),
    "Tencent HY3": ("hy_v3", 80, {}),
    "ERNIE 4.5 21B-A3B": ("ernie4_5-moe", 28, {"interleave_moe_layer_step": 1, "leading_dense_block_count": 1}),
    "Trinity Mini": ("afmoe", 32, _NO_PATTERN | {"leading_dense_block_count": 2}),
    "Laguna XS.2": ("laguna", 40, _NO_PATTERN | {"leading_dense_block_count": 1}),
    "Ling 3": ("bailingmoe3", 24, {"attention.head_count_kv": _every(24, 4, 1)}),
}


def header(name: str, folder: Path) -> Source:
    """The model's metadata as a file without tensors."""
    arch, n_layers, more = POPULAR[name]
    real = "embedding_length" in more
    keys = {f"{arch}.{key}": value for key, value in more.items()} | {f"{arch}.block_count": n_layers}
    keys = keys | {f"{arch}.vocab_size": 32000} if real else keys_for(arch, n_layers, **more)
    raw = {"general.architecture": encoded(arch)} | {key: encoded(value) for key, value in keys.items()}
    return Source.open(write_gguf(folder / "keys.gguf", raw))
