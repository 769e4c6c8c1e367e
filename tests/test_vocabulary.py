"""Text to token ids, where a vocabulary has wishes of its own."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFWriter
from tiny_models import Tiny, _add_hyperparameters, _add_vocabulary

from pipeinfer_cpp.llama.vocabulary import Vocabulary

EOS = 2


def test_a_prompt_that_begins_with_the_start_token_has_one(tmp_path: Path) -> None:
    path = tmp_path / "begins.gguf"
    writer = GGUFWriter(str(path), "llama")
    _add_hyperparameters(writer, Tiny())
    _add_vocabulary(writer, Tiny())
    del writer.kv_data[0]["tokenizer.ggml.add_bos_token"]
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    vocabulary = Vocabulary(path)
    start = vocabulary.name(vocabulary.bos)
    plain = vocabulary.tokenize("and the", begin=True)
    assert plain[0] == vocabulary.bos and vocabulary.bos not in plain[1:]
    assert vocabulary.tokenize(start + "and the", begin=True) == plain
    assert vocabulary.tokenize(start + start + "and the", begin=True) == [vocabulary.bos, *plain]
    assert vocabulary.tokenize(start + start) == [vocabulary.bos] * 2  # no start is asked for
    vocabulary.close()


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
