"""The file behind what a user types for a model."""

from __future__ import annotations

from pathlib import Path

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.models.hub import here, is_hub_name


def model_path(given: str | Path) -> Path:
    """The path itself, or the (first) file of a name on Hugging Face that was fetched earlier. Raises UserError
    for one that was not."""
    if not is_hub_name(given):
        return Path(given)
    model = here(str(given))
    path = model.local() if model is not None else None
    if path is None:
        raise UserError(f"{given} is not on this machine: `pipeinfer models pull {given}` gets it.")
    return path
