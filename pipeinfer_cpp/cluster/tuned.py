"""What `pipeinfer tune` found, by pair and by the machines that it was found on."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.models.registry import Speculation, user_toml
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.system.formats import read_records, write_records
from pipeinfer_cpp.system.machine import cores
from pipeinfer_cpp.system.versions import cpu_name

_MATTERS = ("draft", "split", "layers", "threads", "gpu_layers", "wire", "stretch", "draft_stretch", "links", "emulate")
"""Options, besides the stages, that make another pipeline of the same machines."""


class Tuned(msgspec.Struct, frozen=True):
    """One result. `machines`: see `machines_of`."""

    pair: str
    machines: str
    settings: Speculation


def tuned_file() -> Path:
    """Beside the user's models.toml; it may not exist."""
    return user_toml().with_name("tuned.json")


def machines_of(options: Options) -> str:
    """The machines of a pipeline, and how they are used, as one line."""
    here = f"{cpu_name()}, {cores()} cores"
    local = isinstance(options.stages, int)
    parts = [f"{options.stages} stages on {here}" if local else f"{', '.join(options.stages)} from {here}"]  # type: ignore[arg-type]
    defaults = {f.name: f.default for f in fields(Options)}
    for name in _MATTERS:
        value = getattr(options, name)
        if value != defaults[name]:
            value = str(value) if isinstance(value, Path) else value
            parts.append(f"{name} {msgspec.json.encode(value).decode()}")
    return "; ".join(parts)


def tuned_for(options: Options) -> Speculation | None:
    """What was found for this pair on these machines. Raises UserError where the file is damaged."""
    if options.pair is None or not options.tuned:
        return None
    machines = machines_of(options)
    found = [t for t in _read(tuned_file()) if (t.pair, t.machines) == (options.pair, machines)]
    return found[-1].settings if found else None


def keep(options: Options, settings: dict[str, Any]) -> Path:
    """Put them in place of what was found before for this pair and these machines; an empty dict only removes
    that. Returns the file. Raises UserError where it cannot be written."""
    path, machines = tuned_file(), machines_of(options)
    kept = [t for t in _read(path) if (t.pair, t.machines) != (options.pair, machines)]
    if settings:
        kept.append(Tuned(str(options.pair), machines, msgspec.convert(settings, Speculation)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
    write_records(path, [{**msgspec.to_builtins(t), "settings": known(t.settings)} for t in kept])
    return path


def known(settings: Speculation) -> dict[str, Any]:
    """Those that are given."""
    return {name: value for name, value in msgspec.structs.asdict(settings).items() if value is not None}


def _read(path: Path) -> list[Tuned]:
    if not path.exists():
        return []
    return read_records(path, Tuned, "is damaged (remove it, and run `pipeinfer tune` again)")
