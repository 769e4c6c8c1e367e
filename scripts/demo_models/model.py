"""A llama-architecture decoder in plain PyTorch, laid out as llama.cpp expects it.

RoPE uses the interleaved layout (pairs 2i, 2i+1), which is what ggml's NORM rope computes, so the query and key
weights are exported as they are, without the permutation that Hugging Face checkpoints need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from presets import Config
from q8 import Tensors, dequantize_q8_0
from torch import Tensor, nn

GGUF_NAMES = {
    "attn_norm": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "w_gate": "ffn_gate",
    "w_up": "ffn_up",
    "w_down": "ffn_down",
}


def _random(n_out: int, n_in: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(n_out, n_in) * n_in**-0.5 * 0.6)


class Block(nn.Module):
    """One layer: attention and SwiGLU, both with RMSNorm before them."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.attn_norm = nn.Parameter(torch.ones(c.n_embd))
        self.ffn_norm = nn.Parameter(torch.ones(c.n_embd))
        self.wq, self.wk, self.wv = _random(c.n_embd, c.n_embd), _random(c.n_kv, c.n_embd), _random(c.n_kv, c.n_embd)
        self.wo = nn.Parameter(torch.zeros(c.n_embd, c.n_embd))
        self.w_gate, self.w_up = _random(c.n_ff, c.n_embd), _random(c.n_ff, c.n_embd)
        self.w_down = nn.Parameter(torch.zeros(c.n_embd, c.n_ff))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, Tensor, int] | None = None) -> Tensor:
        """x: (batch, time, width). cache: keys, values (both with room for all tokens), filled length."""
        c, (b, t, d) = self.c, x.shape
        h = F.rms_norm(x, (d,), self.attn_norm.to(x.dtype), c.eps)
        q, k, v = F.linear(h, torch.cat([self.wq, self.wk, self.wv]).to(x.dtype)).split([d, c.n_kv, c.n_kv], -1)
        q = rope(q.view(b, t, c.n_head, c.head_dim), cos, sin).transpose(1, 2)
        k = rope(k.view(b, t, c.n_head_kv, c.head_dim), cos, sin).transpose(1, 2)
        v = v.view(b, t, c.n_head_kv, c.head_dim).transpose(1, 2)
        causal = True
        if cache is not None:  # filled at once, then one token at a time
            keys, values, n = cache
            keys[:, :, n : n + t], values[:, :, n : n + t] = k, v
            k, v, causal = keys[:, :, : n + t], values[:, :, : n + t], n == 0 and t > 1
        o = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        o = F.linear(o.transpose(1, 2).reshape(b, t, d), self.wo.to(x.dtype))
        x = x + F.dropout(o, c.dropout, self.training)
        h = F.rms_norm(x, (d,), self.ffn_norm.to(x.dtype), c.eps)
        gate, up = F.linear(h, torch.cat([self.w_gate, self.w_up]).to(x.dtype)).chunk(2, -1)
        return x + F.dropout(F.linear(F.silu(gate) * up, self.w_down.to(x.dtype)), c.dropout, self.training)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


class Llama(nn.Module):
    """The whole model; computes in `dtype`, keeps its weights in float32."""

    def __init__(self, c: Config, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.c, self.dtype = c, dtype
        self.tok_embd = nn.Parameter(torch.randn(c.n_vocab, c.n_embd) * 0.02)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.out_norm = nn.Parameter(torch.ones(c.n_embd))
        frequency = c.rope_base ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angle = torch.outer(torch.arange(c.n_ctx).float(), frequency)
        self.register_buffer("cos", angle.cos()[None, :, None], persistent=False)
        self.register_buffer("sin", angle.sin()[None, :, None], persistent=False)

    def forward(self, ids: Tensor, caches: list[Any] | None = None, pos: int = 0) -> Tensor:
        """ids: (batch, time) -> logits (batch, time, vocabulary)."""
        x = F.embedding(ids, self.tok_embd).to(self.dtype)
        cos, sin = self.cos[:, pos : pos + ids.shape[1]], self.sin[:, pos : pos + ids.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, None if caches is None else caches[i])
        x = F.rms_norm(x, (self.c.n_embd,), self.out_norm.to(x.dtype), self.c.eps)
        return F.linear(x, self.tok_embd.to(x.dtype))

    @torch.no_grad()
    def generate(self, prompts: Tensor, n_new: int) -> Tensor:
        """prompts: (batch, time), all of one length -> (batch, n_new), the greedy continuations."""
        c, (b, t) = self.c, prompts.shape
        shape = (b, c.n_head_kv, t + n_new, c.head_dim)
        kv = [[torch.zeros(shape, dtype=self.dtype, device=prompts.device) for _ in "kv"] for _ in self.blocks]
        current, pos, out = prompts, 0, []
        for _ in range(n_new):
            logits = self(current, [(k, v, pos) for k, v in kv], pos)[:, -1].float()
            pos += current.shape[1]
            current = logits.argmax(-1, keepdim=True)
            out.append(current)
        return torch.cat(out, 1)

    def gguf_tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by their GGUF names, in the order of Config.shapes."""
        yield "token_embd.weight", self.tok_embd
        yield "output_norm.weight", self.out_norm
        for i, block in enumerate(self.blocks):
            for ours, name in GGUF_NAMES.items():
                yield f"blk.{i}.{name}.weight", getattr(block, ours)

    @torch.no_grad()
    def load(self, tensors: Tensors) -> Llama:
        """Take over weights as `load_q8` gives them."""
        for name, parameter in self.gguf_tensors():
            data, shape = tensors[name]
            values = dequantize_q8_0(data, shape) if isinstance(data, bytes) else data.copy()
            parameter.copy_(torch.from_numpy(values))
        return self
