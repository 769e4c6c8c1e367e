"""What `/set` can change while a chat runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer_cpp.chat.conversation import Conversation
from pipeinfer_cpp.chat.thinking import Thinking
from pipeinfer_cpp.cli import parsing
from pipeinfer_cpp.cli.spelling import nearest
from pipeinfer_cpp.errors import UserError, naming_settings
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import FORMS, Sampling

_ENGINE_KINDS: dict[str, Callable[[str], Any]] = {"mode": str, "draft_max": int, "cutoff": float}
ENGINE_SETTINGS = tuple(_ENGINE_KINDS)
_SAMPLING: dict[str, Callable[[str], Any]] = {
    "temp": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical": float,
    "repeat_penalty": float,
    "repeat_last_n": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
}
THINK = ("on", "fold", "off")
"""Thoughts are shown, folded into one word, or (where the template can ask for that) not thought."""
_OFF = ("", "off", "none")


class ChatSettings:
    """The settings of the next answer. `set` raises UserError for names and values that cannot be."""

    def __init__(
        self,
        pipeline: Pipeline,
        conversation: Conversation,
        sampling: Sampling,
        *,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        show_draft: bool = False,
    ) -> None:
        self.pipeline, self._conversation = pipeline, conversation
        self.sampling, self.max_tokens, self.stop, self.show_draft = sampling, max_tokens, stop, show_draft
        self.thinking = Thinking(conversation.template.source)
        self.think = "on"
        self._setters: dict[str, Callable[[str], None]] = {
            **{name: self._sampler_of(name, kind) for name, kind in _SAMPLING.items()},
            "logit_bias": self._set_bias,
            "grammar": lambda text: self._set_grammar("grammar", text),
            "grammar_file": lambda text: self._set_grammar("grammar", parsing.text_of(Path(text), "grammar_file")),
            "json_schema": lambda text: self._set_grammar("json_schema", text),
            "json_schema_file": lambda text: self._set_grammar(
                "json_schema", parsing.text_of(Path(text), "json_schema_file")
            ),
            "regex": lambda text: self._set_grammar("regex", text),
            "lark": lambda text: self._set_grammar("lark", text),
            "lark_file": lambda text: self._set_grammar("lark", parsing.text_of(Path(text), "lark_file")),
            "max_tokens": self._set_max_tokens,
            "stop": self._set_stop,
            "system": self._set_system,
            "show_draft": self._set_show_draft,
            "think": self._set_think,
            **{name: self._engine_of(name, kind) for name, kind in _ENGINE_KINDS.items()},
        }

    @property
    def reserve(self) -> int:
        """Positions to keep free for an answer: its length, at most a quarter of the context."""
        quarter = self.pipeline.settings.n_ctx // 4
        return quarter if self.max_tokens < 0 else min(self.max_tokens, quarter)

    def room(self, n_prompt: int) -> int:
        """Tokens of an answer behind so many at most."""
        return self.max_tokens if self.max_tokens > 0 else self.pipeline.settings.n_ctx - n_prompt

    def new_seed(self) -> int:
        """Another seed, which follows from the one before: a chat with --seed can be repeated."""
        self.sampling = msgspec.structs.replace(self.sampling, seed=(self.sampling.seed + 1) % 2**63)
        return self.sampling.seed

    def seed(self, seed: int) -> None:
        """The next answer's."""
        self.sampling = msgspec.structs.replace(self.sampling, seed=seed)

    def set(self, name: str, value: str) -> None:
        name = name.strip().lstrip("-").replace("-", "_")
        name = {"typical_p": "typical", "draft": "draft_max"}.get(name, name)
        setter = self._setters.get(name)
        if setter is None:
            near = nearest(name, list(self._setters))
            hint = f"did you mean {near}?" if near else f"there are {', '.join(self._setters)}."
            raise UserError(f"There is no setting {name!r}: {hint}")
        try:
            setter(value.strip())
        except UserError as error:
            raise naming_settings(error) from None

    def shown(self) -> dict[str, str]:
        """Every setting with its value, as text."""
        s, engine = self.sampling, self.pipeline.settings
        bias = " ".join(f"{token}{amount:+g}" for token, amount in s.logit_bias.items())
        values: dict[str, object] = {name: getattr(s, "typical_p" if name == "typical" else name) for name in _SAMPLING}
        values |= {"logit_bias": bias, **{form: getattr(s, form) or "" for form in FORMS}}
        values |= {"max_tokens": self.max_tokens, "stop": " ".join(map(repr, self.stop))}
        values |= {"system": self._conversation.system, "show_draft": "on" if self.show_draft else "off"}
        values |= {"think": self.think}
        values |= {name: getattr(engine, name) for name in ENGINE_SETTINGS}
        return {name: str(value) if value != "" else "off" for name, value in values.items()}

    # -------------------------------------------------------------------------------------- setters

    def _sampler_of(self, name: str, kind: Callable[[str], Any]) -> Callable[[str], None]:
        field = "typical_p" if name == "typical" else name

        def change(text: str) -> None:
            number = _parsed(name, kind, text)
            if name == "seed" and not -(2**63) <= number < 2**64:
                raise UserError("seed must be a number of at most 64 bits.")
            self._change(**{field: number})

        return change

    def _engine_of(self, name: str, kind: Callable[[str], Any]) -> Callable[[str], None]:
        def change(text: str) -> None:
            value = _parsed(name, kind, text)
            dataclasses.replace(self.pipeline.plan.options, **{name: value}).check()
            if name == "mode" and value != "off" and not self.pipeline.plan.guesses:
                raise UserError(f"mode {value} needs a draft model: start the chat with one.")
            self.pipeline.configure(**{name: value})

        return change

    def _change(self, **values: Any) -> None:
        sampling = msgspec.structs.replace(self.sampling, **values)
        sampling.check()
        self.pipeline.check_grammar(sampling)
        self.sampling = sampling

    def _set_bias(self, text: str) -> None:
        bias = {} if text.lower() in _OFF else parsing.logit_bias(text.replace(",", " ").split())
        if any(token >= self.pipeline.vocabulary.size for token in bias):
            raise UserError(f"logit_bias: the vocabulary has {self.pipeline.vocabulary.size} tokens.")
        self._change(logit_bias=bias)

    def _set_grammar(self, name: str, text: str) -> None:
        """One of them at a time: the others go."""
        if text.lower() in _OFF:
            self._change(**{name: None})
        else:
            self._change(**{**dict.fromkeys(FORMS), name: text})

    def _set_max_tokens(self, text: str) -> None:
        number = _parsed("max_tokens", int, text)
        if number < 1 and number != -1:
            raise UserError("max_tokens must be at least 1, or -1 for as many as there is room for.")
        self.max_tokens = number

    def _set_stop(self, text: str) -> None:
        self.stop = () if text.lower() in _OFF else (parsing.stop_text(text),)

    def _set_system(self, text: str) -> None:
        self._conversation.system = "" if text.lower() in _OFF else text

    def _set_think(self, text: str) -> None:
        if (how := text.lower()) not in THINK:
            raise UserError(f"think is one of {', '.join(THINK)}.")
        switch, variables = self.thinking.switch, self._conversation.template.variables
        if switch is None:
            how = "fold" if how == "off" else how
        else:
            variables[switch] = how != "off"
        self.think = how

    def _set_show_draft(self, text: str) -> None:
        if text.lower() not in ("on", "off"):
            raise UserError("show_draft is on or off.")
        self.show_draft = text.lower() == "on"


def _parsed(name: str, kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} must be {what}, not {text!r}.") from None
