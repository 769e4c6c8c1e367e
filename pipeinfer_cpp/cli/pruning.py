"""`pipeinfer models prune`: slices that nobody will miss."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeinfer_cpp.cli.streams import write_json


def prune(
    everything: Annotated[bool, typer.Option("--all", help="Remove all; they are cut again when needed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    days: Annotated[
        int, typer.Option("--unused-days", min=0, help="Remove slices that were not used for N days.", metavar="N")
    ] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for programs.")] = False,
) -> None:
    """Remove slices from the cache: those of models that are gone, of other versions, or unused for long."""
    from pipeinfer_cpp.gguf.kept import kept_slices
    from pipeinfer_cpp.models.files import size_text
    from pipeinfer_cpp.ui.consoles import out
    from pipeinfer_cpp.ui.model_lists import slices_table

    slices = kept_slices()
    going = {kept: why for kept in slices if (why := "all" if everything else kept.why_not(days)) is not None}
    freed = sum(kept.size for kept in going)
    if not dry_run:
        for kept in going:
            kept.remove()
    if as_json:
        fields = [
            {"path": kept.path, "source": kept.source, "layers": kept.layers, "size": kept.size, "used": kept.used,
             "goes": going.get(kept)}
            for kept in slices
        ]  # fmt: skip
        write_json({"slices": fields, "freed": freed})
        return
    if slices:
        out().print(slices_table(slices, going, tense="would go" if dry_run else "gone"))
    stay = sum(kept.size for kept in slices) - freed
    verb = "Would free" if dry_run else "Freed"
    typer.echo(f"{verb} {size_text(freed)}; {size_text(stay)} of slices remain.")
