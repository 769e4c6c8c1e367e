"""A stage's cost curve and safe width, from one layer of each kind, remembered for every model of such layers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

import msgspec

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import LayerRange, Source, slice_plan
from pipeinfer_cpp.gguf.kinds import Sample, samples_of
from pipeinfer_cpp.gguf.needs import Model, Room
from pipeinfer_cpp.gguf.plan_keys import SOURCE_SHA256, UNKNOWN
from pipeinfer_cpp.gguf.writer import write_slices
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.library import library_build
from pipeinfer_cpp.llama.selftest import BEHIND, Found, depths_within, examine
from pipeinfer_cpp.system.files import appearing, cache_dir, locked
from pipeinfer_cpp.system.machine import cores
from pipeinfer_cpp.system.reports import StepReport
from pipeinfer_cpp.system.versions import cpu_name

VERSION = 4
DAY = 86400.0
PATIENCE = 60.0
"""Seconds that another process may take for a sample before this one looks itself."""



@dataclass(frozen=True)
class Setup:
    """What kernels depend on besides the layers, as the stage's own context has it. `exact`: whether widths are
    compared with single rows at all."""

    kv_type: str
    flash_attn: bool
    threads: int
    gpu_layers: int
    n_ctx: int
    widest: int
    exact: bool

    @property
    def depths(self) -> tuple[int, ...]:
        """Those that the stage can reach."""
        return depths_within(self.n_ctx, self.widest)

    def open(self, path: str) -> SliceContext:
        n_ctx = -(-(max(self.depths) + self.widest + BEHIND) // 256) * 256
        return SliceContext(
            path,
            n_ctx=n_ctx,
            n_seq_max=1,
            n_ubatch=64,
            kv_type=self.kv_type,
            flash_attn=self.flash_attn,
            n_threads=self.threads,
            n_gpu_layers=self.gpu_layers,
            watched=True,
        )


def probe(
    source: Source,
    layers: LayerRange,
    path: str,
    setup: Setup,
    report: StepReport,
    meanwhile: Callable[[], object] = lambda: None,
) -> tuple[dict[int, float], int]:
    """Seconds by rows of the stage that holds these layers of the model in the slice `path`, and its widest exact run
    (1 where `setup.exact` is off).

    Stages of one machine share the work: each takes samples that no other is at, and calls `meanwhile` before it waits
    for those that others are at. Nothing of the model should be loaded before: a sample takes memory too.
    """
    samples = _samples(source, layers, setup)
    found: dict[Sample, Found] = {}
    at = layers[0] % len(samples)
    waiting = samples[at:] + samples[:at]
    deadline: float | None = None
    said = -1
    while waiting:
        for sample in list(waiting):

            def tick(done: int, total: int) -> None:
                report("testing exactness", 100 * len(found) + 100 * done // total, 100 * len(samples))

            record = _record(sample, setup)
            known = _read(record)
            if known is None:
                with locked(record.with_suffix(".lock"), wait=False) as held:
                    known = _read(record)
                    late = deadline is not None and time.monotonic() > deadline
                    if known is None and (held or late or not record.parent.is_dir()):
                        tick(0, 1)
                        known = _examine(source, sample, layers, path, setup, tick)
                        _write(record, known)
            if known is not None:
                found[sample] = known
                waiting.remove(sample)
        if waiting and deadline is None:
            meanwhile()
            deadline = time.monotonic() + PATIENCE
        elif waiting:
            if said != len(found):
                said = len(found)
                report("waiting for another stage's test", said, len(samples))
            time.sleep(0.02)
    curve = {w: sum(s.share * found[s].seconds[w] for s in samples) for w in range(1, setup.widest + 1)}
    return curve, min(f.safe for f in found.values())


def forget(source: Source, layers: LayerRange, setup: Setup) -> None:
    """The next start looks at these samples again: their times are not those of the slice. Once a day at most, as
    that may be so however often they are looked at."""
    for sample in _samples(source, layers, setup):
        record = _record(sample, setup)
        with contextlib.suppress(OSError):
            if time.time() - record.stat().st_mtime > DAY:
                record.unlink()


def _samples(source: Source, layers: LayerRange, setup: Setup) -> list[Sample]:
    if SOURCE_SHA256 in source.keys:  # this stage has only its slice: no smaller one can be cut of that
        return [Sample(*layers, f"{source.get(SOURCE_SHA256)} {layers}", 1.0)]
    if 0 < setup.gpu_layers <= layers[1] - layers[0]:  # partly on the GPU: no sample is like the whole
        return [Sample(*layers, f"{source.sha256()} {layers}", 1.0)]
    return samples_of(source, *layers)


def _examine(
    source: Source,
    sample: Sample,
    layers: LayerRange,
    path: str,
    setup: Setup,
    tick: Callable[[int, int], None],
) -> Found:
    with contextlib.nullcontext(path) if sample.layers == layers else _cut(source, sample, layers) as file:
        ctx = setup.open(file)
        try:
            one_layer = sample.end - sample.first == 1
            depths = _depths(sample, setup)
            return examine(ctx, setup.widest, depths, compare=setup.exact, one_layer=one_layer, tick=tick)
        finally:
            ctx.close()


def _depths(sample: Sample, setup: Setup) -> tuple[int, ...]:
    return setup.depths if sample.deep else setup.depths[:1]


@contextlib.contextmanager
def _cut(source: Source, sample: Sample, layers: LayerRange) -> Iterator[str]:
    """The sample as a file, gone at the end: in memory where that and what llama.cpp makes of it take no more than the
    weights of the stage of these layers will, else on the disk, whose pages the system can take back."""
    plan = slice_plan(source, sample.first, sample.end)
    if plan.takes_tokens and plan.gives_logits:
        yield str(source.path)
        return
    # llama.cpp touches all of a mapped file: holes of one in memory become memory.
    taken = plan.data_bytes + sum(step.n_bytes for step in plan.tensors if step.target)
    small = taken <= Model(source).stage(*layers, Room(cells=0)).weights
    for in_memory in (small, not small):
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(_file(in_memory))
                write_slices([plan], [file], source_sha256=UNKNOWN)
            except OSError as error:  # full, or not to be had
                reason = error.strerror
                continue
            yield f"/proc/self/fd/{file.fileno()}" if sys.platform == "linux" else file.name
            return
    size = f"{plan.data_bytes / 1e6:.0f} MB"
    raise UserError(
        f"The self-test could not write a sample of {size} ({reason}): set PIPEINFER_CACHE to a folder with room."
    )


def _file(in_memory: bool) -> IO[bytes]:
    """One that is gone when it is closed, also by the end of the process."""
    if sys.platform != "linux":
        return cast(IO[bytes], tempfile.NamedTemporaryFile(dir=cache_dir(), suffix=".gguf"))
    if in_memory and hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("pipeinfer-sample"), "w+b")
    return cast(IO[bytes], tempfile.TemporaryFile(dir=cache_dir()))


def _record(sample: Sample, setup: Setup) -> Path:
    """Where a sample's result is kept, by all that it depends on."""
    how = msgspec.json.encode(replace(setup, n_ctx=max(_depths(sample, setup)))).decode()
    parts = (VERSION, sample.signature, sample.deep, how, library_build(), cpu_name(), cores())
    try:
        folder = cache_dir() / "probes"
        folder.mkdir(exist_ok=True)
    except OSError:  # nothing can be kept there: nothing is
        folder = Path(os.devnull) / "probes"
    return folder / (hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:24] + ".json")


def _read(path: Path) -> Found | None:
    try:
        data = json.loads(path.read_text())
        return Found(int(data["safe"]), {int(w): float(s) for w, s in data["seconds"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(path: Path, found: Found) -> None:
    with contextlib.suppress(OSError, UserError), appearing(path, durable=False) as out:
        out.write(json.dumps({"safe": found.safe, "seconds": found.seconds}).encode())
