"""Why an architecture that llama.cpp knows is not cut here (yet)."""

from __future__ import annotations

_REASONS = {
    "its recurrent state cannot be rolled back after a rejected draft": """
        mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7 jamba falcon-h1 plamo2 granitehybrid lfm2 lfm2moe nemotron_h
        nemotron_h_moe qwen3next kimi-linear bailingmoe3 kimi-k3 glm5-next qwen35 qwen35moe qwen4exp deepseek4
        minimax-01""",
    "its layers read the token ids too, and a later stage gets only hidden states": "gemma3n gemma4",
    "llama.cpp scales the hidden states that a slice takes in as if they were embeddings": """
        gemma gemma2 afmoe minicpm minicpm3 granite granitemoe granite_swa graniteswitch grok""",
    "its layers differ by their number (sliding windows or missing rope), and no tested rule rewrites that pattern": """
        cohere2 cohere2moe exaone4 exaone-moe gpt-oss laguna llama4 mellum olmo2 phi3 plamo3 smallthinker smollm3""",
    "its first layers differ from the rest, and no tested rule counts them for a slice": """
        bailingmoe bailingmoe2 deepseek deepseek2 deepseek2-ocr deepseek32 dots1 ernie4_5-moe glm4moe glm-dsa""",
    "it does not write its text token by token": """
        bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert gemma-embedding
        llama-embed t5encoder clip wavtokenizer-dec dream llada llada-moe rnd1""",
}


def why_refused(architecture: str) -> str:
    """The reason, as the end of a sentence, why no slice of this architecture is made."""
    for reason, names in _REASONS.items():
        if architecture in names.split():
            return reason
    return "no test proves that its slices compute what the whole model does"
