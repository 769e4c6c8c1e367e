"""The speculation settings that serve a pair best on this cluster, found by short runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.lab.arms import parse_arms
from pipeinfer_cpp.lab.bench import compare
from pipeinfer_cpp.lab.intervals import Ratio
from pipeinfer_cpp.pipeline import Pipeline

STEPS: dict[str, Sequence[float]] = {
    "cutoff": (0.0, 0.05, 0.2, 0.4, 0.6),
    "recovery": (0.0, 0.1, 0.4),
    "decay": (0.0, 0.05, 0.2),
}
LENGTHS = (2, 4, 6)
MARGIN = 1.03
"""A change must be so much better to be believed."""
ROUNDS = 2
"""Of the comparison on prompts that were held out."""
Say = Callable[[str, int, int], None]
Race = Callable[[str, Sequence[str], bool], dict[str, Ratio]]
"""From what is being compared, arms and whether on the prompts that were held out, to speeds over the first arm's."""


class Verdict(NamedTuple):
    """`settings`: those that differ from the pipeline's own, empty where nothing is surely better. `gain`: of the
    best candidate over the pipeline's own settings, on prompts that the search did not see; None where the search
    found none."""

    settings: dict[str, object]
    gain: Ratio | None


def count() -> int:
    """Races of a search, at most."""
    return 2 + len(STEPS)


def tune(pipeline: Pipeline, prompts: Sequence[Sequence[int]], n_tokens: int, say: Say) -> Verdict:
    """Search with every other prompt, and judge what was found with the rest: the best of many candidates
    looks good by chance alone. Interleaved, so that drift hits all alike."""
    step = 0

    def race(what: str, arms: Sequence[str], held_out: bool) -> dict[str, Ratio]:
        nonlocal step

        def report(done: int, total: int) -> None:
            say(what, step * 1000 + 1000 * done // total, 1000 * count())

        found = compare(
            pipeline,
            parse_arms(",".join(arms)),
            prompts[1::2] if held_out else prompts[::2],
            n_tokens=n_tokens,
            rounds=ROUNDS if held_out else 1,
            configuration="tune",
            report=report,
        )
        step += 1
        return found.ratios

    return search(race, pipeline.settings)


def search(race: Race, base: Settings) -> Verdict:
    """First the mode, then each setting of `async` in turn; then the best against `base`, with a margin."""
    own = _own(base)
    arms = ["off", "async", *(f"sync:{k}" for k in LENGTHS)]
    modes = {name: ratio.value for name, ratio in race("modes", arms, False).items()}
    best = max(modes, key=modes.__getitem__)
    settings: dict[str, object] = {"mode": "off"}
    if best.startswith("sync"):
        settings = {"mode": "sync", "draft_max": int(best.partition(":")[2])}
    elif best == "async":
        chosen: dict[str, float] = {name: getattr(base, name) for name in STEPS}
        for name, values in STEPS.items():
            tries = {_arm(chosen): chosen[name]}
            tries |= {_arm({**chosen, name: value}): value for value in values if value != chosen[name]}
            ratios = {arm: ratio.value for arm, ratio in race(name, list(tries), False).items()}
            better = max(ratios, key=ratios.__getitem__)
            if ratios[better] >= MARGIN:
                chosen[name] = tries[better]
        settings = {"mode": "async", **chosen}
    best = _own(Settings(**settings))  # type: ignore[arg-type]
    if best == own:
        return Verdict({}, None)
    gain = race("what was found", [own, best], True)[best]
    if gain.low is None or gain.low <= 1.0 or gain.value < MARGIN:
        return Verdict({}, gain)
    return Verdict({name: value for name, value in settings.items() if value != getattr(base, name)}, gain)


def _own(settings: Settings) -> str:
    """The arm that has these settings."""
    if settings.mode == "off":
        return "off"
    if settings.mode == "sync":
        return f"sync:{settings.draft_max}"
    return _arm({name: getattr(settings, name) for name in STEPS})


def _arm(settings: dict[str, float]) -> str:
    return "async:" + ":".join(f"{name}={value}" for name, value in settings.items())
