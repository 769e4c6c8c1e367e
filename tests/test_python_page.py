"""docs/python.md: its examples run as they stand there."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from pipeline_helpers import ROOT

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 7


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: re.sub(r"\W+", "-", code[-40:]))
def test_example(code: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "docs/python.md", "exec"), {"__name__": "__main__"})
    assert out.getvalue().strip() or "assert" in code
