"""Sizes of the models, and the names and shapes of their tensors. Needs nothing installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Config:
    """A llama-architecture decoder with tied embeddings."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int = 8192
    n_ctx: int = 1024
    eps: float = 1e-5
    rope_base: float = 10000.0
    dropout: float = 0.0

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def n_kv(self) -> int:
        """Width of all key (or value) heads together."""
        return self.n_head_kv * self.head_dim

    def flops_per_token(self, length: int) -> int:
        """Training FLOPs per token (forward and backward) at a sequence length."""
        d = self.n_embd
        n = self.n_layer * (2 * d * d + 2 * d * self.n_kv + 3 * d * self.n_ff) + self.n_vocab * d
        return 6 * n + 6 * self.n_layer * d * length

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(GGUF name, shape) of every tensor, in the order of the files."""
        d, kv, ff = self.n_embd, self.n_kv, self.n_ff
        yield "token_embd.weight", (self.n_vocab, d)
        yield "output_norm.weight", (d,)
        block = {
            "attn_norm": (d,),
            "attn_q": (d, d),
            "attn_k": (kv, d),
            "attn_v": (kv, d),
            "attn_output": (d, d),
            "ffn_norm": (d,),
            "ffn_gate": (ff, d),
            "ffn_up": (ff, d),
            "ffn_down": (d, ff),
        }
        for i in range(self.n_layer):
            for name, shape in block.items():
                yield f"blk.{i}.{name}.weight", shape


PRESETS = {
    "target": Config(12, 512, 8, 4, 1536),
    "draft": Config(4, 256, 4, 2, 768),
    "weak": Config(2, 128, 2, 1, 384),
    "tiny": Config(2, 64, 4, 2, 128),  # for a trial run on a CPU
}
