"""Messages as the text that a model was trained to see: the chat template of its GGUF, or another one."""

from __future__ import annotations

import datetime
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
from jinja2 import meta, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeinfer_cpp.errors import UserError

if TYPE_CHECKING:
    from pipeinfer_cpp.gguf import Source
    from pipeinfer_cpp.llama.chat_templates import BuiltinTemplate
    from pipeinfer_cpp.llama.vocabulary import Vocabulary
    from pipeinfer_cpp.models import Pair


ChatMessage = dict[str, Any]
"""`role` (system, user, assistant) and `content`; in conversations with tools also `tool_calls`, and the role tool."""

_NO_TOOLS: tuple[dict[str, Any], ...] = ({"tools": None}, {}, {"tools": [], "functions": ""})
"""How templates may want to hear that there are none."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what a model is trained on; for the text it means nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A Jinja template, run in a sandbox with what templates on Hugging Face expect to be there."""

    def __init__(
        self, source: str, *, bos: str = "", eos: str = "", variables: Mapping[str, Any] | None = None
    ) -> None:
        """`variables`: further ones for the template, such as `enable_thinking`."""
        environment = _environment()
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise, strftime_now=_now)
        self.source = source
        self.variables: dict[str, Any] = dict(variables or {})
        self._known = {"bos_token": bos, "eos_token": eos, "documents": None, "datetime": _now("%b %d %Y")}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"The chat template is not valid Jinja: {error}.") from error

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        answer_follows: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text up to where the assistant's next answer begins. `tools`: functions that it may call, as OpenAI
        describes them.

        Templates that take contents as lists of parts only get them so; one that takes no system message gets it at
        the head of the first user message. Raises UserError when it refuses the messages in each way, or when what
        a user said is not in its text.
        """
        failed: Exception | None = None
        for form, more in itertools.product(_forms(messages), ({"tools": list(tools)},) if tools else _NO_TOOLS):
            try:
                text = self._template.render(
                    messages=form, add_generation_prompt=answer_follows, **{**self._known, **more, **self.variables}
                )
            except jinja2.TemplateError as error:
                failed = failed or UserError(f"The model's chat template refuses this conversation: {error}.")
            except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
                failed = failed or UserError(f"The model's chat template does not work: {error}.")
            else:
                if all(_within(m["content"], text) for m in messages if m["role"] in ("system", "user")):
                    return text
        raise failed or UserError(
            "The model's chat template leaves out what was said: use another one with --chat-template."
        )


@functools.lru_cache(maxsize=8)
def asked_for(source: str) -> frozenset[str]:
    """Variables that a template takes from outside; none of one that is not valid Jinja. The first time takes some
    20 ms, which a server would spend for each answer."""
    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(source)))
    except jinja2.TemplateError:
        return frozenset()


class _Sandbox(ImmutableSandboxedEnvironment):
    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Some templates collect things in lists (Kimi K2), as llama.cpp lets them."""
        return (isinstance(obj, list) and attr in ("append", "pop")) or super().is_safe_attribute(obj, attr, value)


def _environment() -> ImmutableSandboxedEnvironment:
    return _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )


def _forms(messages: Sequence[ChatMessage]) -> Iterator[list[dict[str, Any]]]:
    """The messages as they are, in parts, and both without a system message."""
    forms = [list(messages)]
    if len(messages) > 1 and messages[0]["role"] == "system":
        system, first, *rest = messages
        forms.append([{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest])
    for form in forms:
        yield [*form]
        yield [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in form]


def _within(content: str, text: str) -> bool:
    """Its words are all there, as they are or as JSON has them."""
    return all(word in text or json.dumps(word, ensure_ascii=False)[1:-1] in text for word in content.split())


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **more: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **more)


def template_of(
    target: Source,
    pair: Pair | None,
    vocabulary: Vocabulary | None,
    given: str | BuiltinTemplate | None,
    variables: dict[str, Any],
) -> ChatTemplate | BuiltinTemplate:
    """The one that was given (its Jinja text, or a built-in one), else the GGUF's, else the pair's.
    Raises UserError when there is none."""
    from pipeinfer_cpp.llama.chat_templates import builtin_names

    if given is not None and not isinstance(given, str):
        return given
    text = given or target.chat_template or (pair.chat_template if pair else None)
    if not text:
        raise UserError(
            f"{target.path.name} has no chat template: continue a text with `pipeinfer generate`, "
            "give the model a pair with a chat_template in models.toml, or name one with --chat-template: "
            f"a file, or one of {', '.join(builtin_names())}."
        )
    if vocabulary is None:
        return ChatTemplate(text, variables=variables)
    bos, eos = vocabulary.name(vocabulary.bos), vocabulary.name(vocabulary.eos)
    return ChatTemplate(text, bos=bos, eos=eos, variables=variables)
