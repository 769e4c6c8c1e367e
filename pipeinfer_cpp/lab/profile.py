"""This pipeline's own speeds as a cluster.toml, for `simulate` and `--emulate`."""

from __future__ import annotations

from pathlib import Path

from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.system.files import appearing


def write_profile(path: Path, pipeline: Pipeline) -> None:
    """Measured cost curves of the stages, what the engine found the links to take, the draft's time."""
    engine = pipeline.driver.engine
    lines = ["# Measured by `pipeinfer bench --profile`.", "[emulate]"]
    draft = engine.worker.interval
    lines.append(f"draft_ms = {1000 * draft:.3f}" if draft else "draft_ms = 4.0")
    lines.append(f"link = {{ latency_ms = {1000 * engine.pipe.pace.hop:.3f} }}")
    for curve in engine.pipe.pace.curves:
        first = curve(1)
        rows = ", ".join(f"{w} = {curve(w) / first:.3f}" for w in sorted(curve.points) if w > 1)
        lines += ["[[emulate.nodes]]", f"ms = {1000 * first:.4f}", f"curve = {{ {rows} }}" if rows else "further = 0.3"]
    with appearing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
