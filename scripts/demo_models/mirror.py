"""Files of bare git clones: OWNER/NAME lies in MIRRORS/OWNER+NAME/repo."""

from __future__ import annotations

import subprocess
from pathlib import Path

from needs import stop


class Repo:
    """One bare clone, `git clone --bare https://github.com/OWNER/NAME MIRRORS/OWNER+NAME/repo`."""

    def __init__(self, mirrors: str, name: str) -> None:
        folder = Path(mirrors) / name.replace("/", "+") / "repo"
        if not folder.is_dir():
            stop(
                f"{folder} does not exist: git clone --bare https://github.com/{name} {folder} "
                "(MODELS.md names the commits)."
            )
        self.name, self._git = name, ["git", "-C", str(folder)]

    def ls(self, prefix: str = "", rev: str = "HEAD") -> list[str]:
        """All paths that begin with `prefix`."""
        listing = subprocess.run(
            [*self._git, "ls-tree", "-r", "--name-only", rev], capture_output=True, text=True, check=True
        ).stdout
        return [path for path in listing.split("\n") if path.startswith(prefix)]

    def find(self, path: str, rev: str = "HEAD") -> str | None:
        """A file's text, or None where it does not exist."""
        shown = subprocess.run([*self._git, "show", f"{rev}:{path}"], capture_output=True)
        return shown.stdout.decode("utf-8", "replace") if shown.returncode == 0 else None

    def read(self, path: str, rev: str = "HEAD") -> str:
        """A file's text. Ends the program when there is none."""
        text = self.find(path, rev)
        if text is None:
            stop(f"{self.name} has no {path} at {rev}: fetch the commit that MODELS.md names.")
        return text
