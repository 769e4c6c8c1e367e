"""Tokens coloured by where they came from."""

from __future__ import annotations

from rich.console import Console
from rich.style import Style
from rich.text import Text

STYLES = {"draft": "green", "sibling": "magenta", "ngram": "cyan", "target": "bold white on blue", "thought": "dim"}
NAMES = {
    "draft": "accepted draft",
    "sibling": "sibling (the draft's second choice)",
    "ngram": "guessed from the text itself",
    "target": "target",
}


def legend() -> Text:
    """One line that explains the colours."""
    text = Text("Tokens: ")
    for i, (origin, name) in enumerate(NAMES.items()):
        text.append("  " if i else "")
        text.append(f" {name} ", style=STYLES[origin])
    return text


class Painter:
    """Puts text without line breaks between the codes of its origin's colour (nothing where there are no colours)."""

    def __init__(self, console: Console) -> None:
        self._codes = {origin: self._codes_of(console, style) for origin, style in STYLES.items()}
        self.colours = any(begin for begin, _ in self._codes.values())

    def __call__(self, text: str, origin: str) -> str:
        begin, end = self._codes.get(origin, ("", ""))
        return f"{begin}{text}{end}"

    @staticmethod
    def _codes_of(console: Console, style: str) -> tuple[str, str]:
        with console.capture() as captured:
            console.print(Text("x", style=Style.parse(style)), end="")
        begin, _, end = captured.get().partition("x")
        return begin, end
