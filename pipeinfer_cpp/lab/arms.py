"""What is compared: `off`, `sync:4`, `async`, `async-cancel` (without a technique), `async:cutoff=0.5`."""

from __future__ import annotations

from typing import Any

import msgspec

from pipeinfer_cpp.engine.settings import MODES, TECHNIQUES
from pipeinfer_cpp.errors import UserError

_FIELDS = {"draft_max": int, "cutoff": float, "recovery": float, "decay": float, "split": float}
CHANGEABLE = ("mode", "ablate", "governor", *_FIELDS)
"""Settings that may change between two generations of one pipeline."""
ABLATION = "off async " + " ".join(f"async-{name}" for name in TECHNIQUES)


class Arm(msgspec.Struct, frozen=True):
    """`changes`: of engine.Settings."""

    name: str
    changes: dict[str, object]

    @property
    def mode(self) -> str:
        return str(self.changes["mode"])


def parse_arms(text: str) -> list[Arm]:
    """Separated by spaces or commas; `ablation` stands for all of its arms. Raises UserError.

    Beside an arm without a technique all run without the governor, which would hide what the technique is
    worth: it pauses a speculation that has become bad.
    """
    names = text.replace(",", " ").replace("ablation", ABLATION).split()
    if not names:
        raise UserError("--modes is empty: write off,sync:4,async.")
    arms = [_arm(name) for name in dict.fromkeys(names)]
    governor = not any(arm.changes["ablate"] for arm in arms)
    return [Arm(arm.name, {**arm.changes, "governor": governor}) for arm in arms]


def _arm(name: str) -> Arm:
    head, _, tail = name.partition(":")
    mode, _, technique = head.partition("-")
    if mode not in MODES:
        raise UserError(f"--modes {name}: {mode!r} is not one of {', '.join(MODES)}.")
    changes: dict[str, Any] = {"mode": mode, "ablate": frozenset()}
    if technique:
        if technique not in TECHNIQUES or mode != "async":
            raise UserError(f"--modes {name}: async- is followed by one of {', '.join(TECHNIQUES)}.")
        changes["ablate"] = frozenset({technique})
    for part in tail.split(":") if tail else ():
        key, _, value = part.partition("=") if "=" in part else ("draft_max", "", part)
        if key not in _FIELDS:
            raise UserError(f"--modes {name}: {key!r} is not one of {', '.join(_FIELDS)}.")
        try:
            changes[key] = _FIELDS[key](value)
        except ValueError:
            raise UserError(f"--modes {name}: {value!r} is not a value for {key}.") from None
    limits = {"draft_max": (1, 63)}
    for key, value in changes.items():
        low, high = limits.get(key, (0, 1))
        if key not in ("mode", "ablate") and not low <= value <= high:
            raise UserError(f"--modes {name}: {key} must be between {low} and {high}.")
    return Arm(name, changes)
