"""Which models, which layers, which settings: what was typed, else the pair's entry, else the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeinfer_cpp.cluster.tuned import known, tuned_file, tuned_for
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import LayerRange, Source, check_split, even_split, fit_split, parse_layers, split_by_shares
from pipeinfer_cpp.options import Options

if TYPE_CHECKING:
    from pipeinfer_cpp.models import Pair

UNKNOWN_CTX = 4096
"""Taken for a model's own context where its file does not tell."""
MAX_ROWS = 16


def trained_ctx(target: Source) -> int:
    """The model's own context."""
    return target.n_ctx_train or UNKNOWN_CTX


def chosen_models(options: Options) -> tuple[Pair | None, Path, Path | None]:
    """The pair's entry where one was named, and the files of target and draft (none for mode "off")."""
    from pipeinfer_cpp.models.hub import model_path

    drafting = options.drafting
    if options.target is not None:
        draft = model_path(options.draft) if drafting and options.draft is not None else None
        return None, model_path(options.target), draft
    if options.pair is None:
        raise UserError("Name a model: --pair NAME (see `pipeinfer models list`) or --target FILE.")
    from pipeinfer_cpp.models import load_registry

    pair = load_registry(Path(options.models) if options.models else None).pair(options.pair)
    if drafting and options.draft is not None:
        draft = model_path(options.draft)
    else:
        draft = pair.path("draft") if drafting and pair.draft is not None else None
    draft = draft if drafting else None
    return pair, pair.path("target"), draft


def chosen_layers(options: Options, target: Source) -> tuple[list[LayerRange], list[str]]:
    """The layers of each stage, and what the user should know of them."""
    notes: list[str] = []
    if options.layers is not None:
        ranges = parse_layers(options.layers, target.n_layers)
        check_split(target, ranges)
    else:
        shares = list(options.split) if options.split is not None else None
        wanted = (
            even_split(target.n_layers, options.n_stages)
            if shares is None
            else split_by_shares(shares, target.n_layers)
        )
        ranges, notes = fit_split(target, wanted)
    if len(ranges) != options.n_stages:
        raise UserError(f"--layers or --split gives {len(ranges)} parts, but there are {options.n_stages} stages.")
    return ranges, notes


def chosen_settings(
    options: Options, pair: Pair | None, target: Source, draft: Source | None
) -> tuple[Settings, list[str]]:
    """What was typed goes before what was tuned for these machines, then comes the pair's entry, then the defaults.
    Also what the user should know of them."""
    wanted = {
        "branches": options.branches,
        "cutoff": options.cutoff,
        "recovery": options.recovery,
        "decay": options.decay,
        "split": options.split_threshold,
        "draft_max": options.draft_max,
        "max_ahead": options.max_ahead,
        "max_rows": options.max_rows,
        "mode": options.mode,
    }
    values: dict[str, object] = {"max_rows": MAX_ROWS}
    tuned = tuned_for(options) if draft is not None else None
    by_tune = {n: v for n, v in known(tuned).items() if wanted[n] is None} if tuned is not None else {}
    for name, typed in wanted.items():
        entry = by_tune.get(name, getattr(pair.speculation, name, None) if pair is not None else None)
        chosen = typed if typed is not None else entry
        if chosen is not None:
            values[name] = chosen
    guesses = draft is not None or options.ngram
    mode = values.get("mode") or ("async" if guesses else "off")
    if not guesses and mode != "off":
        raise UserError(f"--mode {mode} needs a draft model: give --draft FILE or --draft ngram, or use --mode off.")
    if options.ngram:
        values["proposers"] = frozenset({"ngram"})
    if not guesses:
        mode = "off"
    trained = trained_ctx(target)
    if options.ctx is not None and options.ctx > trained:
        raise UserError(f"--ctx-size {options.ctx} is more than the model was trained for ({trained}).")
    n_ctx = options.ctx or trained  # what fits is chosen when the machines are known
    values.update(mode=mode, n_ctx=n_ctx, slots=options.slots, chunk=options.chunk, ablate=frozenset(options.ablate))
    notes = []
    if by_tune:
        shown = ", ".join(f"{name} {value}" for name, value in by_tune.items())
        notes = [f"As tuned for this pair on these machines ({tuned_file()}): {shown}."]
    return Settings(**values), notes  # type: ignore[arg-type]
