"""How long a pipeline takes from the command to its first token, by its parts.

    python scripts/start_up.py [FILE.gguf ...] [--stages 4] [--sizes 32x4096x11008,40x5120x13824] [--folder DIR]

Starts pipelines of the demo target, of the files given, and of the demo target inflated to each of the sizes (layers x
width x FFN: 6 and 12 billion parameters by default, which take 25 GB of disk with their slices). Each starts in a
cache of its own, twice: the first start cuts and tests, the second finds all that. Needs no network.

The times are seconds since the command was typed; the parts overlap. `cutting` is the pass that hashes the model and
writes the slices, `loading` the slowest stage's, `self-test` from the first stage's beginning to the last one's end.
What is expected: the first start takes no more than cutting + 10 s, the second no more than loading + 3 s, and the
self-test no more than 3 s, whatever the size. Ends with code 1 where it is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

TARGET = Path(__file__).resolve().parents[1] / "pipeinfer_cpp" / "models" / "demo" / "demo-target-q8_0.gguf"
CUTTING, LOADING, TESTING = "cutting the slice", "loading the layers", "testing exactness"


@dataclass(frozen=True)
class Start:
    """One start: seconds of its parts, and of all until the first token."""

    imports: float
    cutting: float
    loading: float
    testing: float
    ready: float
    first_token: float
    text: str

    @staticmethod
    def of(events: list[tuple[float, str, str]], text: str) -> Start:
        """From what was reported: (seconds since the command, worker, what it began)."""
        spans: dict[tuple[str, str], tuple[float, float]] = {}
        doing: dict[str, tuple[str, float]] = {}
        for at, worker, what in events:
            if worker in doing:
                before, since = doing[worker]
                spans[worker, before] = (min(since, spans.get((worker, before), (since, 0.0))[0]), at)
            doing[worker] = (what, at)

        def all_of(*names: str) -> list[tuple[float, float]]:
            return [span for (_, name), span in spans.items() if name in names]

        def over(found: list[tuple[float, float]]) -> float:
            return max(end for _, end in found) - min(begin for begin, _ in found) if found else 0.0

        loading = max((end - begin for begin, end in all_of(LOADING)), default=0.0)
        tests = all_of(TESTING, "waiting for another stage's test")
        at = {what: at for at, _, what in events}
        return Start(
            at["imported"], over(all_of(CUTTING)), loading, over(tests), at["open"], at["first token"], text
        )


def start(model: Path, stages: int, cache: str) -> Start:
    """In a process of its own, as a command would be."""
    command = [sys.executable, __file__, "--one", str(model), "--stages", str(stages)]
    root = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, "PIPEINFER_CACHE": cache, "BEGAN": repr(time.time())}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    said = json.loads(done.stdout)
    return Start.of(said["events"], said["text"])


def one(model: Path, stages: int) -> None:
    """The child: start as the commands do, write a few tokens, tell what happened when."""
    from pipeinfer_cpp.cluster.crew import Crew
    from pipeinfer_cpp.options import Options

    options = Options(target=model, stages=stages)
    crew = Crew.of(options)
    from pipeinfer_cpp.pipeline import Pipeline
    from pipeinfer_cpp.sampling import Sampling

    began = float(os.environ["BEGAN"])
    events: list[tuple[float, str, str]] = []

    def note(worker: str, what: str, *_: int) -> None:
        last = next((event for event in reversed(events) if event[1] == worker), None)
        if last is None or last[2] != what:
            events.append((time.time() - began, worker, what))

    note("command", "imported")
    with Pipeline(options, note, crew) as pipeline:
        note("command", "open")
        text = ""
        for token in pipeline.generate("Once upon a time", max_tokens=8, sampling=Sampling(temp=0)):
            note("command", "first token")
            text += token.text
    json.dump({"events": events, "text": text}, sys.stdout)


def inflated(size: str, folder: Path) -> Path:
    from pipeinfer_cpp.gguf import Source, inflation, write_inflated

    layers, width, ffn = map(int, size.split("x"))
    path = folder / f"demo-{size}.gguf"
    if not path.exists():
        write_inflated(inflation(Source.open(TARGET), layers=layers, width=width, ffn=ffn), path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--sizes", default="32x4096x11008,40x5120x13824")
    parser.add_argument("--folder", type=Path, help="where to put models and slices (default: a temporary folder)")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one, given.stages)
        return 0
    table = Table(
        "model", "GB", "start", "imports", "cutting", "loading", "self-test", "ready", "first token", "expected",
        title=f"{given.stages} stages, {len(os.sched_getaffinity(0))} cores, seconds",
    )  # fmt: skip
    failed = 0
    with tempfile.TemporaryDirectory(prefix="start-up-", dir=given.folder) as temporary:
        folder = Path(temporary)
        for model in (TARGET, *given.files, *filter(None, given.sizes.split(","))):
            path = model if isinstance(model, Path) else inflated(model, folder)
            first, second = (start(path, given.stages, f"{folder}/cache-{path.stem}") for _ in range(2))
            assert first.text == second.text
            for name, found, limit in (
                ("first", first, first.cutting + 10),
                ("second", second, second.loading + 3),
            ):
                kept = found.first_token <= limit and found.testing <= 3
                failed += not kept
                parts = (found.imports, found.cutting, found.loading, found.testing, found.ready, found.first_token)
                what = f"{'yes' if kept else 'NO'}: total <= {limit:.1f}, self-test <= 3"
                table.add_row(path.stem, f"{path.stat().st_size / 1e9:.2f}", name, *(f"{x:.2f}" for x in parts), what)
            Console(width=150).print(table)
            if not isinstance(model, Path):
                path.unlink()
                for left in folder.glob(f"cache-{path.stem}/slices/*.gguf"):
                    left.unlink()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
