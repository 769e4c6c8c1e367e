"""Drafts that are found on this machine: only such as run, and never at the price of a start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_helpers import pipeinfer
from pipeline_helpers import DRAFT, TARGET

from pipeinfer_cpp import Pipeline, Sampling
from pipeinfer_cpp.gguf import Source
from pipeinfer_cpp.models.drafts import find_draft
from pipeinfer_cpp.models.registry import Registry
from pipeinfer_cpp.net.messages import ContextOptions, DraftReset, DraftRoom, DraftTurn, LoadDraft
from pipeinfer_cpp.workers.draft import Drafter


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """The demo target in a folder of its own, where nothing was fetched."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return Source.open(shutil.copy(TARGET, tmp_path / "target.gguf"))


def test_a_cache_that_cannot_be_used_hides_no_draft(target: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEINFER_CACHE", str(target.path / "cache"))
    draft = Path(shutil.copy(DRAFT, target.path.with_name("draft.gguf")))
    found = find_draft(target, Registry({}))
    assert found is not None and found.path == draft


def test_a_draft_without_tensors_is_none(target: Source) -> None:
    """Of a model's header alone, as something that was interrupted may leave it."""
    source = Source.open(DRAFT)
    content = bytearray(DRAFT.read_bytes()[: max(key.end for key in source.keys.values())])
    content[8:16] = bytes(8)  # the number of tensors
    target.path.with_name("draft.gguf").write_bytes(content.ljust(len(content) + 32, b"\0"))
    assert find_draft(target, Registry({})) is None


def test_a_draft_is_offered_only_for_a_target_that_runs(target: Source) -> None:
    shutil.copy(DRAFT, target.path.with_name("draft.gguf"))
    options = ["--target", target.path, "-n", 2, "--prompt", "Once"]
    refused = pipeinfer("generate", *options, "--stages", 13)
    assert refused.code == 2 and "is on this machine" not in refused.err
    ran = pipeinfer("generate", *options, "--stages", 1)
    assert ran.code == 0 and "use it as the draft with --draft" in ran.err
    assert "Memory needed on this machine (" in ran.err and "): stage 0 " in ran.err  # though this is no terminal


def test_a_draft_uses_the_cpu_where_only_the_stages_have_a_gpu() -> None:
    """--gpu-layers is for them too; without a backend here it would be refused."""
    options = ContextOptions(n_ctx=256, n_seq=2, chunk=64, threads=1, gpu_layers=99)
    loaded = Drafter(LoadDraft(str(DRAFT), options, 1, (2,)), lambda: False).loaded
    assert loaded.threads == 1


@pytest.mark.parametrize("n", [1, 63, 64, 200])
def test_a_first_prompt_is_read_from_its_first_token(n: int) -> None:
    """Chunk after chunk, then guessed from, however long it is."""
    options = ContextOptions(n_ctx=256, n_seq=2, chunk=64, threads=1)
    drafter = Drafter(LoadDraft(str(DRAFT), options, 1, (2,)), lambda: False)
    try:
        for order in (DraftTurn(Sampling(temp=0)), DraftReset(1, 0, tuple(range(10, 10 + n))), DraftRoom(n)):
            drafter.obey(order)
        [path] = drafter._paths.paths.values()
        assert (len(path.tokens), path.cached) == (n, 0)
        steps = [drafter.step() for _ in range(-(-n // 64))]
        assert [said is not None for said in steps] == [False] * (len(steps) - 1) + [True]
        assert (len(path.tokens), path.cached) == (n + 1, n)
    finally:
        drafter.close()


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_speculation_goes_on_behind_a_long_prompt(mode: str) -> None:
    words = "Once upon a time there was a little fox who lived in the wood. " * 10
    with Pipeline.local(pair="demo", stages=1, mode=mode) as pipeline:
        result = pipeline.generate(words, max_tokens=24, sampling=Sampling(temp=0)).wait()
    assert result.n_prompt > 64 and result.draft.accepted and not result.warnings
