"""Which drafts fit which targets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny_models import MODELS, Tiny, build, vocabulary

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source, check_pair


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build(tmp_path / "model.gguf", MODELS["llama-untied"])


def test_a_pair_of_one_vocabulary_fits(tmp_path: Path, model: Path) -> None:
    padded = build(tmp_path / "padded.gguf", Tiny("qwen3", extra_tokens=128))
    check_pair(Source.open(model), Source.open(model))
    check_pair(Source.open(model), Source.open(padded))
    check_pair(Source.open(padded), Source.open(model))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.ggml.tokens": [*vocabulary()[:70], "other", *vocabulary()[71:]]}, "token 70 is 'other'"),
        ({"tokenizer.ggml.tokens": vocabulary(129)}, "vocabulary has"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer is of kind 'llama'"),
        ({"tokenizer.ggml.add_bos_token": True}, "adds a bos token"),
        ({"tokenizer.ggml.add_eos_token": True}, "adds a eos token"),
    ],
)
def test_a_draft_of_another_vocabulary_is_refused(model: Path, change: dict[str, object], said: str) -> None:
    target, draft = Source.open(model), _with_keys(Source.open(model), change)
    for one, other in ((target, draft), (draft, target)):
        with pytest.raises(UserError, match="cannot draft") as caught:
            check_pair(one, other)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=said):
        check_pair(target, draft)


def test_a_special_token_of_another_name_is_no_difference(model: Path) -> None:
    tokens = ["<s>", *vocabulary()[1:]]
    check_pair(Source.open(model), _with_keys(Source.open(model), {"tokenizer.ggml.tokens": tokens}))


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """A key whose value is given, not read."""

    value: object

    @property
    def count(self) -> int:
        assert isinstance(self.value, list)
        return len(self.value)

    def read(self) -> object:
        return self.value


def _with_keys(source: Source, change: dict[str, object]) -> Source:
    return dataclasses.replace(source, keys=source.keys | {name: _Fixed(value) for name, value in change.items()})
