"""`pipeinfer trace`: a trace as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeinfer_cpp.errors import UserError


def trace(
    file: Annotated[Path, typer.Argument(help="What `pipeinfer generate --trace` wrote.", metavar="FILE")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A picture (.png, .svg, .pdf: extra `plots`), or a page (.html).")
    ] = Path("timeline.html"),
    begin: Annotated[float, typer.Option("--from", help="Seconds at which to begin.", metavar="S")] = 0.0,
    end: Annotated[float | None, typer.Option("--to", help="And to end.", metavar="S")] = None,
    width: Annotated[float, typer.Option(help="Of a picture, in inches.")] = 14.0,
) -> None:
    """Draw who computed what when: the draft worker on top, the stages, the tokens. Colours say what became of runs."""
    from pipeinfer_cpp.lab.gantt import check, draw
    from pipeinfer_cpp.lab.timeline import read_timeline

    if not 3 <= width <= 100:
        raise UserError("--width must be between 3 and 100.")
    timeline = read_timeline(file)
    if begin < 0 or (end is not None and end <= begin):
        raise UserError("--from and --to must be seconds, the second one later than the first.")
    if begin >= timeline.length > 0:
        raise UserError(f"--from {begin:g} is beyond the end of the trace ({timeline.length:.3f} seconds).")
    check(output)
    if begin or end is not None:
        timeline = timeline.cut(begin, end if end is not None else timeline.length)
    draw(timeline, output, width)
    typer.echo(str(output))
