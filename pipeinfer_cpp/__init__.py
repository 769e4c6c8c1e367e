"""PipeInfer over llama.cpp: a big model in slices on several processes, sped up by asynchronous speculation.

from pipeinfer_cpp import Pipeline

with Pipeline.local(pair="demo", stages=2) as p:
    for token in p.generate("Once upon a time"):
        print(token.text, end="", flush=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeinfer_cpp.errors import PipeInferError, UserError
    from pipeinfer_cpp.generation import Generation
    from pipeinfer_cpp.options import Options
    from pipeinfer_cpp.pipeline import Pipeline
    from pipeinfer_cpp.results import Result, Token
    from pipeinfer_cpp.sampling import Sampling

_WHERE = {
    "Generation": "generation",
    "Options": "options",
    "PipeInferError": "errors",
    "Pipeline": "pipeline",
    "Result": "results",
    "Sampling": "sampling",
    "Token": "results",
    "UserError": "errors",
}
__all__ = ["Generation", "Options", "PipeInferError", "Pipeline", "Result", "Sampling", "Token", "UserError"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: worker processes import parts of this package, not all of it."""
    if name not in _WHERE:
        raise AttributeError(f"module 'pipeinfer_cpp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pipeinfer_cpp.{_WHERE[name]}"), name)
