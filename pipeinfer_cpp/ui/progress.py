"""What takes long, as bars on stderr (nothing where that is no terminal)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.system.reports import Report
from pipeinfer_cpp.ui.consoles import err, escaped, shown


def _progress(columns: Sequence[ProgressColumn], *, transient: bool = False) -> Progress:
    console = err()
    return Progress(
        *columns,
        console=console,
        transient=transient,
        disable=not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextlib.contextmanager
def opening(what: str, *, quiet: bool = False) -> Iterator[Report]:
    """A line for `what` and one for each worker that reports; all gone at the end. What is needed of memory stays,
    also where there is no terminal, unless it is to be `quiet`."""
    name = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), name, BarColumn(bar_width=24), TimeElapsedColumn())
    with _progress(columns, transient=True) as progress:
        whole = progress.add_task(escaped(what), total=None)
        tasks: dict[str, TaskID] = {}
        doing: dict[str, str] = {}
        notes: list[str] = []

        def report(worker: str, now: str, done: int, total: int) -> None:
            if worker == "memory":
                if quiet:
                    return
                with contextlib.suppress(OSError):  # a full disk behind stderr costs the line, not the text
                    progress.console.print(shown(now, "dim"))
                return
            if worker == "note":
                notes.append(now)
                return
            if worker not in tasks:
                tasks[worker] = progress.add_task("", total=None)
            if doing.get(worker) != now:
                doing[worker] = now
                name = "" if worker == "coordinator" else f"{worker}: "
                progress.reset(tasks[worker], total=total or None, description=escaped(f"{name}{now}"))
            progress.update(tasks[worker], completed=done, total=total or None)
            progress.update(whole, description=escaped(what))

        try:
            yield report
        except PipeInferError:
            for note in notes:
                progress.console.print(shown(f"Note: {note}", "yellow"))
            raise


@contextlib.contextmanager
def transfer() -> Iterator[Callable[[str, int, int], None]]:
    """Bars by name for bytes: (name, bytes done, bytes in all; 0 where that is not known)."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with _progress(columns) as progress:
        tasks: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(escaped(name), total=None)
            progress.update(tasks[name], completed=done, total=total or None)

        yield report


@contextlib.contextmanager
def reading(after: float = 1.0) -> Iterator[Callable[[int, int], None]]:
    """A bar for a prompt that takes longer than `after` seconds to read: (tokens read, tokens in all). It is gone
    when all are read, and at the end."""
    columns = (
        TextColumn("Reading the prompt"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f} of {task.total:.0f} tokens"),
        TimeElapsedColumn(),
    )
    began = time.monotonic()
    with contextlib.ExitStack() as shown:
        bar: list[tuple[Progress, TaskID]] = []

        def report(done: int, total: int) -> None:
            if done >= total:
                shown.close()
                bar.clear()
            elif time.monotonic() - began > after:
                if not bar:
                    progress = shown.enter_context(_progress(columns, transient=True))
                    bar.append((progress, progress.add_task("", total=total)))
                bar[0][0].update(bar[0][1], completed=done)

        yield report


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for (done, in all); gone at the end."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with _progress(columns, transient=True) as progress:
        task = progress.add_task(escaped(what), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
