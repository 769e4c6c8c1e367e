"""The runs behind the figures: emulated clusters with real processes, and the same in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeinfer_cpp.emulation import load_cluster
from pipeinfer_cpp.engine import Settings
from pipeinfer_cpp.engine.settings import TECHNIQUES
from pipeinfer_cpp.gguf import Source, even_split
from pipeinfer_cpp.lab.arms import parse_arms
from pipeinfer_cpp.lab.bench import compare
from pipeinfer_cpp.lab.cells import tokens_of
from pipeinfer_cpp.lab.measurement import Measurement, pooled
from pipeinfer_cpp.lab.recording import Recording, acceptance, record
from pipeinfer_cpp.lab.simulation import Task, Virtual
from pipeinfer_cpp.lab.suites import SUITES
from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.models import load_registry
from pipeinfer_cpp.pipeline import Pipeline

PAIRS = {"aligned": "demo", "poorly aligned": "demo-weak"}
LARGE_ROW = 4 * 8192
"""Bytes of a 70B model's hidden state: what the simulated links carry."""
Arms = dict[str, Measurement]
Say = Callable[[str], None]


class Pair:
    """A pair's recorded acceptances."""

    def __init__(self, label: str, n_prompts: int, n_tokens: int) -> None:
        self.label, self.name, self.n_tokens, self.n_prompts = label, PAIRS[label], n_tokens, n_prompts
        pair = load_registry().pair(self.name)
        target, draft = pair.path("target"), pair.path("draft")
        self.n_layers = Source.open(target).n_layers
        vocabulary = Vocabulary(target)
        prompts = [vocabulary.tokenize(text, begin=True) for text in SUITES["story"].prompts[:n_prompts]]
        self.recordings: list[Recording] = record(target, draft, prompts, n_tokens, vocabulary.eog)
        vocabulary.close()

    @property
    def acceptance(self) -> float:
        return acceptance(self.recordings)

    @property
    def tasks(self) -> list[Task]:
        return [Task(r.world(), len(r.prompt), len(r.text)) for r in self.recordings]


def virtual(cluster: str, n: int, row_bytes: int = LARGE_ROW) -> Virtual:
    nodes = load_cluster(cluster, n)
    layers = [end - first for first, end in even_split(max(80, n), n)]
    return Virtual(nodes.curves(layers), nodes.links, row_bytes, nodes.draft_ms / 1000)


def simulated(pair: Pair, cluster: str, n: int, row_bytes: int = LARGE_ROW) -> Arms:
    """`off`, `sync` at its best draft length, `async`."""
    arms = virtual(cluster, n, row_bytes).race(pair.tasks, Settings(n_ctx=512, max_rows=16))
    return {name.partition(",")[0]: m for name, m in arms.items()}


def over_fixed(pair: Pair, cluster: str, n: int, k: int) -> float:
    """How much faster `async` is than a `sync` that always drafts k tokens."""
    arms = virtual(cluster, n).race(pair.tasks, Settings(n_ctx=512, max_rows=16), lengths=[k])
    return arms["async"].tokens_per_s / arms[f"sync, draft {k}"].tokens_per_s


def best_length(pair: Pair, cluster: str, n: int) -> int:
    arms = virtual(cluster, n, 4 * 512).race(pair.tasks, Settings(n_ctx=512, max_rows=16))
    return next(int(name.rpartition(" ")[2]) for name in arms if name.startswith("sync"))


def emulated(pair: Pair, cluster: str, n: int, rounds: int, say: Say) -> tuple[Arms, dict[str, str]]:
    """The same with real llama.cpp processes and sockets; with the intervals of the speed-ups."""
    k = best_length(pair, cluster, n)
    say(f"emulated: {cluster}, {n} nodes, {pair.label} (sync drafts {k})")
    with Pipeline.local(pair=pair.name, stages=n, emulate=load_cluster(cluster, n)) as pipeline:
        found = compare(
            pipeline,
            parse_arms(f"off,sync:{k},async"),
            tokens_of(pipeline, SUITES["story"], pair.n_prompts),
            n_tokens=pair.n_tokens,
            rounds=rounds,
            configuration=[cluster, n],
        )
    if not found.same_text:
        raise SystemExit("The modes wrote different texts: no figure of this run counts.")
    return (
        {name.partition(":")[0]: m for name, m in found.arms.items()},
        {name.partition(":")[0]: str(ratio) for name, ratio in found.ratios.items()},
    )


def ablation(pair: Pair, cluster: str, n: int) -> dict[str, Measurement]:
    """`async`, then without each technique, then without any cancellation and multibuffering. Simulated."""
    machine = virtual(cluster, n)
    base = Settings(n_ctx=512, max_rows=16)
    arms: dict[str, frozenset[str]] = {"async": frozenset()}
    arms |= {f"without {name}": frozenset({name}) for name in TECHNIQUES}
    arms["without cancel and multibuffer"] = frozenset({"cancel", "multibuffer"})
    return {name: _pooled(machine, pair.tasks, replace(base, ablate=off)) for name, off in arms.items()}


def _pooled(machine: Virtual, tasks: Sequence[Task], settings: Settings) -> Measurement:
    return pooled([machine.run(task, settings) for task in tasks])
