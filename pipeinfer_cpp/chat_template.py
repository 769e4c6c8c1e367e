"""Messages as the text that a model was trained to see: the chat template of its GGUF."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeinfer_cpp.errors import UserError

Message = dict[str, str]
"""`role` (system, user, assistant) and `content`."""


class ChatTemplate:
    """A Jinja template, run in a sandbox with what templates on Hugging Face expect to be there."""

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise, strftime_now=_now)
        self._known = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"The chat template is not valid Jinja: {error}.") from error

    def render(self, messages: Sequence[Message], *, answer_follows: bool = True) -> str:
        """The text up to where the assistant's next answer begins.

        A template that takes no system message gets it at the head of the first user message.
        Raises UserError when it refuses the messages.
        """
        try:
            return self._render(messages, answer_follows)
        except jinja2.TemplateError as error:
            if len(messages) > 1 and messages[0]["role"] == "system":
                system, first, *rest = messages
                merged = {**first, "content": f"{system['content']}\n\n{first['content']}"}
                try:
                    return self._render([merged, *rest], answer_follows)
                except jinja2.TemplateError:
                    pass
            raise UserError(f"The model's chat template refuses this conversation: {error}.") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise UserError(f"The model's chat template does not work: {error}.") from error

    def _render(self, messages: Sequence[Message], answer_follows: bool) -> str:
        return self._template.render(messages=messages, add_generation_prompt=answer_follows, **self._known)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **more: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **more)
