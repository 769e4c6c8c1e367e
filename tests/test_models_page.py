"""docs/models.md says what the rules say, and the script behind it compares real slices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, ROOT / "scripts" / "architectures_page.py"]
    written = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert written == (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), "run the script again"


def test_the_script_of_popular_models_compares_slices_with_the_whole() -> None:
    command = [sys.executable, ROOT / "scripts" / "popular_models.py", "Gemma 4 E2B", "GLM 5.2"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith("Gemma 4 E2B (gemma4, 35 layers): 0-12,13-34 (moved);") and "bit for bit" in lines[0]
    assert lines[1].startswith("GLM 5.2 (glm-dsa, 78 layers): 0-37,38-77 (moved);") and "bit for bit" in lines[1]
    assert lines[2].startswith("2 of 2 models")
