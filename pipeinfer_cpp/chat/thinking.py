"""What a model thinks before it answers, told apart from the answer while the text comes."""

from __future__ import annotations

from typing import NamedTuple

from pipeinfer_cpp.chat.template import asked_for

_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    ("<|channel>thought", "<channel|>"),
)
_SILENT = ("<|channel|>final<|message|>", "<|channel|>commentary<|message|>", "<|end|><|start|>assistant")
"""Say only that an answer begins, or a further part of it."""
_SWITCHES = ("enable_thinking", "thinking")


class Part(NamedTuple):
    text: str
    thought: bool


class Thinking:
    """Splits one answer after the other by the tags that the model's chat template knows."""

    def __init__(self, template: str) -> None:
        self._tags = [pair for pair in _TAGS if any(_start(tag) in template for tag in pair)]
        asked = asked_for(template)
        self.switch = next((name for name in _SWITCHES if name in asked), None)
        """The template's variable that turns thinking on and off."""
        self._held = ""
        self._end: str | None = None

    def begin(self, prompt: str) -> None:
        """The answer follows a prompt that ends so; many templates open the tag themselves."""
        prompt = prompt.rstrip()
        self._held = ""
        self._end = next((end for begin, end in self._tags if prompt.endswith(begin)), None)

    @property
    def end(self) -> str | None:
        """What ends the thought that is under way."""
        return self._end

    def names(self, token: str) -> bool:
        """This control token is part of a tag, so it counts as text."""
        return any(token in tag for pair in self._tags for tag in pair)

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain; a beginning of a tag is held back."""
        self._held += text
        parts: list[Part] = []
        while True:
            thought = self._end is not None
            wanted = [self._end] if self._end is not None else [begin for begin, _ in self._tags]
            wanted += _SILENT if wanted and not thought else ()
            found = min(((at, tag) for tag in wanted if (at := self._held.find(tag)) >= 0), default=None)
            if found is None:
                cut = len(self._held) - max((_beginning(self._held, tag) for tag in wanted), default=0)
                if cut:
                    parts.append(Part(self._held[:cut], thought))
                self._held = self._held[cut:]
                return parts
            at, tag = found
            if at:
                parts.append(Part(self._held[:at], thought))
            self._held = self._held[at + len(tag) :]
            self._end = None if thought else dict(self._tags).get(tag)

    def finish(self) -> list[Part]:
        """What was held back."""
        held, self._held = self._held, ""
        return [Part(held, self._end is not None)] if held else []


def _start(tag: str) -> str:
    """As much of a tag as a template surely has in one piece."""
    return tag if tag.count("<") + tag.count("[") == 1 else "<|channel|>analysis"


def _beginning(text: str, tag: str) -> int:
    """Length of the longest end of the text that begins the tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
