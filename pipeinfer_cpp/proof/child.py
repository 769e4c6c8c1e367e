"""Processes in which llama.cpp may end without harm: how they are started, and what their end says."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_BEFORE = re.compile(r"^(.*error loading model( vocabulary)?: |.*what\(\):\s*)|\S*/(?=[\w.-]+:\d+: )")
_DECISIVE = re.compile(r"GGML_ASSERT|GGML_ABORT|error loading model|what\(\):|llama\.cpp:\d+")


def environment() -> dict[str, str]:
    """Of such a process: one thread, this package, and no debugger's stack trace, which takes seconds."""
    own = {"GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
    own["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    return os.environ | own


def last_words(stderr: bytes) -> str:
    """The line that says why it ended, without folders and full stop."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    decisive = [line for line in lines if _DECISIVE.search(line)]
    if not lines:
        return "it ended and said nothing"
    return _BEFORE.sub("", (decisive or lines)[-1]).rstrip(".")
