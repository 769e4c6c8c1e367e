"""Which file holds a stage's layers on this machine."""

from __future__ import annotations

from pathlib import Path

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import SLICER_VERSION, Source, cached_slice
from pipeinfer_cpp.gguf.plan_keys import SLICER, SOURCE_SHA256
from pipeinfer_cpp.net.messages import ModelRef
from pipeinfer_cpp.system.reports import StepReport


def slice_of(path: Path, first: int, end: int, report: StepReport) -> Path:
    """The model itself where one stage holds it whole, else a slice from the cache (cut now if it must be). A file
    that is that slice already is used as it is; UserError for one that is another slice."""
    source = Source.open(path)
    if SOURCE_SHA256 in source.keys:
        here = range(source.get("pipeinfer.slice.first_layer"), source.get("pipeinfer.slice.end_layer"))
        if here != range(first, end):
            raise UserError(
                f"{path.name} has layers {here.start}-{here.stop - 1}, but this stage is asked for {first}-{end - 1}: "
                "start chat or generate with the --layers that the model was cut with, and --stages in that order."
            )
        return path
    return cached_slice(source, first, end, progress=lambda done, total: report("cutting the slice", done, total))


def find_model(model: ModelRef, own: Path | None, models: Path | None, report: StepReport) -> Path:
    """This machine's copy of the coordinator's model, by content; or a slice of it, where this stage was given one.

    Looked for in this order: the file given to this stage, the pair of that name in its models.toml, the same file
    of the same repository on Hugging Face among what was fetched here, the coordinator's own path. Raises UserError
    when none has the same hash.
    """
    tried = []
    for path in _candidates(model, own, models):
        if not path.exists():
            tried.append(f"{path} (missing)")
            continue
        source = Source.open(path)
        if SOURCE_SHA256 in source.keys:
            check_slice(source)
            digest, what = source.get(SOURCE_SHA256), "a slice of another model"
        else:
            digest = source.sha256(lambda done, total: report("hashing the model", done, total))
            what = "another model"
        if digest == model.sha256:
            return path
        tried.append(f"{path} ({what}: {digest[:12]})")
    raise UserError(
        f"This machine has no copy of {Path(model.path).name} ({model.sha256[:12]}): tried {', '.join(tried)}. "
        "Copy the GGUF here and start the stage with --target FILE."
    )


def check_slice(source: Source) -> None:
    """Raise UserError for a slice that this version would have cut otherwise."""
    if "pipeinfer.slice.of_layers" in source.keys and source.get(SLICER) != SLICER_VERSION:
        raise UserError(
            f"{source.path.name} was cut by another version of pipeinfer: cut it again with this one."
        )


def _candidates(model: ModelRef, own: Path | None, models: Path | None) -> list[Path]:
    if own is not None:
        return [own]
    found = []
    if model.pair is not None:
        from pipeinfer_cpp.models import load_registry

        try:
            local = load_registry(models).pair(model.pair).target.local()
        except UserError:
            local = None
        if local is not None:
            found.append(local)
    from pipeinfer_cpp.models.hub import counterpart

    same = counterpart(model.path)
    return [*found, *([same] if same is not None else []), Path(model.path)]
