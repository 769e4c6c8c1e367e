# ruff: noqa: RUF001
"""Forms in which model families write calls of functions, one table: what opens and closes them in an answer, and how
the calls between are read. The words are those of the models' own chat templates."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Read = Callable[[str, Mapping[str, Any]], "list[tuple[str, dict[str, Any]]] | None"]
"""(what stands between opening and closing, schemas of parameters by name) -> calls; None where these are none."""
LENIENT = json.JSONDecoder(strict=False)  # models write line breaks into strings


class Form(NamedTuple):
    known_by: tuple[str, ...]
    """All of these are in the chat template."""
    opening: tuple[str, ...]
    closing: str
    """Empty: the call ends where the answer does."""
    read: Read
    marks: tuple[str, ...] = ()
    """Control tokens between."""


def typed(value: str, schema: Any) -> Any:
    """A parameter's value that was written without its type: text, or JSON where the schema does not say text."""
    if isinstance(schema, dict) and schema.get("type") == "string":
        return value
    try:
        return LENIENT.decode(value)
    except (json.JSONDecodeError, RecursionError):
        pass
    if value[:1] in ("{", "["):  # some templates write objects as Python does
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
        return found if isinstance(found, dict | list) else value
    return value


def properties(schema: Any) -> Mapping[str, Any]:
    known = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return known if isinstance(known, dict) else {}


def _tagged(pattern: str, arguments: Callable[[str, Any], dict[str, Any] | None]) -> Read:
    """Calls one behind the other. `pattern` has the groups `name` and `args`."""
    call = re.compile(r"[\s,\]]*" + pattern + r"[\s\]]*", re.DOTALL)

    def read(body: str, schemas: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]] | None:
        found, at = [], 0
        while at < len(body):
            one = call.match(body, at)
            if one is None or (name := one["name"].strip()) not in schemas:
                return None
            values = arguments(one["args"], schemas[name])
            if values is None:
                return None
            found.append((name, values))
            at = one.end()
        return found or None

    return read


def _object(text: str, _schema: Any = None) -> dict[str, Any] | None:
    try:
        value = LENIENT.decode(text.strip() or "{}")
    except (json.JSONDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _pairs(pattern: str) -> Callable[[str, Any], dict[str, Any] | None]:
    """Parameters one by one. `pattern` has the groups `key` and `value`, and `text` where it says if that is text."""
    pair = re.compile(pattern, re.DOTALL)

    def arguments(text: str, schema: Any) -> dict[str, Any] | None:
        if pair.sub("", text).strip():
            return None
        known, values = properties(schema), {}
        for one in pair.finditer(text):
            said = one.groupdict().get("text")
            of = {"type": "string"} if said == "true" else {} if said == "false" else known.get(one["key"].strip())
            values[one["key"].strip()] = typed(one["value"], of)
        return values

    return arguments


def _objects(name: str = "name", arguments: str = "arguments") -> Read:
    """JSON objects, one behind the other or in a list."""

    def read(body: str, schemas: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]] | None:
        values: list[Any] = []
        at = 0
        try:
            while body[at:].strip(" \r\n\t,"):
                at += len(body) - at - len(body[at:].lstrip(" \r\n\t,"))
                value, at = LENIENT.raw_decode(body, at)
                values += value if isinstance(value, list) else [value]
        except (json.JSONDecodeError, RecursionError):
            return None
        found = []
        for one in values:
            if isinstance(one, dict) and not name and len(one) == 1:
                ((called, given),) = one.items()
            elif isinstance(one, dict):
                called, given = one.get(name), one.get(arguments, {})
            else:
                return None
            given = _object(given) if isinstance(given, str) else given
            if not isinstance(called, str) or called not in schemas or not isinstance(given, dict):
                return None
            found.append((called, given))
        return found or None

    return read


_GEMMA = re.compile(r'<\|"\|>(?P<text>.*?)<\|"\|>|(?P<key>[\w$.-]+)(?=:)', re.DOTALL)


def _gemma(text: str, _schema: Any) -> dict[str, Any] | None:
    """`key:<|"|>text<|"|>,other:[1,{a:2}]`"""
    plain = _GEMMA.sub(lambda m: json.dumps(m["key"] if m["key"] is not None else m["text"]), text)
    return _object("{" + plain + "}")


def _invoke(mark: str, text: str = "") -> Read:
    """`<invoke name="f"><parameter name="key">value</parameter></invoke>`, each tag with a mark before its name."""
    pair = rf'<{mark}parameter name="(?P<key>[^"]*)"{text}>(?P<value>.*?)</{mark}parameter>'
    return _tagged(rf'<{mark}invoke name="(?P<name>[^"]*)">(?P<args>.*?)</{mark}invoke>', _pairs(pair))


_PAIR = r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"
_IN_TAGS = _tagged(
    r"<function=(?P<name>[^>\s]+)>(?P<args>.*?)</function>",
    _pairs(r"<parameter=(?P<key>[^>\s]+)>\n?(?P<value>.*?)\n?</parameter>"),
)
_TO = " to=functions."

FORMS: dict[str, Form] = {
    "glm": Form(  # GLM 4.5 to 4.7, Ling, Laguna, Spark
        ("<tool_call>", "<arg_key>"),
        ("<tool_call>",),
        "</tool_call>",
        _tagged(r"(?P<name>[^<]+?)\s*(?P<args>(?:<arg_key>.*)?)$", _pairs(_PAIR)),
        ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    "kimi": Form(  # K2
        ("<|tool_calls_section_begin|>",),
        ("<|tool_calls_section_begin|>",),
        "<|tool_calls_section_end|>",
        _tagged(
            r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[^<:]+)(?::\d+)?\s*"
            r"<\|tool_call_argument_begin\|>(?P<args>.*?)<\|tool_call_end\|>",
            _object,
        ),
        ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    ),
    "deepseek": Form(  # V3, R1 (with ```json) and V3.1 (without)
        ("<｜tool▁calls▁begin｜>",),
        ("<｜tool▁calls▁begin｜>",),
        "<｜tool▁calls▁end｜>",
        _tagged(
            r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[^\n<]+?)"
            r"(?:\s*```json\s*|<｜tool▁sep｜>)(?P<args>.*?)(?:\s*```)?\s*<｜tool▁call▁end｜>",
            _object,
        ),
        ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    ),
    "dsml": Form(  # DeepSeek V3.2
        ("｜DSML｜", "function_calls"),
        ("<｜DSML｜function_calls>",),
        "</｜DSML｜function_calls>",
        _invoke("｜DSML｜", ' string="(?P<text>true|false)"'),
        ("｜DSML｜",),
    ),
    "dsml-v4": Form(  # DeepSeek V4
        ("｜DSML｜", "tool_calls>"),
        ("<｜DSML｜tool_calls>",),
        "</｜DSML｜tool_calls>",
        _invoke("｜DSML｜", ' string="(?P<text>true|false)"'),
        ("｜DSML｜",),
    ),
    "harmony": Form(  # gpt-oss: the address stands before the channel or behind it
        ("<|channel|>", "<|call|>"),
        (f"<|channel|>commentary{_TO}", _TO),
        "<|call|>",
        _tagged(
            r"(?P<name>[\w.-]+)\s*(?:<\|channel\|>\w+)?\s*(?:<\|constrain\|>)?\s*\w*\s*<\|message\|>(?P<args>.*)$",
            _object,
        ),
        ("<|channel|>", "<|constrain|>", "<|message|>"),
    ),
    "gemma": Form(  # Gemma 4
        ("<|tool_call>call:",),
        ("<|tool_call>call:",),
        "<tool_call|>",
        _tagged(r"(?P<name>[^{]+)\{(?P<args>.*)\}$", _gemma),
        ("<|tool_call>", '<|"|>'),
    ),
    "minimax": Form(  # M2
        ("<minimax:tool_call>", "<invoke name="),
        ("<minimax:tool_call>",),
        "</minimax:tool_call>",
        _invoke(""),
    ),
    "muse": Form(("<atem:function_calls>",), ("<atem:function_calls>",), "</atem:function_calls>", _invoke("atem:")),
    "seed": Form(("<seed:tool_call>", "<function="), ("<seed:tool_call>",), "</seed:tool_call>", _IN_TAGS),
    "minicpm": Form(
        ("<function name=", "<param name="),
        ("<function name=",),
        "</function>",
        _tagged(
            r'"(?P<name>[^"]*)">(?P<args>.*)$', _pairs(r'<param name="(?P<key>[^"]*)">(?P<value>.*?)</param>')
        ),
    ),
    "solar": Form(
        ("<|tool_call:begin|>", "<|tool_call:args|>"),
        ("<|tool_calls|>",),
        "<|calls|>",
        _tagged(
            r"<\|tool_call:begin\|>[^<]*<\|tool_call:name\|>(?P<name>[^<]*)<\|tool_call:args\|>(?P<args>.*?)"
            r"<\|tool_call:end\|>",
            _object,
        ),
        ("<|tool_call:begin|>", "<|tool_call:name|>", "<|tool_call:args|>", "<|tool_call:end|>"),
    ),
    "cohere": Form(
        ("<|START_ACTION|>", '"tool_name"'),
        ("<|START_ACTION|>",),
        "<|END_ACTION|>",
        _objects("tool_name", "parameters"),
    ),
    "apertus": Form(("<|tools_prefix|>",), ("<|tools_prefix|>",), "<|tools_suffix|>", _objects("")),
    "nemotron": Form(("<TOOLCALL>",), ("<TOOLCALL>",), "</TOOLCALL>", _objects()),
    "listed": Form(("<tool_calls>",), ("<tool_calls>",), "</tool_calls>", _objects()),  # MiniMax M1, Apriel
    "gigachat": Form(("<|function_call|>",), ("<|function_call|>",), "<|message_sep|>", _objects()),
    "granite": Form(("<|tool_call|>",), ("<|tool_call|>",), "", _objects()),  # 3
    "functionary": Form(
        ("<function=", "</function>", "<|start_header_id|>"),
        ("<function=",),
        "</function>",
        _tagged(r"(?P<name>[^>]+)>(?P<args>.*)$", _object),
    ),
}


def form_of(template: str) -> str | None:
    return next((name for name, form in FORMS.items() if all(words in template for words in form.known_by)), None)


def names_in(form: Form) -> frozenset[str]:
    """Control tokens that are a part of a call, so that they count as text."""
    marks = {*form.opening, form.closing, *form.marks}
    return frozenset(marks | {found for mark in marks for found in re.findall(r"<\|[^|<>]*\|?>|<[^|<>]*\|>", mark)})
