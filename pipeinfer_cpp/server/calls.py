"""Calls of functions in what a model writes: the forms of its chat template, told apart from the answer as it comes."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeinfer_cpp.server.call_forms import FORMS, LENIENT, Form, form_of, names_in, properties, typed

Kind = str
"""`hermes`: `<tool_call>{"name", "arguments"}</tool_call>`, `llama`: `{"name", "parameters"}` as the whole answer;
`mistral`: `[TOOL_CALLS][{...}]`; `mistral-args`: `[TOOL_CALLS]name[ARGS]{...}`; or one of `call_forms.FORMS`."""

FORCED: tuple[Kind, ...] = ("hermes", "llama", "mistral", "mistral-args")
"""Those that a grammar keeps to a schema."""
_OPENINGS: dict[Kind, tuple[str, ...]] = {
    "hermes": ("<tool_call>",),
    "llama": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]",),
    "mistral-args": ("[TOOL_CALLS]",),
}
_CLOSING = "</tool_call>"
_ARGS = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\][\w-]*)?\[ARGS\]")
_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_ID = string.ascii_letters + string.digits


class Call(NamedTuple):
    """A call, or its beginning; `more`: a further piece of the last one's arguments."""

    id: str
    name: str
    arguments: str
    """JSON text of an object, or a piece of it."""
    more: bool = False

    def in_openai(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def kind_of(template: str) -> Kind | None:
    """The form in which a model with this chat template calls functions; None where it has none that is known here."""
    if not re.search(r"\btools\b", template):
        return None
    if (form := form_of(template)) is not None:
        return form
    if "[TOOL_CALLS]" in template:
        return "mistral-args" if "[ARGS]" in template else "mistral"
    if "<tool_call>" in template:
        if "<function=" in template or re.search(r'\\?"name\\?": ', template):
            return "hermes"
        return None
    if "<|start_header_id|>" in template and re.search(r'"parameters\\?": ', template):
        return "llama"
    return None


def new_id() -> str:
    """Nine letters and digits: templates of Mistral take no others."""
    return "".join(secrets.choice(_ID) for _ in range(9))


class MustCall:
    """An answer that a grammar keeps to one call: its arguments come piece by piece, as they are written."""

    _HEAD = re.compile(
        r'\s*\[?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)', re.DOTALL
    )

    def __init__(self, opening: str) -> None:
        """`opening`: the end of the prompt. Where it names the function, what follows are the arguments."""
        named = _ARGS.search(opening)
        self._name = named[1] if named else ""
        self._held, self._begun, self._over = "", False, False
        self._depth, self._string, self._escaped = 0, False, False

    def names(self, token: str) -> bool:
        return False

    def feed(self, text: str) -> list[str | Call]:
        """Nothing until the function's name is there, and nothing behind the end of its arguments."""
        self._held += text
        if not self._begun:
            if not self._name:
                head = self._HEAD.match(self._held)
                if head is None:
                    return []
                self._name, self._held = LENIENT.decode(head[1]), self._held[head.end() :]
            self._held = self._held.lstrip()
            if not self._held:
                return []
        said, self._held = self._object(self._held), ""
        if not said:
            return []
        more, self._begun = self._begun, True
        return [Call("" if more else new_id(), self._name, said, more)]

    def finish(self) -> list[str | Call]:
        return []

    def _object(self, text: str) -> str:
        """As much of it as belongs to the object that is under way."""
        for at, letter in enumerate(text):
            if self._over:
                return text[:at]
            if self._escaped:
                self._escaped = False
            elif self._string:
                self._escaped, self._string = letter == "\\", letter != '"'
            elif letter == '"':
                self._string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                self._over = self._depth == 0
        return text


def merged(parts: Sequence[Any]) -> list[Any]:
    """The parts of a whole answer, with each call in one piece."""
    whole: list[Any] = []
    for part in parts:
        if isinstance(part, Call) and part.more:
            at = max(i for i, one in enumerate(whole) if isinstance(one, Call))
            whole[at] = whole[at]._replace(arguments=whole[at].arguments + part.arguments)
        else:
            whole.append(part)
    return whole


class Calls:
    """Splits one answer into text and calls. What looks like a call and is none stays text."""

    def __init__(self, kind: Kind, schemas: Mapping[str, Any]) -> None:
        """`schemas`: by the name of each function that may be called, that of its parameters."""
        self._kind, self._schemas = kind, schemas
        self._form = FORMS.get(kind)
        self._openings = self._form.opening if self._form is not None else _OPENINGS[kind]
        self._names = names_in(self._form) if self._form is not None else frozenset()
        self._held = ""
        self._opened: str | None = None
        self._begun = False
        self._behind = False

    def names(self, token: str) -> bool:
        """This control token is part of a call, so it counts as text."""
        return token in self._names or token in (*self._openings, _CLOSING, "[ARGS]", "[CALL_ID]")

    def feed(self, text: str) -> list[str | Call]:
        """Text and calls that are certain, in their order."""
        self._held += text
        out: list[str | Call] = []
        while True:
            if self._behind and not self._close():
                return out
            if self._opened is None and not self._open(out):
                return out
            calls, end = self._body()
            if end is None:
                return out
            if calls:
                out += calls
                self._behind = True
            else:
                out.append(f"{self._opened}{self._held[:end]}")
            self._opened, self._held = None, self._held[end:]

    def finish(self) -> list[str | Call]:
        """What was held back. A call that nothing closed may be whole: what closes it ends many an answer."""
        if self._form is not None and self._opened is not None:
            found = self._form.read(self._held.strip(), self._schemas)
            if found:
                self._held, self._opened = "", None
                return [self._call(*one) for one in found]
        held = (self._opened or "") + ("" if self._behind and not self._held.strip(" \n;,") else self._held)
        self._held, self._opened, self._behind = "", None, False
        return [held] if held else []

    def _open(self, out: list[str | Call]) -> bool:
        """Text up to where a call begins; False when none does yet."""
        openings = self._openings
        if self._kind == "llama" and not self._begun:
            start = self._held.lstrip()
            if not start:
                return False
            if start.startswith("{"):
                self._begun, self._opened = True, self._held[: len(self._held) - len(start)]
                self._held = start
                return True
        found = min(((at, tag) for tag in openings if (at := self._held.find(tag)) >= 0), default=None)
        if found is None:
            cut = len(self._held) - max((_beginning(self._held, tag) for tag in openings), default=0)
            if cut:
                out.append(self._held[:cut])
                self._begun = self._begun or bool(self._held[:cut].strip())
            self._held = self._held[cut:]
            return False
        at, tag = found
        if at:
            out.append(self._held[:at])
        self._begun, self._opened, self._held = True, tag, self._held[at + len(tag) :]
        return True

    def _close(self) -> bool:
        """Pass over what stands behind a call; False when there may come more of it."""
        rest = self._held.lstrip(" \t\r\n;,")
        if not rest or (_CLOSING.startswith(rest) and rest != _CLOSING):
            return False
        self._behind = False
        if rest.startswith(_CLOSING):
            rest, self._behind = rest[len(_CLOSING) :].lstrip(), True
            self._held = rest
            return self._close() if rest else False
        self._held = rest
        if self._kind in ("llama", "mistral-args") and rest.startswith("{"):
            self._begun = False
        return True

    def _body(self) -> tuple[list[Call], int | None]:
        """The calls at the beginning of what is held, and where they end; None when that is not known yet."""
        if self._form is not None:
            return self._formed(self._form)
        name, start = "", 0
        if self._kind == "mistral-args" and (head := _ARGS.match(self._held)):
            name, start = head[1], head.end()
        while start < len(self._held) and self._held[start].isspace():
            start += 1
        if self._held[start : start + 1] in ("{", "["):
            try:
                value, end = LENIENT.raw_decode(self._held, start)
            except (json.JSONDecodeError, RecursionError):
                pass
            else:
                return self._calls({"name": name, "arguments": value} if name else value), end
        at = self._held.find(_CLOSING) if self._kind == "hermes" else -1
        while at >= 0 and self._held[start : start + 1] in ("{", "[") and _in_string(self._held[start:at]):
            at = self._held.find(_CLOSING, at + 1)
        if at < 0:
            return [], None
        if found := _FUNCTION.fullmatch(self._held[:at]):
            return self._calls({"name": found[1], "arguments": self._parameters(found[1], found[2])}), at
        return [], at + len(_CLOSING)

    def _formed(self, form: Form) -> tuple[list[Call], int | None]:
        """The same for one of the table."""
        if not form.closing:
            return [], None
        at = first = self._held.find(form.closing)
        while at >= 0:  # the first closing may stand in a text
            found = form.read(self._held[:at].strip(), self._schemas)
            if found:
                return [self._call(*one) for one in found], at + len(form.closing)
            at = self._held.find(form.closing, at + 1)
        return [], first + len(form.closing) if first >= 0 else None

    def _call(self, name: str, arguments: Mapping[str, Any]) -> Call:
        return Call(new_id(), name, json.dumps(arguments, ensure_ascii=False))

    def _calls(self, value: Any) -> list[Call]:
        """None at all when one of them is none of the functions."""
        calls: list[Call] = []
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                return []
            one = one["function"] if isinstance(one.get("function"), dict) else one
            arguments = one.get("arguments", one.get("parameters", {}))
            if isinstance(arguments, str):
                try:
                    arguments = LENIENT.decode(arguments)
                except (json.JSONDecodeError, RecursionError):
                    return []
            if one.get("name") not in self._schemas or not isinstance(arguments, dict):
                return []
            calls.append(self._call(one["name"], arguments))
        return calls

    def _parameters(self, name: str, text: str) -> dict[str, Any]:
        """Values in the form `<parameter=key>value</parameter>`: text, or JSON where the schema says so."""
        known = properties(self._schemas.get(name))
        return {key: typed(value, known.get(key)) for key, value in _PARAMETER.findall(text)}


def split(text: str, kind: Kind, schemas: Mapping[str, Any]) -> tuple[str, list[Call]]:
    """The text of a whole answer without its calls, and those."""
    calls = Calls(kind, schemas)
    parts: Sequence[str | Call] = [*calls.feed(text), *calls.finish()]
    return "".join(p for p in parts if isinstance(p, str)).strip(), [p for p in parts if isinstance(p, Call)]


def _in_string(text: str) -> bool:
    """JSON that ends so is within a string."""
    return re.sub(r"\\.", "", text, flags=re.DOTALL).count('"') % 2 == 1


def _beginning(text: str, tag: str) -> int:
    """Length of the longest end of the text that begins the tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
