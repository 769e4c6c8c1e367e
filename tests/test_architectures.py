"""Every architecture, with random weights: its slices compute what the whole model does, bit for bit, and a rule that
is missing is noticed. So do the small models that a proof makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sabotages import SABOTAGES
from specimens import VARIANTS

from pipeinfer_cpp.gguf import SUPPORTED

HERE = Path(__file__).parent
MODELS = [*sorted(SUPPORTED), *VARIANTS]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, str]:
    """What came of each job of the selected tests, made by one process a core."""
    jobs = [
        item.callspec.params["job"]
        for item in request.session.items
        if item.path == request.path and isinstance(item, pytest.Function) and hasattr(item, "callspec")
    ]
    n = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
    environment = os.environ | {"GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE), environment.get("PYTHONPATH", "")])
    workers = [
        subprocess.Popen(
            [sys.executable, HERE / "slicing_worker.py", *jobs[i::n]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for i in range(n)
        if jobs[i::n]
    ]
    try:
        printed = [worker.communicate(timeout=600)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return dict(json.loads(line) for text in printed for line in text.splitlines())


def test_there_are_as_many_architectures_as_the_documentation_says() -> None:
    assert len(SUPPORTED) >= 113


@pytest.mark.parametrize("job", MODELS)
def test_slices_compute_what_the_whole_model_does(outcomes: dict[str, str], job: str) -> None:
    assert outcomes[job] == "equal"


@pytest.mark.parametrize("job", [f"sabotage {name}" for name in SABOTAGES])
def test_a_missing_rule_is_noticed(outcomes: dict[str, str], job: str) -> None:
    assert outcomes[job].startswith("different"), outcomes[job]
