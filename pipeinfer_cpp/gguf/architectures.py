"""What llama.cpp's code, and no key of a file, says of each architecture.

The rules that cut a model come from its metadata and are the same for all architectures; this table
holds the rest, read in llama.cpp's `src/models/`. An architecture that is not in it is tried with the
defaults: the proof before the first cut tells whether they hold."""

from __future__ import annotations

from dataclasses import dataclass

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.source import Source


@dataclass(frozen=True)
class Architecture:
    """The facts of one architecture.

    `reads` is the graph node that layer 0 reads, over which hidden states are written. `gives` is the node behind a
    layer, `{}` standing for the layer's number. `streams`: the residual stream is `hyper_connection.count` times as
    wide as an embedding.

    `window_period`: every so many layers one has full attention and the others a sliding window, where the file
    does not say otherwise (0: only the file says); `window_first_full`: it is the first of them, not the last;
    `window_by_key`: without the key for the window's size nothing slides; `window_in_each`: llama.cpp ends
    the process when no layer of a slice has a window.

    `recurrent` tells which layers keep a state that no part can be removed from: "" none, "all" (or a part
    of each), "interval" all but every `attention_period`-th, "no kv heads" those without any, "ratios" compressed
    caches. `bare_ffn`: layers with neither KV heads nor a state exist, recognised by their feed-forward length.

    `step`: the code counts layers by this number, so cuts lie at its multiples. `untied_never`: llama.cpp reads no
    `output.weight`, the head is always the embedding.
    """

    name: str = ""
    reads: str = "embd"
    gives: str = "l_out-{}"
    streams: bool = False
    window_period: int = 0
    window_first_full: bool = False
    window_by_key: bool = False
    window_in_each: bool = False
    recurrent: str = ""
    attention_period: int = 0
    bare_ffn: bool = False
    step: int = 1
    untied_never: bool = False


def _table() -> dict[str, Architecture]:
    A = Architecture
    rules = (
        A("afmoe", reads="inp_embd_scaled", window_period=4, window_by_key=True, step=4),
        A("bailingmoe3", reads="model.input_embed", recurrent="no kv heads"),
        A("bitnet", untied_never=True),
        A("bloom", reads="inp_norm-0"),
        A("cohere2", window_period=4, window_in_each=True, untied_never=True),
        A("cohere2moe", window_period=4, window_first_full=True, window_in_each=True),
        A("command-r", untied_never=True),
        A("deepseek4", reads="hc_init", gives="l_last-{}", streams=True, recurrent="ratios"),
        A("dots3note", window_in_each=True),
        A("exaone-moe", window_period=4, window_in_each=True),
        A("exaone4", window_period=4, window_by_key=True),
        A("falcon-h1", recurrent="all"),
        A("gemma", reads="inp_scaled", untied_never=True),
        A("gemma2", reads="inp_scaled", window_period=2, window_in_each=True, untied_never=True),
        A("gemma3", reads="inp_scaled", window_period=6, window_by_key=True),
        A("gemma4", reads="inp_scaled", window_in_each=True),
        A("glm5-next", reads="hc_init", streams=True, recurrent="no kv heads"),
        A("gpt-oss", window_period=2, window_in_each=True),
        A("gpt2", reads="inpL"),
        A("granite_swa", window_in_each=True),
        A("granitehybrid", recurrent="no kv heads"),
        A("hy_v4", reads="hc_init", streams=True),
        A("jamba", recurrent="no kv heads"),
        A("kimi-linear", reads="model.embed_tokens", recurrent="no kv heads"),
        A("laguna", window_period=4, window_first_full=True, window_by_key=True),
        A("lfm2", reads="model.embed_tokens", recurrent="no kv heads"),
        A("lfm2moe", reads="model.embed_tokens", recurrent="no kv heads"),
        A("llama4", window_period=4, window_in_each=True, step=4),
        A("mamba", recurrent="all"),
        A("mamba2", recurrent="all"),
        A("maple", window_in_each=True),
        A("kimi-k3", recurrent="no kv heads"),
        A("minimax-01", recurrent="all"),
        A("rwkv6", recurrent="all"),
        A("rwkv6qwen2", recurrent="all"),
        A("rwkv7", recurrent="all"),
        A("arwkv7", recurrent="all"),
        A("mellum", window_period=4, window_by_key=True),
        A("mimo2", window_in_each=True),
        A("mpt", reads="inpL"),
        A("muse-glimmer", reads="embd_norm", window_period=4, window_in_each=True),
        A("nemotron_h", gives="nemotron_h_block_out-{}", recurrent="no kv heads", bare_ffn=True),
        A("nemotron_h_moe", gives="nemotron_h_block_out-{}", recurrent="no kv heads", bare_ffn=True),
        A("olmo2", window_period=4, window_by_key=True),
        A("openelm", untied_never=True),
        A("plamo2", reads="embedding_output", gives="ffn_residual-{}", recurrent="no kv heads"),
        A("plamo3", window_period=8, window_by_key=True),
        A("plm", untied_never=True),
        A("qwen35", reads="model.input_embed", recurrent="interval", attention_period=4),
        A("qwen35moe", reads="model.input_embed", recurrent="interval", attention_period=4),
        A("qwen3next", reads="model.embed_tokens", recurrent="interval", attention_period=4),
        A("qwen4exp", "hc_init", "l_last-{}", streams=True, recurrent="interval", attention_period=4),
        A("smallthinker", window_period=4, window_first_full=True, window_by_key=True, step=4),
        A("smollm3", step=4),
        A("spark2_5", window_in_each=True),
        A("starcoder", reads="inpL"),
        A("step35", reads="attn_norm_in-0", gives="h_nextn", window_in_each=True),
    )
    return {rule.name: rule for rule in rules}


TABLE = _table()
"""The architectures of which the code says more than the file."""

_BY_DEFAULTS = """
    apertus arcee arctic baichuan bailingmoe bailingmoe2 chatglm codeshell cogvlm dbrx deci deepseek deepseek2
    deepseek2-ocr deepseek32 dots1 ernie4_5 ernie4_5-moe exaone falcon glm-dsa glm4 glm4moe gptneox granite
    granitemoe grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais jais2 llama maincoder minicpm
    minimax-m2 minimax-m3 mistral3 mistral4 nemotron olmo olmoe orion paddleocr pangu-embedded phi2 phi3 phimoe
    plamo qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe refact seed_oss stablelm starcoder2 xverse
"""

_UNPROVEN = {"arwkv7", "dots3note", "kimi-k3", "minimax-01", "plm", "rwkv6", "rwkv6qwen2", "rwkv7"}

SUPPORTED = frozenset([*TABLE, *_BY_DEFAULTS.split()]) - _UNPROVEN
"""The architectures that a test proves with random weights. llama: also Mistral, Mixtral, TinyLlama, SmolLM2."""


def rules_for(source: Source, *, whole: bool = False) -> Architecture:
    """The rules for a source. Raises UserError, with the reason, for a model that cannot be cut at all (`whole`: that
    cannot be run in one stage either)."""
    name = source.architecture
    reason = why_not_run(name)
    if reason:
        raise UserError(f"Models of architecture {name!r} cannot be used: {reason}.")
    reason = None if whole else why_not_cut(name)
    if reason:
        raise UserError(f"Models of architecture {name!r} cannot be cut: {reason}. Use one stage.")
    if source.get("{arch}.attention.causal") is False:
        raise UserError(f"{source.path} reads whole texts at once (its attention is not causal): it cannot be used.")
    return TABLE.get(name) or Architecture(name)


_STATES = ("ssm.conv_kernel", "ssm.state_size", "wkv.head_size", "shortconv.l_cache", "kda.head_dim")


def needs_checkpoints(source: Source) -> bool:
    """Whether a part of a sequence cannot be removed from its cache (recurrent and hybrid models), so that a
    rejected draft is undone by a checkpoint of the state. Raises UserError for a model that cannot be run."""
    rules = rules_for(source, whole=True)
    if rules.recurrent:
        return True
    known = source.architecture in SUPPORTED
    return not known and any(f"{source.architecture}.{key}" in source.keys for key in _STATES)


def row_width(source: Source) -> int:
    """Floats in a row of hidden states: more than an embedding's where there are several residual streams."""
    streams = source.get("{arch}.hyper_connection.count", 1) if rules_for(source, whole=True).streams else 1
    return source.n_embd * int(streams)


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
