"""The architectures that this build of llama.cpp gives no way to cut, with the reason for each."""

from __future__ import annotations

REASONS = {
    "its layers read what several layers before them left behind": "kimi-k3",
    "its layers share four streams, per-layer inputs and a cache counted from a fixed layer": "gemma3n",
    "each layer's decay depends on its number among all of them": "minimax-01",
    "llama.cpp scales each layer by the number of layers, and no key can say another one": "minicpm3",
    "every layer reads the embedding again": "talkie",
    "its layers are gone through several times for one token": "hrm_text nanbeige",
    "every layer reads a value that the first one computed": "rwkv7 arwkv7",
    "one router layer is read by all others": "graniteswitch",
    "it does not write its text token by token": """
        bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert gemma-embedding
        llama-embed t5 t5encoder clip wavtokenizer-dec dream llada llada-moe rnd1 qwen3tts pockettts""",
    "it only drafts for another model, whose hidden states it reads": "eagle3 dflash gemma4-assistant",
}
"""Reasons, as the end of a sentence, and the architectures that each holds for."""


def why_refused(architecture: str) -> str | None:
    """Why no slice of this architecture is made, as the end of a sentence; None where cutting can be tried."""
    return next((reason for reason, names in REASONS.items() if architecture in names.split()), None)
