"""Tiny random GGUF models of every supported architecture, with a made-up vocabulary.

Heads have 32 dimensions, so that a q8_0 KV cache works; weights are large enough that a wrong
layer, scale or mask shows in every logit.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

HEAD = 32
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "a n", "an d", "Ġ the", "Ġ and", "Ġ a", "i n", "in g", "e r"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """What to build. `keys` are extra metadata, without the architecture's prefix; `tensors` are
    extra ones by name; `kind` is the type of the matrices (norms and biases stay F32)."""

    arch: str = "llama"
    n_layers: int = 4
    n_embd: int = 64
    n_head: int = 2
    n_head_kv: int = 1
    n_ff: int = 96
    n_expert: int = 0
    tied: bool = True
    rope_freqs: bool = False
    kind: GGMLQuantizationType = GGMLQuantizationType.F16
    keys: dict[str, Any] = dataclasses.field(default_factory=dict)
    tensors: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    extra_tokens: int = 0
    seed: int = 1
    name: str = ""
    chat_template: str | None = CHATML


MODELS = {
    "llama-tied": Tiny(),
    "llama-untied": Tiny(tied=False),
    "llama-rope-freqs": Tiny(rope_freqs=True, n_layers=3),
    "llama-lists": Tiny(keys={"attention.head_count_kv": [1] * 4, "feed_forward_length": [96] * 4}),
    "llama-q8_0": Tiny(kind=GGMLQuantizationType.Q8_0, n_layers=3),
    "llama-q4_K": Tiny(kind=GGMLQuantizationType.Q4_K, n_embd=256, n_head=8, n_ff=256, n_layers=3, tied=False),
    "llama-moe": Tiny(n_expert=4, n_layers=3),
    "qwen2": Tiny("qwen2", tied=False, tensors={"output.bias": (-1,)}),
    "qwen2-tied": Tiny("qwen2"),
    "qwen3": Tiny("qwen3"),
    "qwen3moe": Tiny("qwen3moe", n_expert=4, tied=False),
    "gemma3": Tiny("gemma3", n_layers=8, keys={"attention.sliding_window": 8, "rope.freq_base": 1e6}),
    "gemma3-period-3": Tiny(
        "gemma3", n_layers=6, keys={"attention.sliding_window": 6, "attention.sliding_window_pattern": 3}
    ),
    "gemma3-array": Tiny(
        "gemma3",
        n_layers=4,
        keys={"attention.sliding_window": 6, "attention.sliding_window_pattern": [False, True, True, False]},
    ),
    "gemma3-no-window": Tiny("gemma3", n_layers=3),
}
"""One model for every rule of the slicer."""


def gemma3_62(n_embd: int = 128, n_head: int = 1) -> Tiny:
    """The 27B case: 62 layers, attention scaled by n_embd / n_head instead of the head's size.

    As given the two scales differ by exactly 0.5, so that folding it loses no bit.
    """
    return Tiny("gemma3", n_layers=62, n_embd=n_embd, n_head=n_head, n_ff=32, keys={"attention.sliding_window": 8})


def build(path: Path, tiny: Tiny, tensors_per_part: int = 0) -> Path:
    """Write the model to `path`, or with `tensors_per_part` to NAME-00001-of-0000N.gguf and so on.
    Gives the (first) file."""
    writer = GGUFWriter(str(path), tiny.arch, split_max_tensors=tensors_per_part)
    _add_hyperparameters(writer, tiny)
    n_vocab = _add_vocabulary(writer, tiny)
    rng = np.random.default_rng(tiny.seed)
    for name, shape in _tensors(tiny, n_vocab):
        _add_tensor(writer, rng, tiny, name, tuple(n_vocab if n == -1 else n for n in shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"), default=path)


def vocabulary(extra: int = 0) -> list[str]:
    """Specials, the 256 bytes in GPT-2's alphabet, the merges, and padding."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    merged = [merge.replace(" ", "") for merge in MERGES]
    return SPECIALS + letters + merged + [f"[PAD{i}]" for i in range(extra)]


def _add_vocabulary(writer: GGUFWriter, tiny: Tiny) -> int:
    tokens = vocabulary(tiny.extra_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    n_special = len(SPECIALS)
    n_pad = tiny.extra_tokens
    writer.add_token_types([3] * n_special + [1] * (len(tokens) - n_special - n_pad) + [5] * n_pad)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    if tiny.chat_template is not None:
        writer.add_chat_template(tiny.chat_template)
    return len(tokens)


def _add_hyperparameters(writer: GGUFWriter, tiny: Tiny) -> None:
    writer.add_type("model")
    writer.add_name(tiny.name or f"tiny {tiny.arch}")
    writer.add_file_type(int(tiny.kind))
    writer.add_context_length(512)
    writer.add_embedding_length(tiny.n_embd)
    writer.add_block_count(tiny.n_layers)
    writer.add_feed_forward_length(tiny.n_ff)
    writer.add_head_count(tiny.n_head)
    writer.add_head_count_kv(tiny.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    if tiny.n_expert:
        writer.add_expert_count(tiny.n_expert)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(tiny.n_ff)
    for name, value in tiny.keys.items():
        _add_key(writer, name if name.startswith("general.") else f"{tiny.arch}.{name}", value)


def _add_key(writer: GGUFWriter, name: str, value: Any) -> None:
    if name == "general.alignment":
        writer.add_custom_alignment(value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_uint32(name, value)


def _tensors(tiny: Tiny, n_vocab: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes (rows first, as in numpy)."""
    d, q, kv = tiny.n_embd, tiny.n_head * HEAD, tiny.n_head_kv * HEAD
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (n_vocab, d)), ("output_norm.weight", (d,))]
    if not tiny.tied:
        tensors.append(("output.weight", (n_vocab, d)))
    if tiny.rope_freqs:
        tensors.append(("rope_freqs.weight", (HEAD // 2,)))
    tensors += list(tiny.tensors.items())
    for i in range(tiny.n_layers):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (d,),
            "attn_q.weight": (q, d),
            "attn_k.weight": (kv, d),
            "attn_v.weight": (kv, d),
            "attn_output.weight": (d, q),
            "ffn_norm.weight": (d,),
        }
        if tiny.arch == "qwen2":
            layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
        if tiny.arch in ("qwen3", "qwen3moe", "gemma3"):
            layer |= {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
        if tiny.arch == "gemma3":
            layer |= {"post_attention_norm.weight": (d,), "post_ffw_norm.weight": (d,)}
        if tiny.n_expert:
            layer["ffn_gate_inp.weight"] = (tiny.n_expert, d)
            for name, shape in (("gate", (tiny.n_ff, d)), ("up", (tiny.n_ff, d)), ("down", (d, tiny.n_ff))):
                layer[f"ffn_{name}_exps.weight"] = (tiny.n_expert, *shape)
        else:
            layer |= {"ffn_gate.weight": (tiny.n_ff, d), "ffn_up.weight": (tiny.n_ff, d)}
            layer["ffn_down.weight"] = (d, tiny.n_ff)
        tensors += [(f"blk.{i}.{name}", shape) for name, shape in layer.items()]
    return tensors


def _add_tensor(writer: GGUFWriter, rng: np.random.Generator, tiny: Tiny, name: str, shape: tuple[int, ...]) -> None:
    if name == "rope_freqs.weight":
        writer.add_tensor(name, np.linspace(1, 8, shape[0], dtype=np.float32))
        return
    if len(shape) == 1:
        middle = 0.0 if name.endswith(".bias") else 1.0
        writer.add_tensor(name, (middle + 0.3 * rng.standard_normal(shape)).astype(np.float32))
        return
    values = rng.standard_normal(shape).astype(np.float32)
    if not name.startswith(("token_embd", "output")):
        values *= 1.5 / np.sqrt(shape[-1])
    kind = GGMLQuantizationType.F32 if "ffn_gate_inp" in name else tiny.kind
    if kind == GGMLQuantizationType.Q4_K:
        writer.add_tensor(name, _random_q4_k(rng, shape), raw_dtype=kind)
    else:
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)


def _random_q4_k(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Any bits are a Q4_K block, once its two half-float scales are sane: 144 bytes for 256."""
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // 256, 144), dtype=np.uint8)
    scales = np.array([0.0005, 0.004], np.float16).view(np.uint8)
    blocks[..., :4] = scales
    return blocks.reshape(*shape[:-1], -1)
