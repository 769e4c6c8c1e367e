"""Models that a command needs and that are not here yet."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.options import Options

if TYPE_CHECKING:
    from pipeinfer_cpp.models import ModelFile


def interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def fetch(missing: list[ModelFile]) -> None:
    """Pull files with bars."""
    from pipeinfer_cpp.models import pull
    from pipeinfer_cpp.ui.progress import transfer

    with transfer() as progress:
        for model in missing:
            pull(model, progress)


def here(given: str | Path) -> Path:
    """A path as it is; of a model's name on Hugging Face the file, fetched now if it must be."""
    from pipeinfer_cpp.models.hub import find, is_hub_name, model_path

    if is_hub_name(given):
        model = find(str(given))
        if model.local() is None:
            from pipeinfer_cpp.ui.consoles import notice

            notice(f"Fetching {model.name} ({model.size or 'size unknown'}) from Hugging Face.")
            fetch([model])
    return model_path(given)


def with_files(options: Options) -> Options:
    """The same with files in place of names on Hugging Face."""
    target = here(options.target) if options.target is not None else None
    draft = options.draft if options.draft is None or options.ngram else here(options.draft)
    return replace(options, target=target, draft=draft)


def with_draft(options: Options, *, ask: bool) -> tuple[Options, str | None]:
    """For a target without a draft: one that fits among the models on this machine, if the user takes it. Where
    nobody can be asked, a line to be shown once the target turns out to run."""
    if options.target is None or options.draft is not None or options.mode == "off":
        return options, None
    from pipeinfer_cpp.gguf import Source
    from pipeinfer_cpp.models import load_registry
    from pipeinfer_cpp.models.drafts import find_draft
    from pipeinfer_cpp.models.files import size_text

    draft = find_draft(Source.open(options.target), load_registry(Path(options.models) if options.models else None))
    if draft is None:
        return options, None
    what = f"{draft.path.name} ({size_text(draft.size)}) is on this machine and has the same vocabulary"
    if not (ask and interactive()):
        return options, f"{what}: use it as the draft with --draft {draft.path}."
    if typer.confirm(f"{what}. Use it as the draft model?", default=True, err=True):
        return replace(options, draft=draft.path), None
    return options, None


def offer_to_pull(name: str, models: Path | None) -> None:
    """Fetch what the pair lacks here, if the user says so. Raises UserError where it stays missing."""
    from pipeinfer_cpp.models import load_registry

    pair = load_registry(models).pair(name)
    missing = [model for model in (pair.target, pair.draft) if model is not None and model.local() is None]
    if not missing or any(model.path is not None for model in missing):
        return  # nothing to fetch, or a path that is wrong: opening says which
    what = " and ".join(f"{model.name} ({model.size or 'size unknown'})" for model in missing)
    if not interactive():
        raise UserError(f"The pair {name} is not on this machine: run `pipeinfer models pull {name}` first ({what}).")
    them = "are not on this machine. Fetch them" if len(missing) > 1 else "is not on this machine. Fetch it"
    if not typer.confirm(f"{what} {them} now?", default=True, err=True):
        raise UserError(f"The pair {name} needs these files: fetch them with `pipeinfer models pull {name}`.")
    fetch(missing)
