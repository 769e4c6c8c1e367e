"""What the scheduler makes of given drafts, in virtual time: `async` over plain pipelining and over the best `sync`.

    python scripts/bench_beyond.py                          # the whole grid, some minutes
    python scripts/bench_beyond.py --part links             # rows that are dear on the wire
    python scripts/bench_beyond.py --json new.json --against old.json

Everything that it prints is simulated: the real engine in virtual time, on recorded acceptances of the demo pairs. To
compare two engines run it in a checkout of each (`PYTHONPATH`), with the same `--traces`, and give the older one's
figures as `--against`.

Parts: grid (stages of 20 ms a row, a further one costs c of that, or as two CPUs were measured to do), links (the same
with hidden states of 8 or 32 KB a row on real links), ngram (guesses from the text itself, with and without a draft
model; the edits are files of this repository's history, each prompt the old one, the text the new one).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from agreement import DRAFT, TARGET, WEAK, load_prompts

from pipeinfer_cpp.emulation import load_cluster
from pipeinfer_cpp.engine import CostCurve, Settings
from pipeinfer_cpp.lab.recording import Recording, acceptance, load, record, save
from pipeinfer_cpp.lab.simulation import Task, Virtual
from pipeinfer_cpp.net.transit import LinkSpeed
from pipeinfer_cpp.sim.worlds import Replay

STAGE, DRAFT_S = 0.020, 0.004
PAIRS = {"weak": (WEAK, "completion"), "text": (DRAFT, "completion"), "chat": (DRAFT, "chat")}
MEASURED = {
    "xeon": {1: 1.0, 2: 0.92, 3: 0.97, 4: 1.13, 6: 1.9, 8: 1.8, 16: 3.1},
    "zen": {1: 1.0, 2: 2.4, 4: 2.9, 8: 3.9, 16: 6.5},
}
"""Four threads of a Xeon with AVX-512, a 6B model; one thread of a Zen 4 server core; both Q8_0."""
STAGES, FURTHER = (4, 8, 16), ("0.0", "0.1", "0.3", "1.0", "xeon", "zen")
WIRES = (("gigabit", 32), ("10mbit", 32), ("10mbit", 8))
Figures = dict[str, dict[str, float]]


def curve(further: str) -> CostCurve:
    if further in MEASURED:
        return CostCurve({w: STAGE * share for w, share in MEASURED[further].items()})
    return CostCurve.linear(STAGE, STAGE * float(further))


def cells(part: str) -> Iterator[tuple[str, str, Virtual]]:
    """Name, pair, machine."""
    for n in STAGES:
        for further in FURTHER if part == "grid" else ("0.0", "0.3"):
            curves = [curve(further)] * n
            wires = [("fast", 0)] if part == "grid" else WIRES
            for wire, kb in wires:
                links = load_cluster(wire, n).links if kb else [LinkSpeed(latency_ms=0.2)] * (n + 1)
                for pair in PAIRS:
                    name = f"{n} {further} {wire} {kb}K" if kb else f"{n} {further}"
                    yield name, pair, Virtual(curves, links, kb << 10, DRAFT_S)


def recordings(pair: str, folder: Path, n_prompts: int, n: int) -> list[Recording]:
    """As `agreement.py` records them, kept in the folder. Prompts with short answers are left out."""
    path = folder / f"{pair}-{n_prompts}x{n}.json"
    if not path.exists():
        from pipeinfer_cpp.llama.vocabulary import Vocabulary

        draft, kind = PAIRS[pair]
        vocabulary, found = Vocabulary(TARGET), []
        for row in load_prompts(kind, None):
            prompt = vocabulary.tokenize(row["text"], begin=True)
            found += [r for r in record(TARGET, draft, [prompt], n, vocabulary.eog) if len(r.text) >= n // 2]
            if len(found) == n_prompts:
                break
        folder.mkdir(parents=True, exist_ok=True)
        save(path, found)
    return load(path)


def edits(folder: Path, n_files: int, n: int) -> list[Task]:
    """The last files that a commit changed in a few lines: the old one is the prompt, with the new one's beginning
    up to shortly before its first change; n tokens of that follow."""
    path = folder / f"edits-{n_files}x{n}.json"
    if not path.exists():
        from pipeinfer_cpp.llama.vocabulary import Vocabulary

        vocabulary, found = Vocabulary(TARGET), []
        for commit, name in changed_files():
            old, new = (vocabulary.tokenize(shown(f"{at}:{name}")) for at in (f"{commit}~", commit))
            same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
            begin = max(same - n // 3, 8)
            if 300 <= len(old) <= 4000 and same > 16 and begin + n < len(new):
                found.append([[*old, *new[: begin + n]], len(old) + begin])
            if len(found) == n_files:
                break
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return [Task(Replay([*text, -1], {}), n_prompt, n) for text, n_prompt in json.loads(path.read_text())]


def git(*args: str) -> str:
    return subprocess.run(["git", *args], capture_output=True, text=True, check=True).stdout


def shown(what: str) -> str:
    return git("show", what)


def changed_files() -> Iterator[tuple[str, str]]:
    """(commit, name) of Python files that were changed, the newest first."""
    for commit in git("log", "--no-merges", "--format=%H", "-n", "100").split():
        for line in git("show", "--format=", "--diff-filter=M", "--numstat", commit, "--", "*.py").splitlines():
            added, removed, name = line.split("\t")
            if 1 <= int(added) + int(removed) <= 30:
                yield commit, name


def proposers(tasks: dict[str, list[Task]], n_prompts: int, n: int, folder: Path) -> str:
    """Over plain pipelining: each proposer alone, and both."""
    rows = [["stages", "further row", "text", "draft", "n-gram", "both"], ["---"] * 6]
    for stages in STAGES:
        for further in ("0.0", "0.1", "0.3", "1.0"):
            machine = Virtual([curve(further)] * stages, [LinkSpeed(latency_ms=0.2)] * (stages + 1), 0, DRAFT_S)
            for kind, own in {"edits": edits(folder, n_prompts, n), **tasks}.items():
                off = speed(machine, own[:1], mode="off")
                by = {"draft": ["draft"], "n-gram": ["ngram"], "both": ["draft", "ngram"]}
                ratios = [
                    f"{speed(machine, own, proposers=frozenset(who)) / off:.2f}"
                    if kind != "edits" or name == "n-gram"
                    else "-"
                    for name, who in by.items()
                ]
                rows.append([f"{stages}", further, kind, *ratios])
                print(*rows[-1], file=sys.stderr)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def speed(machine: Virtual, tasks: Sequence[Task], **settings: object) -> float:
    """Tokens a second over all tasks."""
    base = Settings(n_ctx=5000, max_rows=16, **settings)  # type: ignore[arg-type]
    runs = [machine.run(task, base) for task in tasks]
    return sum(m.tokens for m in runs) / sum(m.tokens / m.tokens_per_s for m in runs)


def measured(part: str, tasks: dict[str, list[Task]], against: Figures) -> Figures:
    """Tokens a second of each cell. What does not depend on the rule (`off`, `sync`) is taken from `against`."""
    found: Figures = {}
    for name, pair, machine in cells(part):
        cell, known = f"{name} {pair}", against.get(f"{name} {pair}", {})
        off = known.get("off") or speed(machine, tasks[pair][:1], mode="off")
        sync = known.get("sync") or max(
            speed(machine, tasks[pair], mode="sync", draft_max=k) for k in (1, 2, 3, 4, 6, 8)
        )
        found[cell] = {"off": off, "sync": sync, "async": speed(machine, tasks[pair], mode="async")}
        print(f"{cell:28}", *(f"{kind} {value:6.2f}" for kind, value in found[cell].items()), file=sys.stderr)
    return found


def table(found: Figures, against: Figures, accepted: dict[str, float]) -> str:
    head = ["stages", "further row", "wire", "a", "off, tokens/s", "sync / off", "async / off", "async / sync"]
    rows = [[*head, "before", "now / before"] if against else head]
    rows.append(["---"] * len(rows[0]))
    for cell, of in found.items():
        stages, further, *wire, pair = cell.split()
        ratios = [of["sync"] / of["off"], of["async"] / of["off"], of["async"] / of["sync"]]
        if against:
            ratios += [against[cell]["async"] / of["off"], of["async"] / against[cell]["async"]]
        row = [stages, further, ", ".join(wire) or "fast", f"{accepted[pair]:.2f}", f"{of['off']:.2f}"]
        rows.append(row + [f"{ratio:.2f}" for ratio in ratios])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if against:
        gains = [of["async"] / against[cell]["async"] for cell, of in found.items()]
        mean = math.exp(sum(map(math.log, gains)) / len(gains))
        lines += ["", f"Over the engine before: {mean:.3f} in the mean, {min(gains):.3f} to {max(gains):.3f}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=["grid", "links", "ngram"])
    parser.add_argument("--traces", type=Path, default=Path(tempfile.gettempdir()) / "bench-beyond")
    parser.add_argument("--prompts", type=int, default=6, help="of each pair (default 6)")
    parser.add_argument("--tokens", type=int, default=120, help="of each text (default 120)")
    parser.add_argument("--json", type=Path, help="keep the figures here; parts that it holds already stay")
    parser.add_argument("--against", type=Path, help="figures of another engine")
    args = parser.parse_args()
    traces = {pair: recordings(pair, args.traces, args.prompts, args.tokens) for pair in PAIRS}
    accepted = {pair: acceptance(found) for pair, found in traces.items()}
    tasks = {pair: [Task(r.world(), len(r.prompt), len(r.text)) for r in found] for pair, found in traces.items()}
    figures = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    against = json.loads(args.against.read_text()) if args.against else {}
    for part in args.part or ["grid", "links", "ngram"]:
        if part == "ngram":
            print(f"\nSIMULATED: {part}\n\n{proposers(tasks, args.prompts, args.tokens, args.traces)}")
            continue
        if part not in figures:
            figures[part] = measured(part, tasks, against.get(part, {}))
            if args.json:
                args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"\nSIMULATED: {part}\n\n{table(figures[part], against.get(part, {}), accepted)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
