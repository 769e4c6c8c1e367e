"""A pipeline for the length of a command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pipeinfer_cpp.cli.fetching import with_draft, with_files
from pipeinfer_cpp.cli.signals import undisturbed
from pipeinfer_cpp.cluster.crew import Crew
from pipeinfer_cpp.options import Options

if TYPE_CHECKING:
    from pipeinfer_cpp.pipeline import Pipeline


@contextlib.contextmanager
def opened(
    options: Options, drafts: Literal["ask", "tell", "none"] = "none", *, quiet: bool = False
) -> Iterator[Pipeline]:
    """Opened with bars, closed whatever happens, without interruption. Models that are named as on Hugging Face
    are fetched first; `drafts`: whether a draft that is here is offered where none was named."""
    options = with_files(options)
    hint = None
    if drafts != "none":
        options, hint = with_draft(options, ask=drafts == "ask")
    options.check()
    crew = Crew.of(options)  # before what takes long to import
    try:
        from pipeinfer_cpp.pipeline import Pipeline
        from pipeinfer_cpp.ui.consoles import notice, tell
        from pipeinfer_cpp.ui.progress import opening

        n = options.n_stages
        what = f"Starting {n} stage{'s' if n != 1 else ''}" if isinstance(options.stages, int) else "Connecting"
        with opening(what, quiet=quiet) as report:
            pipeline = Pipeline(options, report, crew)
        pipeline.on_notice = tell
        pipeline.show()
    except BaseException:
        crew.close()
        raise
    try:
        if hint is not None and not quiet:
            notice(hint)
        yield pipeline
    finally:
        with undisturbed():
            pipeline.close()
