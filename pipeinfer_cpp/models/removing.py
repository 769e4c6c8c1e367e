"""Taking fetched files out of the hub's cache."""

from __future__ import annotations

from pipeinfer_cpp.models.files import ModelFile
from pipeinfer_cpp.models.hub import snapshot
from pipeinfer_cpp.models.registry import Registry


def needed_by(model: ModelFile, registry: Registry, but: str) -> list[str]:
    """Other pairs on this machine that use the file beside another one that stays."""
    return [
        pair.name
        for pair in registry.pairs.values()
        if pair.name != but
        and any((m.repo, m.file) == (model.repo, model.file) for m in pair.files)
        and any((m.repo, m.file) != (model.repo, model.file) and m.local() is not None for m in pair.files)
    ]


def remove(model: ModelFile) -> int:
    """Remove all its parts, in every state of the repository that was fetched. Returns the bytes that are free now.

    Content that another file of the repository shares stays.
    """
    folder = snapshot(str(model.repo))
    if folder is None:
        return 0
    freed = 0
    for name in model.names:
        for link in folder.parent.glob(f"*/{name}"):
            blob = link.resolve()
            others = (path for path in folder.parent.rglob("*") if path != link and path.is_symlink())
            if not any(other.resolve() == blob for other in others):
                freed += blob.stat().st_size if blob.exists() else 0
                blob.unlink(missing_ok=True)
            link.unlink(missing_ok=True)
    return freed
