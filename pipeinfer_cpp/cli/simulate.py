"""`pipeinfer simulate`: a cluster in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeinfer_cpp.cli import completing
from pipeinfer_cpp.cli.streams import write_json
from pipeinfer_cpp.emulation import PRESETS
from pipeinfer_cpp.errors import UserError

if TYPE_CHECKING:
    from pipeinfer_cpp.lab.simulation import Task


def simulate(
    cluster: Annotated[
        str,
        typer.Argument(
            help="A preset or a cluster.toml.", metavar="NAME|FILE", autocompletion=completing.among(PRESETS)
        ),
    ] = "gigabit",
    stages: Annotated[int | None, typer.Option(help="Nodes, 1 to 128 (default: the cluster's).", metavar="N")] = None,
    acceptance: Annotated[
        float | None, typer.Option(help="Share of right drafts, each by itself (default: 0.7).", metavar="A")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Or a recording of `pipeinfer bench --record`.", metavar="FILE")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="Tokens to generate.")] = 400,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt (without --replay).")] = 64,
    layers: Annotated[
        int | None, typer.Option(help="Layers of the model, where nodes have ms_per_layer (default: 80 or more).")
    ] = None,
    width: Annotated[int, typer.Option(help="Its hidden states' width.")] = 8192,
    wire: Annotated[str, typer.Option(help="How they travel: f32, f16, bf16, q8, q4.", metavar="CODEC")] = "f32",
    draft_ms: Annotated[float | None, typer.Option(help="The draft's time for a token.", metavar="MS")] = None,
    branches: Annotated[int, typer.Option(help="Paths of the token tree.")] = 1,
    max_rows: Annotated[int, typer.Option(help="Rows of the widest run.")] = 16,
    ablate: Annotated[str, typer.Option(help="Techniques switched off.", metavar="TECHNIQUE,...")] = "",
    seed: Annotated[int, typer.Option(help="Of the acceptances.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Drive the real engine on a cluster that is only arithmetic. Everything it prints is simulated.

    `off`, `async` and the best `sync` of draft lengths 1 to 8, side by side, with the analytic limits.
    """
    from pipeinfer_cpp.emulation import load_cluster
    from pipeinfer_cpp.engine.settings import TECHNIQUES, Settings
    from pipeinfer_cpp.gguf import even_split
    from pipeinfer_cpp.lab.limits import limits
    from pipeinfer_cpp.lab.simulation import Virtual, guessed
    from pipeinfer_cpp.net.codecs import codec

    off = frozenset(name for name in ablate.split(",") if name)
    rules = [
        (stages is None or 1 <= stages <= 128, "--stages must be between 1 and 128."),
        (acceptance is None or 0 <= acceptance <= 1, "--acceptance must be between 0 and 1."),
        (acceptance is None or replay is None, "Give --acceptance or --replay, not both."),
        (2 <= tokens <= 20000, "--tokens must be between 2 and 20000."),
        (1 <= prompt <= 20000, "--prompt must be between 1 and 20000."),
        (width > 0, "--width must be at least 1."),
        (draft_ms is None or draft_ms > 0, "--draft-ms must be more than 0."),
        (1 <= branches <= 16, "--branches must be between 1 and 16."),
        (1 <= max_rows <= 64, "--max-rows must be between 1 and 64."),
        (off <= set(TECHNIQUES), f"--ablate takes {', '.join(TECHNIQUES)}."),
    ]
    for holds, sentence in rules:
        if not holds:
            raise UserError(sentence)
    nodes = load_cluster(cluster, stages)
    curves = nodes.curves([end - first for first, end in even_split(layers or max(80, nodes.n_stages), nodes.n_stages)])
    row_bytes = codec(wire, width).row_bytes(width)
    a, tasks = _tasks(acceptance, replay, prompt, tokens, seed)
    n_ctx = max(len(task.world.text) for task in tasks) + 64
    draft_s = (draft_ms if draft_ms is not None else nodes.draft_ms) / 1000
    base = Settings(n_ctx=n_ctx, max_rows=max_rows, branches=branches, ablate=off)
    arms = Virtual(curves, nodes.links, row_bytes, draft_s).race(tasks, base)
    found = limits(
        curves,
        nodes.links,
        row_bytes,
        draft_s,
        guessed(tasks, branches > 1),
        max_rows,
        n_tokens=sum(task.n_tokens for task in tasks) / len(tasks),
        ahead=base.max_ahead,
    )
    if json:
        write_json({"arms": arms, "limits": found, "acceptance": a})
        return
    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.measurements import limits_lines, measurements_table

    title = f"SIMULATED: {nodes.name}, {nodes.n_stages} nodes, acceptance {a:.2f}"
    first = next(iter(arms.values())).tokens_per_s
    ratios = {name: f"{m.tokens_per_s / first:.2f} x" for name, m in arms.items()}
    out().print(measurements_table(arms, title, ratios))
    for line in limits_lines(found, arms["async"].tokens_per_s):
        out().print(line, highlight=False)


def _tasks(a: float | None, replay: Path | None, prompt: int, tokens: int, seed: int) -> tuple[float, list[Task]]:
    """The acceptance, and what is to be generated."""
    from pipeinfer_cpp.lab import recording
    from pipeinfer_cpp.lab.simulation import Task
    from pipeinfer_cpp.sim.worlds import independent

    if replay is not None:
        found = recording.load(replay)
        tasks = [Task(r.world(), len(r.prompt), min(len(r.text), tokens)) for r in found if len(r.text) > 1]
        if not tasks:
            raise UserError(f"{replay} has no text of two tokens or more.")
        return recording.acceptance(found), tasks
    share = 0.7 if a is None else a
    return share, [Task(independent(prompt + tokens + 20, share, seed), prompt, tokens)]
