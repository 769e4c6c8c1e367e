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
}
"""Reasons, as the end of a sentence, and the architectures that each holds for. In one stage they run."""

NOT_RUN = {
    "it does not write its text token by token": """
        bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert gemma-embedding
        llama-embed t5 t5encoder clip wavtokenizer-dec dream llada llada-moe rnd1 qwen3tts pockettts""",
    "it only drafts for another model, whose hidden states it reads": "eagle3 dflash gemma4-assistant",
}
"""The same, of architectures that cannot be the target in one stage either."""


def why_not_cut(architecture: str) -> str | None:
    """Why no slice of this architecture is made, as the end of a sentence; None where cutting can be tried."""
    return why_not_run(architecture) or _reason(REASONS, architecture)


def why_not_run(architecture: str) -> str | None:
    """Why it cannot be run even uncut; None where it can be tried."""
    return _reason(NOT_RUN, architecture)


def _reason(reasons: dict[str, str], architecture: str) -> str | None:
    return next((reason for reason, names in reasons.items() if architecture in names.split()), None)
