"""What Tab offers behind an option: its values, as the shell asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def among(values: Iterable[str], *, several: bool = False) -> Callable[[str], list[str]]:
    """These values; where `several` can be given, also behind a comma."""

    def offer(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        return [f"{before}{comma}{value}" for value in values if value.startswith(last)]

    return offer


def pairs(incomplete: str) -> list[str]:
    """The names in models.toml."""
    from pipeinfer_cpp.errors import PipeInferError
    from pipeinfer_cpp.models import load_registry

    try:
        return among(load_registry(None).pairs)(incomplete)
    except PipeInferError:  # a models.toml that cannot be read is for the command to complain of
        return []


def templates(incomplete: str) -> list[str]:
    """llama.cpp's chat templates; files come from the shell."""
    from pipeinfer_cpp.llama.chat_templates import builtin_names

    return among(builtin_names())(incomplete)


def suites(incomplete: str) -> list[str]:
    """Prompts by use."""
    from pipeinfer_cpp.lab.suites import SUITES

    return among(SUITES)(incomplete)


def arms(incomplete: str) -> list[str]:
    """What `bench --modes` compares."""
    from pipeinfer_cpp.lab.arms import ABLATION

    return among(["off", "async", "sync", *ABLATION.split()[2:], "ablation"], several=True)(incomplete)
