"""Tokens per second of one cluster, shaped and emulated, in turns."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from netlab_parts.arm import Job
from netlab_parts.lab import ROOT, Lab

from pipeinfer_cpp.emulation import Cluster
from pipeinfer_cpp.errors import PipeInferError, UserError

PORT = 7711
MODES = ("off", "async")
KINDS = ("shaped", "emulated")
ARM = str(Path(__file__).with_name("arm.py"))
PATIENCE = 180.0


class Arm:
    """A child process that generates when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._answer()

    def generate(self, mode: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(mode, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Let it close its pipeline; its workers end with it in any case."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise PipeInferError("A pipeline gives no answer." if not ready else "A pipeline has died.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"]) if answer["code"] == 2 else PipeInferError(answer["error"])
        return answer


class Speeds(msgspec.Struct, frozen=True):
    """Tokens per second by (kind, mode), one for each round; whether all texts of a prompt were the same."""

    by_arm: dict[tuple[str, str], list[float]]
    same_text: bool
    relayed: bool
    shaper: str

    def median(self, kind: str, mode: str) -> float:
        return median(self.by_arm[kind, mode])

    def ratio(self, mode: str) -> float:
        """Shaped over emulated, the median of each round's."""
        return median(s / e for s, e in zip(self.by_arm["shaped", mode], self.by_arm["emulated", mode], strict=True))

    def gain(self, kind: str) -> float:
        return median(a / o for a, o in zip(self.by_arm[kind, "async"], self.by_arm[kind, "off"], strict=True))


def measure(
    cluster: Cluster, name: str, target: Path, draft: Path, tokens: int, rounds: int, say: Callable[[str], None]
) -> Speeds:
    """Both kinds are open all the time and take turns; the first round warms up and does not count."""
    by_arm: dict[tuple[str, str], list[float]] = {(kind, mode): [] for kind in KINDS for mode in MODES}
    same = True
    n = cluster.n_stages
    # Node 0 is the coordinator: each node sends at the speed of its link to the next one.
    with Lab(cluster.links) as lab:
        addresses = [f"tcp://{lab.address(k + 1)}:{PORT}" for k in range(n)]
        job = Job(name, n, str(target), str(draft), addresses, tokens)
        with stages(lab, addresses, target), opened(lab, job) as shaped, opened(None, alone(job)) as emulated:
            arms = {"shaped": shaped, "emulated": emulated}
            for i in range(rounds + 1):
                texts = set()
                for mode in MODES:
                    for kind in KINDS if i % 2 else KINDS[::-1]:
                        got = arms[kind].generate(mode)
                        texts.add(got["text"])
                        if i:
                            by_arm[kind, mode].append(got["tokens_per_s"])
                same = same and len(texts) == 1
                if i:
                    say("  ".join(f"{kind} {mode} {by_arm[kind, mode][-1]:.1f}" for kind, mode in by_arm))
        return Speeds(by_arm, same, lab.relayed, lab.shaper)


def alone(job: Job) -> Job:
    return msgspec.structs.replace(job, stages=job.n_stages)


@contextlib.contextmanager
def opened(lab: Lab | None, job: Job) -> Iterator[Arm]:
    """A pipeline whose coordinator is node 0 of a lab, or on this machine as it is."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [ARM, msgspec.json.encode(job).decode()]
    if lab is None:
        process = subprocess.Popen([sys.executable, *command], start_new_session=True, cwd=ROOT, **pipes)
    else:
        process = lab.start(0, command, **pipes)
    try:
        arm = Arm(process)
        yield arm
        arm.close()
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def stages(lab: Lab, addresses: list[str], target: Path) -> Iterator[None]:
    """A real stage on each node behind the coordinator's, started by hand."""
    command = ["-m", "pipeinfer_cpp", "stage", "--insecure", "--target", str(target), "--listen"]
    children = [
        lab.start(k + 1, [*command, address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for k, address in enumerate(addresses)
    ]
    for k, child in enumerate(children):
        said = child.stdout.readline() if child.stdout is not None else ""
        if "waiting for a coordinator" not in said:
            raise UserError(f"Stage {k} does not start: {said.strip() or 'it says nothing'}")
    yield
