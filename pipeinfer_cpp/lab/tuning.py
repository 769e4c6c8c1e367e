"""The speculation settings that serve a pair best on this cluster, found by short runs side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.lab.arms import parse_arms
from pipeinfer_cpp.lab.bench import compare
from pipeinfer_cpp.pipeline import Pipeline

STEPS: dict[str, Sequence[float]] = {
    "cutoff": (0.0, 0.05, 0.2, 0.4, 0.6),
    "recovery": (0.0, 0.1, 0.4),
    "decay": (0.0, 0.05, 0.2),
}
LENGTHS = (2, 4, 6)
MARGIN = 1.02
"""A change must be so much better to be believed."""
Say = Callable[[str, int, int], None]


def count() -> int:
    """Comparisons of two or more arms that a search makes."""
    return 1 + len(STEPS)


def tune(
    pipeline: Pipeline, prompts: Sequence[Sequence[int]], n_tokens: int, say: Say
) -> tuple[dict[str, object], float]:
    """The best settings, of which only those that differ from the pipeline's, and their speed over `off`.

    First the mode, then each setting of `async` in turn. Interleaved, so that drift hits all alike.
    """
    base = pipeline.settings

    def race(what: str, step: int, arms: str) -> dict[str, float]:
        def report(done: int, total: int) -> None:
            say(what, step * 1000 + 1000 * done // total, 1000 * count())

        found = compare(
            pipeline, parse_arms(arms), prompts, n_tokens=n_tokens, rounds=1, configuration="tune", report=report
        )
        return {name: ratio.value for name, ratio in found.ratios.items()}

    modes = race("modes", 0, "off,async," + ",".join(f"sync:{k}" for k in LENGTHS))
    best = max(modes, key=modes.__getitem__)
    if modes[best] < MARGIN or best == "off":
        return {"mode": "off"}, 1.0
    if best.startswith("sync"):
        k = int(best.partition(":")[2])
        return {"mode": "sync", "draft_max": k}, modes[best]
    chosen: dict[str, float] = {name: getattr(base, name) for name in STEPS}
    gain = 1.0
    for step, (name, values) in enumerate(STEPS.items(), 1):
        arms = {_arm(chosen): chosen[name]}
        arms |= {_arm({**chosen, name: value}): value for value in values if value != chosen[name]}
        ratios = race(name, step, ",".join(arms))
        better = max(ratios, key=ratios.__getitem__)
        if ratios[better] >= MARGIN:
            chosen[name] = arms[better]
            gain *= ratios[better]
    settings: dict[str, object] = {"mode": "async"}
    settings |= {name: value for name, value in chosen.items() if value != getattr(base, name)}
    return settings, modes["async"] * gain


def _arm(settings: dict[str, float]) -> str:
    return "async:" + ":".join(f"{name}={value}" for name, value in settings.items())


def write_settings(path: Path, pair: str, settings: dict[str, object]) -> None:
    """Put them into the user's models.toml as `[pair.NAME.speculation]`, in place of an older such part.

    Everything else in the file stays as it is. Raises UserError where it cannot be written.
    """
    name = pair if re.fullmatch(r"[A-Za-z0-9_-]+", pair) else f'"{pair}"'
    head = f"[pair.{name}.speculation]"
    body = "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())
    part = f"{head}  # by pipeinfer tune\n{body}"
    try:
        old = path.read_text("utf-8") if path.exists() else ""
        kept = re.sub(rf"(?ms)^{re.escape(head)}.*?(?=^\[|\Z)", "", old).rstrip()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        partial.write_text((kept + "\n\n" if kept else "") + part, "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
