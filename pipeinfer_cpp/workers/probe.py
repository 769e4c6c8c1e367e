"""A slice's cost curve and safe width, measured once for each slice, CPU, library build and thread count."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

from pipeinfer_cpp.cachedir import cache_dir, machine_lock
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.library import library_build
from pipeinfer_cpp.llama.selftest import DEPTHS, measure_curve, safe_width

VERSION = 1


def probe(
    ctx: SliceContext, slice_id: str, setup: str, widest: int, exact: bool, report: Callable[[str, int, int], None]
) -> tuple[dict[int, float], int]:
    """Seconds by width, and the widest exact run (1 where `exact` was not asked for).

    `setup` names what else the result depends on: KV type, flash attention, threads, GPU layers.
    One worker of a machine measures at a time, so that they do not time each other.
    """
    depth = max((d for d in DEPTHS if d + widest + 2 < ctx.n_ctx), default=0)
    key = f"{VERSION}|{slice_id}|{setup}|{widest}|{depth}|{library_build()}|{_cpu()}"
    store = cache_dir() / "probes"
    store.mkdir(exist_ok=True)
    import hashlib

    path = store / (hashlib.sha256(key.encode()).hexdigest()[:24] + ".json")
    known = _read(path)
    if "curve" not in known or (exact and "safe" not in known):
        with machine_lock("probe"):
            known = _read(path)
            if "curve" not in known:
                curve = measure_curve(ctx, tick=lambda a, b: report("timing the slice", a, b))
                known["curve"] = {str(w): s for w, s in curve.items()}
            if exact and "safe" not in known:
                known["safe"] = safe_width(ctx, widest, tick=lambda a, b: report("testing exactness", a, b))
            known["key"] = key
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(known))
            os.replace(part, path)
    return {int(w): float(s) for w, s in known["curve"].items()}, int(known["safe"]) if exact else 1


def _read(path: Path) -> dict:  # type: ignore[type-arg]
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            model = next((line for line in file if line.startswith("model name")), "")
    except OSError:
        model = platform.processor()
    return f"{platform.machine()} {model.partition(':')[2].strip() or model} {os.cpu_count()}"
