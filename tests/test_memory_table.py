"""scripts/memory_table.py: what was said of memory holds for the demo pair, and a wrong word is noticed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_helpers import ENV
from pipeline_helpers import ROOT

SCRIPT = ROOT / "scripts" / "memory_table.py"


def table(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *args], env=ENV, capture_output=True, text=True, timeout=150)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds")
def test_the_demo_pair() -> None:
    # the demo pair is mostly Python, whose size differs from one version to another
    done = table("--stages", "2", "--markdown", "--within", "0.3")
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| stage", "| draft"))]
    assert [row[0] for row in rows] == ["| stage 0, layers 0-5", "| stage 1, layers 6-11", "| draft"]
    assert all(row[-1].endswith("% |") for row in rows)
    off = table("--stages", "1", "--within", "0")
    assert off.returncode == 1 and "off: more than 0%" in off.stderr
