"""Whether one layer of each kind tells the same widest exact run as a whole slice, and how well it tells its cost.

    python scripts/one_layer.py [FILE.gguf ...] [--stages 1,2,3] [--kv-types q8_0,f16] [--sizes 8x1024,12x2048]

Looks at the demo target, at the files given (a real Gemma 3 270M in Q4_K_M has four quantisation types), and at the
demo target inflated to each of the sizes (layers x width). For each stage of each split it prints both answers, the
seconds that each took, and what one row costs by both. Ends with code 1 where the answers differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import pipeinfer_cpp
from pipeinfer_cpp.gguf import LayerRange, Source, cached_slice, even_split, fit_split, inflation, write_inflated

TARGET = Path(pipeinfer_cpp.__file__).parent / "models" / "demo" / "demo-target-q8_0.gguf"


@dataclass(frozen=True)
class Answer:
    """The widest exact run, milliseconds of one row and of the widest one, seconds that finding it took."""

    safe: int
    row_ms: float
    wide_ms: float
    seconds: float


def both(source: Source, layers: LayerRange, kv_type: str, threads: int) -> tuple[Answer, Answer]:
    """From one layer of each kind, then from the whole slice. The first is not looked up: the cache is new."""
    from pipeinfer_cpp.llama.selftest import WIDEST, examine
    from pipeinfer_cpp.workers.probe import Setup, probe

    setup = Setup(kv_type, True, threads, 0, 1024, WIDEST, True)
    path = str(cached_slice(source, *layers))
    began = time.monotonic()
    curve, safe = probe(source, layers, path, setup, lambda *_: None)
    small = Answer(safe, 1000 * curve[1], 1000 * curve[WIDEST], time.monotonic() - began)
    began = time.monotonic()
    context = setup.open(path)
    try:
        found = examine(context, WIDEST)
    finally:
        context.close()
    seconds = found.seconds
    return small, Answer(found.safe, 1000 * seconds[1], 1000 * seconds[WIDEST], time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--stages", default="1,2,3")
    parser.add_argument("--kv-types", default="q8_0,f16")
    parser.add_argument("--sizes", default="8x1024,12x2048")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    if given.threads > 1:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # a core that another program takes would stop all
    titles = ("widest: one layer", "whole slice", "row ms", "(whole)", "8 rows ms", "(whole)", "seconds", "(whole)")
    table = Table("model", "layers", "KV", *titles)
    differ = 0
    with tempfile.TemporaryDirectory(prefix="one-layer-") as folder:
        bigger = [inflated(size, Path(folder)) for size in given.sizes.split(",") if size]
        models = [TARGET, *given.files, *bigger]
        for i, model in enumerate(models):
            source = Source.open(model)
            for kv_type in given.kv_types.split(","):
                os.environ["PIPEINFER_CACHE"] = f"{folder}/{i}-{kv_type}"
                for n in map(int, given.stages.split(",")):
                    for layers in fit_split(source, even_split(source.n_layers, n))[0]:
                        one, whole = both(source, layers, kv_type, given.threads)
                        differ += one.safe != whole.safe
                        times = [(a.row_ms, a.wide_ms, a.seconds) for a in (one, whole)]
                        figures = [f"{value:.2f}" for pair in zip(*times, strict=True) for value in pair]
                        name = f"{layers[0]}-{layers[1] - 1}"
                        table.add_row(model.stem, name, kv_type, str(one.safe), str(whole.safe), *figures)
    Console(width=160).print(table)
    print(f"{differ} answers differ." if differ else "Every answer of one layer is the whole slice's.")
    return 1 if differ else 0


def inflated(size: str, folder: Path) -> Path:
    layers, width = map(int, size.split("x"))
    path = folder / f"demo-{size}.gguf"
    source = Source.open(TARGET)
    write_inflated(inflation(source, layers=max(layers, source.n_layers), width=width, ffn=4 * width), path)
    return path


if __name__ == "__main__":
    sys.exit(main())
