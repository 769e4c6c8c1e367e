"""Models that people run, cut for 2, 3 and 4 stages: their real layers with small widths and random weights.

    python scripts/popular_models.py [--jobs 2] [NAME...]

For each it prints where it is cut, and whether the slices compute what the whole does, bit for bit. Each runs in
a process of its own. Ends with code 1 when one differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import subprocess

from popular_shapes import POPULAR, header

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source, even_split, fit_split, needs_checkpoints, text_of
from pipeinfer_cpp.proof.chain import chained_logits, write_slices
from pipeinfer_cpp.proof.random_model import write_random
from pipeinfer_cpp.proof.shrink import n_experts, shrunk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="all, unless some are named", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--here", action="store_true", help="in this process")
    given = parser.parse_args()
    names = given.names or list(POPULAR)
    if given.here:
        for name in names:
            print(line(name))
        return
    with ThreadPoolExecutor(given.jobs) as pool:
        lines = []
        for one in pool.map(_elsewhere, names):
            print(one, flush=True)
            lines.append(one)
    equal = sum(one.endswith("bit for bit") for one in lines)
    print(f"{equal} of {len(lines)} models compute the same in 2, 3 and 4 slices.")
    sys.exit(equal != len(lines))


def line(name: str) -> str:
    """What came of one model."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        source = _small(name, Path(folder))
        whole = chained_logits([source.path], source.n_vocab)
        splits, worst = [], 0.0
        for n_stages in (2, 3, 4):
            ranges, notes = fit_split(source, even_split(source.n_layers, n_stages))
            splits.append(text_of(ranges) + (" (moved)" if notes else ""))
            chained = chained_logits(write_slices(source, ranges, Path(folder)), source.n_vocab)
            worst = max(worst, float(abs(chained - whole).max()))
        kind = f"{source.architecture}, {source.n_layers} layers" + (", checkpoints" * needs_checkpoints(source))
        verdict = "bit for bit" if worst == 0 and whole.std() > 1e-3 else f"off by {worst} of {whole.std()}"
        return f"{name} ({kind}): {'; '.join(splits)}: {verdict}"


def _small(name: str, folder: Path) -> Source:
    source = header(name, folder)
    beyond = tuple(f"blk.{source.n_layers + i}." for i in range(source.n_layers_beyond))

    def wanted(tensor: str) -> bool:
        if beyond and tensor.startswith(beyond) and tensor.endswith("scale"):
            return False
        return source.architecture != "gemma2" or not tensor.endswith(_NOT_IN_GEMMA_2)

    path = folder / "model.gguf"
    return Source.open(write_random(path, shrunk(source), wanted=wanted, n_experts=n_experts(source)))


_NOT_IN_GEMMA_2 = ("attn_q.scale", "attn_q.bias", "attn_qkv.weight", "attn_qkv.bias")
"""Tensors that llama.cpp would take, and no file has."""


def _elsewhere(name: str) -> str:
    environment = os.environ | {"GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--here", name], env=environment, capture_output=True, text=True, check=False
    )
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["nothing"]
    return said[-1] if done.returncode == 0 else f"{name}: ended with code {done.returncode}: {said[-1]}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
