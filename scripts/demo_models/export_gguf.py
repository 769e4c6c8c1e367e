"""Write a GGUF file (Q8_0, F16 or F32) from the trained weights.

    python export_gguf.py target --q8 OUT/target.q8 --tokenizer DATA/tokenizer.json --out demo-target-q8_0.gguf
    python export_gguf.py target --pt OUT/target.pt --tokenizer DATA/tokenizer.json --out target-f32.gguf --type f32

Only --pt needs PyTorch.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from needs import need, need_files, stop
from presets import PRESETS, Config

if TYPE_CHECKING:
    from q8 import Tensors

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DESCRIPTION = (
    "A small llama-architecture model trained from scratch on simple English. "
    "Weights: CC BY-SA 4.0. See MODELS.md for the training text and its licences."
)
TITLES = {"target": "Demo target 42M", "draft": "Demo draft 5M", "weak": "Demo weak draft 1.4M"}


def write(path: str, cfg: Config, tensors: Tensors, tokenizer: str, title: str, kind: str) -> None:
    """A GGUF of `kind` q8_0, f16 or f32 (vectors are F32 always), with the tokenizer of a tokenizer.json."""
    import gguf
    import numpy as np
    from q8 import dequantize_q8_0, quantize_q8_0

    file_types = {
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "f32": gguf.LlamaFileType.ALL_F32,
    }
    w = gguf.GGUFWriter(path, "llama")
    w.add_type("model")
    w.add_name(title)
    w.add_license("cc-by-sa-4.0")
    w.add_description(DESCRIPTION)
    w.add_vocab_size(cfg.n_vocab)
    w.add_context_length(cfg.n_ctx)
    w.add_embedding_length(cfg.n_embd)
    w.add_block_count(cfg.n_layer)
    w.add_feed_forward_length(cfg.n_ff)
    w.add_rope_dimension_count(cfg.head_dim)
    w.add_head_count(cfg.n_head)
    w.add_head_count_kv(cfg.n_head_kv)
    w.add_layer_norm_rms_eps(cfg.eps)
    w.add_rope_freq_base(cfg.rope_base)
    w.add_file_type(file_types[kind])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(w, cfg, tokenizer)
    for name, (data, shape) in tensors.items():
        if len(shape) == 1:
            w.add_tensor(name, np.ascontiguousarray(data, np.float32).reshape(shape))
        elif kind == "q8_0":
            raw = np.frombuffer(data if isinstance(data, bytes) else quantize_q8_0(data), np.uint8)
            w.add_tensor(name, raw.reshape(shape[0], shape[1] // 32 * 34), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            values = dequantize_q8_0(data, shape) if isinstance(data, bytes) else data
            w.add_tensor(name, values.astype(np.float16 if kind == "f16" else np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def _add_tokenizer(w: Any, cfg: Config, path: str) -> None:
    import gguf

    with open(path, encoding="utf-8") as file:
        tokenizer = json.load(file)
    ids = tokenizer["model"]["vocab"]
    vocab = sorted(ids, key=ids.get)
    special = {t["content"] for t in tokenizer["added_tokens"]}
    if len(vocab) != cfg.n_vocab or ids["<|endoftext|>"] != 0:
        stop(f"{path} has {len(vocab)} tokens, not {cfg.n_vocab}, or no <|endoftext|> as id 0.")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(vocab)
    w.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in vocab])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(ids["<|im_end|>"])
    w.add_eot_token_id(ids["<|im_end|>"])
    w.add_pad_token_id(0)
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)


def load(name: str, q8: str | None = None, pt: str | None = None) -> tuple[Config, Tensors]:
    """Size and weights of a preset's Q8_0 pieces, or of a NAME.pt."""
    if pt is None:
        from q8 import load_q8

        return PRESETS[name], load_q8(PRESETS[name], str(q8))
    import torch
    from model import Llama

    saved = torch.load(pt, map_location="cpu", weights_only=True)
    model = Llama(Config(**saved["config"]), torch.float32)
    model.load_state_dict(saved["model"])
    return model.c, {n: (p.detach().float().numpy(), tuple(p.shape)) for n, p in model.gguf_tensors()}


def add_weights_options(ap: argparse.ArgumentParser) -> None:
    """NAME and one of --q8 and --pt, as `load` takes them."""
    ap.add_argument("name", choices=sorted(PRESETS))
    which = ap.add_mutually_exclusive_group(required=True)
    which.add_argument("--q8", help="Q8_0 pieces, OUT/NAME.q8")
    which.add_argument("--pt", help="OUT/NAME.pt")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_weights_options(ap)
    ap.add_argument("--tokenizer", required=True, help="DATA/tokenizer.json")
    ap.add_argument("--out", required=True)
    ap.add_argument("--type", default="q8_0", choices=["q8_0", "f16", "f32"])
    a = ap.parse_args()
    need("gguf", "numpy", *(["torch"] if a.pt else []))
    need_files(a.tokenizer, a.pt or f"{a.q8}.000")
    cfg, tensors = load(a.name, a.q8, a.pt)
    write(a.out, cfg, tensors, a.tokenizer, TITLES.get(a.name, a.name), a.type)


if __name__ == "__main__":
    main()
