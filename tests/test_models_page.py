"""docs/models.md says what the rules say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, ROOT / "scripts" / "architectures_page.py"]
    written = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert written == (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), "run the script again"
