"""Can llama.cpp read a model's vocabulary? It ends its process over an odd one, so another process tries it first:
`python -m pipeinfer_cpp.proof.vocabulary FILE`. The answer is remembered."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf import Source
from pipeinfer_cpp.llama.library import library_build
from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.proof.child import ended_from_outside, last_words, run
from pipeinfer_cpp.system.files import appearing, cache_folder

_TEXT = "One\n  two, 3: d\u00e9j\u00e0 \u4e16\u754c \U0001f600 <|x|>\t\x01"
"""Words, spaces, a line break, other alphabets, bytes of their own: every way into a tokenizer."""
_SECONDS = 60.0


def check_vocabulary(source: Source) -> None:
    """Raise UserError, with llama.cpp's reason, where it ends over the vocabulary or cannot use it.

    Takes as long as reading the vocabulary once (and the start of a process), or a few milliseconds where the same
    one was found good before.
    """
    record = f"vocabulary-{_signature(source)}"
    with contextlib.suppress(OSError, UserError):  # a cache that cannot be used costs time only
        if (cache_folder("proofs") / record).is_file():
            return
    command = [sys.executable, "-m", "pipeinfer_cpp.proof.vocabulary", str(source.path)]
    try:
        done = run(command, _SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"llama.cpp has not finished reading the vocabulary of {source.path} within {_SECONDS:.0f} s: try again "
            "when this machine is less busy, or with another conversion of the model."
        ) from None
    if (by := ended_from_outside(done)) is not None:
        raise PipeInferError(
            f"The process that tries the vocabulary of {source.path} was ended by {by} before it was done: "
            "start again. Where nobody ended it, the system did: memory is short."
        )
    if done.returncode:
        raise UserError(
            f"llama.cpp cannot use the vocabulary of {source.path}: {last_words(done.stderr)}. "
            "Get the file again, or another conversion of the model."
        )
    with contextlib.suppress(OSError, UserError), appearing(cache_folder("proofs") / record):
        pass


def _signature(source: Source) -> str:
    """32 hex digits that differ wherever the vocabulary or the library does."""
    digest = hashlib.sha256(library_build().encode())
    for key in source.keys.values():
        if key.name.startswith("tokenizer.") and "chat_template" not in key.name:
            digest.update(key.name.encode() + b"\0" + key.raw())
    return digest.hexdigest()[:32]


def _try(path: Path) -> None:
    vocabulary = Vocabulary(path)
    ids = vocabulary.tokenize(_TEXT, begin=True)
    vocabulary.tokenize(_TEXT, special=False)
    vocabulary.text([*ids, *range(vocabulary.size)])
    vocabulary.name(vocabulary.bos)
    vocabulary.name(vocabulary.eos)
    assert vocabulary.eog is not None
    vocabulary.close()


if __name__ == "__main__":
    try:
        _try(Path(os.fsdecode(sys.argv[1])))
    except UserError as error:
        sys.exit(str(error).partition(": ")[2])
