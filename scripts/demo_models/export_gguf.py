"""Write a GGUF file (Q8_0, F16 or F32) from the trained weights.

    python export_gguf.py target --q8 DIR/target.q8 --tokenizer DIR/tokenizer.json --out demo-target-q8_0.gguf --type q8_0
    python export_gguf.py target --pt DIR/target.pt  ...
"""
import argparse
import json

import gguf
import numpy as np
import torch
from model import PRESETS, Config, Llama
from q8 import dequantize_q8_0, load_q8, quantize_q8_0

CHAT_TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>' + '\\n' }}{% endfor %}"
                 "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
LICENSE = "Weights: CC BY-SA 4.0. See MODELS.md for the training text and its licences."
TITLES = {"target": "Demo target 42M", "draft": "Demo draft 5M", "weak": "Demo weak draft 1.4M"}


def write(path, cfg, tensors, tokenizer, title, ftype):
    """tensors: {gguf name: (raw Q8_0 bytes or float32 array, shape)}."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_type("model")
    w.add_name(title)
    w.add_license("cc-by-sa-4.0")
    w.add_description("A small llama-architecture model trained from scratch on simple English. " + LICENSE)
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
    w.add_file_type({"q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "f16": gguf.LlamaFileType.MOSTLY_F16, "f32": gguf.LlamaFileType.ALL_F32}[ftype])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tk = json.load(open(tokenizer))
    vocab = sorted(tk["model"]["vocab"], key=tk["model"]["vocab"].get)
    special = {t["content"] for t in tk["added_tokens"]}
    assert len(vocab) == cfg.n_vocab and tk["model"]["vocab"]["<|endoftext|>"] == 0
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(vocab)
    w.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in vocab])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tk["model"]["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(tk["model"]["vocab"]["<|im_end|>"])
    w.add_eot_token_id(tk["model"]["vocab"]["<|im_end|>"])
    w.add_pad_token_id(0)
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)
    for name, (data, shape) in tensors.items():
        if len(shape) == 1:
            w.add_tensor(name, np.ascontiguousarray(data, np.float32).reshape(shape))
            continue
        if ftype == "q8_0":
            raw = data if isinstance(data, bytes) else quantize_q8_0(data)
            w.add_tensor(name, np.frombuffer(raw, np.uint8).reshape(shape[0], shape[1] // 32 * 34), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            x = dequantize_q8_0(data, shape) if isinstance(data, bytes) else data
            w.add_tensor(name, x.astype(np.float16 if ftype == "f16" else np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def load(name, q8=None, pt=None):
    """(config, {gguf name: (data, shape)})"""
    if pt:
        ck = torch.load(pt, map_location="cpu")
        m = Llama(Config(**ck["config"]), torch.float32)
        m.load_state_dict(ck["model"])
        return m.c, {n: (t.detach().float().numpy(), tuple(t.shape)) for n, t in m.gguf_tensors()}
    m = Llama(PRESETS[name], torch.float32)
    return m.c, load_q8(m, q8)


def torch_model(cfg, tensors):
    """The same weights as a PyTorch model (for checks)."""
    m = Llama(cfg, torch.float32).eval()
    with torch.no_grad():
        for n, t in m.gguf_tensors():
            d, s = tensors[n]
            t.copy_(torch.from_numpy(dequantize_q8_0(d, s) if isinstance(d, bytes) else np.array(d)))
    return m


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("name")
    ap.add_argument("--q8")
    ap.add_argument("--pt")
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--type", default="q8_0", choices=["q8_0", "f16", "f32"])
    a = ap.parse_args()
    cfg, t = load(a.name, a.q8, a.pt)
    write(a.out, cfg, t, a.tokenizer, TITLES.get(a.name, a.name), a.type)
