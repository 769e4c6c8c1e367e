"""What caches hold, from the header alone, against what llama.cpp allocates for tiny models of each kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from specimens import specimen

from pipeinfer_cpp.gguf import Source
from pipeinfer_cpp.gguf.kv import layer_caches
from pipeinfer_cpp.llama import library
from pipeinfer_cpp.llama.context import SliceContext

MEGABYTE = 1 << 20
KINDS = (
    *("llama", "qwen3moe", "gemma3", "gpt-oss", "olmo2", "gemma4-31b"),
    *("gemma4-26b-a4b", "gemma4-e", "qwen35", "qwen35+mtp", "qwen35moe", "qwen3next"),
    *("nemotron_h_moe", "kimi-linear", "lfm2", "granitehybrid", "falcon-h1", "jamba"),
    *("plamo2", "mamba", "mamba2", "rwkv6", "deepseek2", "deepseek2+mtp"),
    *("deepseek2-lite", "deepseek32", "glm-dsa", "glm5-next", "deepseek4", "minimax-m3"),
    *("hy_v4", "bailingmoe3", "glm4moe+mtp", "openelm-lists", "phi3", "falcon"),
    *("deci-lists",),
)


def allocated(path: Path, cells: int, n_seq: int, kv_type: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """Megabytes of all caches and states, as llama.cpp says while it makes them."""
    monkeypatch.setattr(library, "_LOG_LINES", 100_000)
    library._log.clear()
    SliceContext(path, n_ctx=cells, n_seq_max=n_seq, kv_type=kv_type).close()
    sizes = re.findall(r"(?:KV|RS) buffer size = +([\d.]+) MiB", "".join(library._log))
    assert sizes, "llama.cpp says it in other words"
    return sum(map(float, sizes))


@pytest.mark.parametrize("name", KINDS)
def test_caches_are_as_large_as_llama_cpps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = specimen(name).build(tmp_path / "m.gguf")
    source = Source.open(path)
    caches = layer_caches(source)
    assert len(caches) == source.n_layers
    for cells, n_seq in ((2048, 3), (4096, 2)):
        told = sum(cache.bytes(cells, n_seq, "f16") for cache in caches) / MEGABYTE
        if source.architecture == "deepseek4":  # its states are not told
            told -= 4 * n_seq * sum(cache.state for cache in caches) / MEGABYTE
        assert told == pytest.approx(allocated(path, cells, n_seq, "f16", monkeypatch), rel=0.01), (cells, n_seq)


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0", "bf16", "f32"])
def test_types(kv_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = specimen("llama").build(tmp_path / "m.gguf")
    told = sum(cache.bytes(2048, 2, kv_type) for cache in layer_caches(Source.open(path))) / MEGABYTE
    assert told == pytest.approx(allocated(path, 2048, 2, kv_type, monkeypatch), rel=0.01)


@pytest.mark.parametrize("name", ["llama", "qwen35", "deepseek4", "gemma4-e"])
def test_the_cost_of_a_position(name: str, tmp_path: Path) -> None:
    caches = layer_caches(Source.open(specimen(name).build(tmp_path / "m.gguf")))
    cells = 1 << 17
    more = sum(cache.bytes(2 * cells, 1, "f16") - cache.bytes(cells, 1, "f16") for cache in caches)
    assert more / cells == pytest.approx(sum(cache.cell_bytes("f16") for cache in caches), rel=1e-6)
