"""Thoughts told apart from answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeinfer_cpp.chat.thinking import Part, Thinking

HARMONY = ("<|channel|>", "analysis", "<|message|>", "Hm.", "<|end|>", "<|start|>", "assistant", "<|channel|>", "final")


def joined(thinking: Thinking, pieces: list[str]) -> list[Part]:
    """The parts, with neighbours of one kind together."""
    parts: list[Part] = []
    for part in [p for piece in pieces for p in thinking.feed(piece)] + thinking.finish():
        if parts and parts[-1].thought == part.thought:
            part = Part(parts.pop().text + part.text, part.thought)
        parts.append(part)
    return parts


@given(st.integers(1, 30))
def test_however_the_text_comes(size: int) -> None:
    text = "a < b<think>is it <so>?</think>\nYes <th"
    thinking = Thinking("... <think> ...")
    thinking.begin("assistant\n")
    parts = joined(thinking, [text[i : i + size] for i in range(0, len(text), size)])
    assert parts == [Part("a < b", False), Part("is it <so>?", True), Part("\nYes <th", False)]


def test_a_template_that_opens_the_tag_itself() -> None:
    thinking = Thinking("{{ '<think>\\n' }}{% if enable_thinking %}{% endif %}")
    thinking.begin("<|im_start|>assistant\n<think>\n")
    assert joined(thinking, ["hm", "</think>", "Yes"]) == [Part("hm", True), Part("Yes", False)]
    thinking.begin("<think>\n\n</think>\n\n")
    assert joined(thinking, ["Yes"]) == [Part("Yes", False)] and thinking.switch == "enable_thinking"


def test_channels() -> None:
    thinking = Thinking("<|channel|>analysis<|message|>")
    thinking.begin("<|start|>assistant")
    assert joined(thinking, [*HARMONY, "<|message|>", "Yes"]) == [Part("Hm.", True), Part("Yes", False)]
    thinking.begin("<|start|>assistant")
    assert joined(thinking, ["<|channel|>", "final", "<|message|>", "Yes"]) == [Part("Yes", False)]
    assert thinking.names("<|end|>") and not thinking.names("<|return|>")


def test_a_model_that_does_not_think_may_write_tags() -> None:
    thinking = Thinking("{{ messages }}")
    thinking.begin("")
    assert joined(thinking, ["<think>x</think>"]) == [Part("<think>x</think>", False)] and thinking.switch is None


def test_a_switch_is_a_variable_and_no_other_word() -> None:
    assert Thinking("{% set enable_thinking = enable_thinking | default(true) %}").switch == "enable_thinking"
    for other in ("Mind your thinking.", "{% if message.thinking %}{% endif %}", "{{ message['thinking'] }}"):
        assert Thinking(other + "{% for message in messages %}{{ message.content }}{% endfor %}").switch is None
