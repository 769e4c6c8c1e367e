"""Prompts by use. The demo pair answers stories and chat; real pairs all of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pipeinfer_cpp.errors import UserError


class Suite(NamedTuple):
    """`chat`: the prompts are questions, put into the model's chat template."""

    name: str
    prompts: tuple[str, ...]
    chat: bool


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "story",
            (
                "Once upon a time there was a goat who collected buttons.",
                "The frog wanted to sing, but every time he opened his mouth",
                "A small cloud followed Ben all the way to school.",
                "The captain looked at the map again. Something about the island was wrong.",
                "The little boat rocked gently on the water while Anna",
                "Tom opened the box and could not believe what he saw inside.",
                "The smallest bear in the family could not sleep.",
                "One rainy morning, a yellow duck",
            ),
            False,
        ),
        Suite(
            "chat",
            (
                "Tell me a short story about a rabbit named Pip.",
                "Tell me a story about a brave little mouse.",
                "Write a story about a lost teddy bear.",
                "Can you tell me a bedtime story?",
                "Why do leaves fall in autumn?",
                "What is a volcano?",
                "How do I make a cup of tea?",
                "Explain what a rainbow is.",
            ),
            True,
        ),
        Suite(
            "translate",
            (
                "Translate into German: The train leaves at seven in the morning, and nobody is on the platform yet.",
                "Translate into French: She put the letter back into the drawer and said nothing about it to anyone.",
                "Translate into Spanish: When the rain stops we will walk down to the harbour and look at the boats.",
                "Translate into English: Der alte Mann ging jeden Tag denselben Weg durch den Wald nach Hause.",
            ),
            True,
        ),
        Suite(
            "code",
            (
                "Write a Python function that returns the n-th Fibonacci number, with a docstring and no recursion.",
                "Write a Python class for a stack with push, pop and peek, and raise an error when it is empty.",
                "Write a C function that reverses a string in place.",
                "Write a shell command that counts the lines of all .py files below the current folder.",
            ),
            True,
        ),
    )
}


def suite(name: str | None, file: Path | None) -> Suite:
    """A suite by name (default: story), or the user's own prompts, one a line. Raises UserError."""
    if file is None:
        if (name or "story") not in SUITES:
            raise UserError(f"--suite {name} is not one of {', '.join(SUITES)}.")
        return SUITES[name or "story"]
    chat = SUITES[name].chat if name in SUITES else False
    return Suite(file.stem, own_prompts(file), chat)


def own_prompts(file: Path) -> tuple[str, ...]:
    """One a line. Raises UserError."""
    try:
        lines = tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}."
        ) from None
    if not lines:
        raise UserError(f"{file} has no prompts: write one on each line.")
    return lines
