"""Vocabularies over which llama.cpp ends its process: never ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from gguf import GGUFWriter
from tiny_models import Tiny, build

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.proof.vocabulary import check_vocabulary

Spoil = Callable[[GGUFWriter], None]


def _set(writer: GGUFWriter, name: str, value: object) -> None:
    writer.kv_data[0][f"tokenizer.ggml.{name}"].value = value


def twice(writer: GGUFWriter) -> None:
    tokens = tiny_models.vocabulary()
    _set(writer, "tokens", [*tokens[:-1], tokens[-2]])


def no_bytes(writer: GGUFWriter) -> None:
    """A SentencePiece vocabulary in which no token stands for a byte: llama.cpp throws when a text needs one."""
    _set(writer, "model", "llama")
    writer.add_token_scores([0.0] * len(tiny_models.vocabulary()))


def short_types(writer: GGUFWriter) -> None:
    _set(writer, "token_type", [3, 1])


ODD: dict[str, tuple[Spoil, str]] = {
    "a token twice": (twice, r"id_to_token\.size\(\) == token_to_id\.size\(\)"),
    "no bytes": (no_bytes, ": unordered_map::at"),
    "too few types": (short_types, ": Index out of array bounds for toktypes"),
}


def odd(path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> Path:
    plain = tiny_models._add_vocabulary

    def spoilt(writer: GGUFWriter, tiny: Tiny) -> int:
        n_vocab = plain(writer, tiny)
        spoil(writer)
        return n_vocab

    monkeypatch.setattr(tiny_models, "_add_vocabulary", spoilt)
    return build(path, Tiny())


@pytest.mark.parametrize("name", ODD)
def test_the_command_lives_and_gives_the_reason_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spoil, reason = ODD[name]
    path = odd(tmp_path / "odd.gguf", monkeypatch, spoil)
    command = [sys.executable, "-m", "pipeinfer_cpp", "generate", "--raw", "--target", str(path), "--stages", "1"]
    done = subprocess.run([*command, "-n", "2", "the"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "cannot use the vocabulary" in done.stderr
    with pytest.raises(UserError, match=reason) as caught:
        check_vocabulary(Source.open(path))
    assert "\n" not in str(caught.value)


def test_a_good_one_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "cache"))
    source = Source.open(build(tmp_path / "good.gguf", Tiny()))
    check_vocabulary(source)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    check_vocabulary(source)
    other = Source.open(build(tmp_path / "other.gguf", Tiny(extra_tokens=1)))
    with pytest.raises(FileNotFoundError):
        check_vocabulary(other)


def adds_start(writer: GGUFWriter) -> None:
    _set(writer, "add_bos_token", True)


def test_a_prompt_that_brings_its_own_start_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = odd(tmp_path / "begins.gguf", monkeypatch, adds_start)
    with Pipeline.local(target=path, stages=1) as pipeline:
        start = pipeline.vocabulary.name(pipeline.vocabulary.bos)
        own, plain = (pipeline.generate(text, max_tokens=4).wait() for text in (start + "and the", "and the"))
        assert own.n_prompt == plain.n_prompt and not plain.warnings
        assert own.warnings == ["The prompt begins with the model's start token itself and gets no second one."]
        command = [sys.executable, "-m", "pipeinfer_cpp", "generate", "--raw", "--target", str(path), "--stages", "1"]
    done = subprocess.run([*command, "-n", "2", start + "and the"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Note: The prompt begins with the model's start token itself" in done.stderr
