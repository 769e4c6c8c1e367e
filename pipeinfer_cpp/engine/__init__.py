"""PipeInfer's state machine.

From top to bottom: `tree` (guesses and their verification), `sequences` (KV multibuffers), `run` and `events` (what
goes in and out), `turn`, `cached` (what a prompt may use of the last one), `checkpoints` (models that cannot take back
a part), `pipe` (what is under way, what is cancelled), `drafts` (who guesses), `slot` (one conversation), `engine` (the
one door, and what leaves when). Then the policy: `speculation`, `governor`, `pacing`.

This package is pure: no sockets, threads, clocks or llama.cpp.
"""

from pipeinfer_cpp.engine.engine import Engine
from pipeinfer_cpp.engine.pacing import CostCurve
from pipeinfer_cpp.engine.pipe import EngineError
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.engine.stats import Stats

__all__ = ["CostCurve", "Engine", "EngineError", "Settings", "Stats"]
