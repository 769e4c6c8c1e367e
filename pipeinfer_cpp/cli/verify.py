"""`pipeinfer verify`: what a codec on the wire changes in this model's output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeinfer_cpp.cli import completing
from pipeinfer_cpp.cli.streams import write_json
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.net.messages import WIRES
from pipeinfer_cpp.system.machine import cores

if TYPE_CHECKING:
    from pipeinfer_cpp.lab.fidelity import Fidelity

OPENINGS = (
    "Once upon a time there was a small village at the edge of the forest, and in it lived",
    "The most important thing to know about cooking rice is",
    "Water boils when",
    "She opened the letter slowly. It said that",
    "To sort a list of numbers, first",
    "On Monday morning the teacher asked the children",
)


def verify(
    wire: Annotated[
        str,
        typer.Option(
            help="Codecs to look at: f16, bf16, q8, q4.",
            metavar="CODEC,...",
            autocompletion=completing.among(WIRES, several=True),
        ),
    ],
    pair: Annotated[
        str | None,
        typer.Option(
            help="A pair of models.toml (default: demo).", metavar="NAME", autocompletion=completing.pairs
        ),
    ] = None,
    target: Annotated[Path | None, typer.Option(help="Or a model, a GGUF.", metavar="FILE")] = None,
    models: Annotated[Path | None, typer.Option(help="A further models.toml.", metavar="FILE")] = None,
    stages: Annotated[int, typer.Option(help="Stages, so N - 1 links.", metavar="N")] = 2,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Prompts of your own, one a line.", metavar="FILE", dir_okay=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens behind each prompt.")] = 64,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of a table.")] = False,
) -> None:
    """Measure what a codec on the wire changes in this model's output, and say whether to use it.

    The whole model is loaded here, cut into slices with the codec between them.
    """
    from pipeinfer_cpp.lab.suites import own_prompts

    names = [name.strip() for name in wire.split(",")]
    for name in names:
        if name not in WIRES:
            raise UserError(f"--wire {name} is not one of {', '.join(WIRES)}.")
    if stages < 2:
        raise UserError("--stages must be at least 2: one stage has no link.")
    if not 1 <= max_tokens <= 512:
        raise UserError("--max-tokens must be between 1 and 512.")
    path = _target(pair, target, models)
    prompts = own_prompts(prompt_file) if prompt_file is not None else OPENINGS
    results = _measure(path, stages, names, prompts, max_tokens)
    if json:
        write_json(results)
        return
    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.measurements import fidelity_table

    out().print(fidelity_table(results))
    floor, *others = results
    for result in others:
        out().print(result.advice(floor), highlight=False)


def _target(pair: str | None, target: Path | None, models: Path | None) -> Path:
    if target is not None:
        if pair is not None:
            raise UserError("Give --pair or --target, not both.")
        return target
    from pipeinfer_cpp.models import load_registry

    return load_registry(models).pair(pair or "demo").path("target")


def _measure(path: Path, stages: int, wires: list[str], prompts: Sequence[str], n: int) -> list[Fidelity]:
    from pipeinfer_cpp.gguf import Source
    from pipeinfer_cpp.lab.fidelity import Chain, compare
    from pipeinfer_cpp.llama.vocabulary import Vocabulary
    from pipeinfer_cpp.net.codecs import codec
    from pipeinfer_cpp.proof.vocabulary import check_vocabulary
    from pipeinfer_cpp.ui.progress import opening

    source = Source.open(path)
    for name in wires:
        codec(name, source.n_embd)
    check_vocabulary(source)
    vocabulary = Vocabulary(path)
    tokens = [vocabulary.tokenize(text, begin=True) for text in prompts]
    tokens = [t for t in tokens if len(t) > 1]
    if not tokens:
        raise UserError("The prompts are too short: each needs two tokens or more.")
    n_ctx = -(-(max(len(t) for t in tokens) + n) // 256) * 256
    with opening("Cutting and loading") as report:
        chain = Chain(source, stages, n_ctx, cores(), lambda what, done, total: report("model", what, done, total))
    try:
        return compare(chain, stages - 1, tokens, n, wires, vocabulary.eog)
    finally:
        chain.close()
        vocabulary.close()
