"""A pipeline for the length of a command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeinfer_cpp.cli.signals import undisturbed
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.ui.consoles import warn
from pipeinfer_cpp.ui.progress import opening


@contextlib.contextmanager
def opened(options: Options, *, quiet: bool = False) -> Iterator[Pipeline]:
    """Opened with bars, its warnings shown (unless `quiet`), closed whatever happens, without interruption."""
    n = options.n_stages
    what = f"Starting {n} stage{'s' if n != 1 else ''}" if isinstance(options.stages, int) else "Connecting"
    with opening(what) as report:
        pipeline = Pipeline(options, report)
    try:
        if not quiet:
            for warning in pipeline.warnings:
                warn(warning)
        yield pipeline
    finally:
        with undisturbed():
            pipeline.close()
