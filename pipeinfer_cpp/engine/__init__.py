"""PipeInfer's state machine. Read `tree`, `sequences`, `run`, `events`, then `engine`; the rest is policy.

This package is pure: no sockets, threads, clocks or llama.cpp.
"""

from pipeinfer_cpp.engine.costs import CostCurve
from pipeinfer_cpp.engine.engine import Engine, EngineError
from pipeinfer_cpp.engine.settings import Settings
from pipeinfer_cpp.engine.stats import Stats

__all__ = ["CostCurve", "Engine", "EngineError", "Settings", "Stats"]
