"""A pipeline for the length of a command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeinfer_cpp.cli.signals import undisturbed
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.ui.progress import opening


@contextlib.contextmanager
def opened(options: Options) -> Iterator[Pipeline]:
    """Opened with bars, closed whatever happens, without interruption."""
    n = options.n_stages
    what = f"Starting {n} stage{'s' if n != 1 else ''}" if isinstance(options.stages, int) else "Connecting"
    with opening(what) as report:
        pipeline = Pipeline(options, report)
    try:
        yield pipeline
    finally:
        with undisturbed():
            pipeline.close()
