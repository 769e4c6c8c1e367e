"""Text to token ids, where a vocabulary has wishes of its own."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFWriter
from tiny_models import Tiny, _add_hyperparameters, _add_vocabulary

from pipeinfer_cpp.llama.vocabulary import Vocabulary

EOS = 2


def test_no_end_token_behind_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "ends.gguf"
    writer = GGUFWriter(str(path), "llama")
    _add_hyperparameters(writer, Tiny())
    _add_vocabulary(writer, Tiny())
    writer.add_add_eos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    vocabulary = Vocabulary(path)
    assert EOS not in vocabulary.tokenize("and the", begin=True)
    assert vocabulary.tokenize("and<|im_end|>", begin=True)[-1] == EOS  # written by whoever asks
    vocabulary.close()
