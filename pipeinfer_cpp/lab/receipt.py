"""What a measurement was made of: enough to say whether another one is comparable."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import msgspec

from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.system.versions import cpu_name, llama_version, package_version


class Receipt(msgspec.Struct, frozen=True):
    """Hashes are SHA-256, their first 16 digits. `output`: of all texts' token ids, by arm."""

    target: str
    draft: str
    configuration: str
    versions: dict[str, str]
    cpu: str
    output: dict[str, str] = {}

    def comparable(self, other: Receipt) -> str | None:
        """Why two measurements cannot be compared; None when they can. Versions may differ: to judge
        what a new one does is what baselines are for."""
        for what in ("target", "draft", "configuration", "cpu"):
            if getattr(self, what) != getattr(other, what):
                return f"another {what} ({getattr(other, what)} there, {getattr(self, what)} here)"
        return None


def receipt(pipeline: Pipeline, configuration: Any) -> Receipt:
    """`configuration`: everything else that was asked for, as msgspec can write it."""
    plan = pipeline.plan
    return Receipt(
        target=plan.target.sha256()[:16],
        draft=plan.draft.sha256()[:16] if plan.draft is not None else "none",
        configuration=digest(configuration),
        versions={
            "pipeinfer": package_version(),
            "llama-cpp-python": llama_version(),
            "python": platform.python_version(),
        },
        cpu=cpu_name(),
    )


def digest(what: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(what, order="deterministic")).hexdigest()[:16]
