"""The process that makes one proof: `python -m pipeinfer_cpp.proof FILE 0-9,10-19 FOLDER [--trunk]`.

It prints a JSON line before each step that llama.cpp may end, saying what it means if there comes no other.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.gguf import LayerRange, Source, parse_layers
from pipeinfer_cpp.proof.chain import chained_logits, write_slices
from pipeinfer_cpp.proof.prove import Proof
from pipeinfer_cpp.proof.random_model import write_random
from pipeinfer_cpp.proof.shrink import n_experts, shrunk


def main() -> None:
    source = Source.open(sys.argv[1])
    ranges = parse_layers(sys.argv[2], source.n_layers)
    _say(Proof(outcome="untested"))
    try:
        _say(_proof(source, ranges, Path(sys.argv[3]), beyond="--trunk" not in sys.argv))
    except OSError as error:
        _say(Proof(outcome="untested", detail=f"its files could not be written: {error.strerror}"))


def _proof(source: Source, ranges: Sequence[LayerRange], folder: Path, beyond: bool) -> Proof:
    try:
        path = folder / "whole.gguf"
        keys = shrunk(source, beyond=beyond)
        write_random(path, keys, wanted=source.tensors.__contains__, n_experts=n_experts(source))
        small = Source.open(path)
        whole = chained_logits([path], small.n_vocab)
    except UserError as error:
        return Proof(outcome="untested", detail=_words(error))
    if not np.isfinite(whole).all() or whole.std() < 1e-4:
        return Proof(outcome="untested", detail="its random weights overflow")
    _say(Proof(outcome="different"))
    try:
        chained = chained_logits(write_slices(small, ranges, folder), small.n_vocab)
    except PipeInferError as error:
        return Proof(outcome="different", detail=_words(error))
    off = float(np.abs(chained - whole).max())
    if off == 0:
        return Proof(outcome="equal")
    return Proof(outcome="different", detail=f"their logits are off by {off:.2g} at a spread of {whole.std():.2g}")


def _words(error: PipeInferError) -> str:
    """What llama.cpp said of the last, without what it logged on the way and without this folder."""
    said = str(error).rpartition("error loading model: ")[2].partition("\n")[0].partition(" llama_model_load")[0]
    said = re.sub(r"\S*/whole\.gguf|\S*/(slice-\d+-\d+)\.gguf", r"\1", said)
    return said.strip().rstrip(".").removesuffix(": install the pinned version")


def _say(proof: Proof) -> None:
    print(msgspec.json.encode(proof).decode(), flush=True)


if __name__ == "__main__":
    from pipeinfer_cpp.errors import naming_options

    with naming_options():
        main()
