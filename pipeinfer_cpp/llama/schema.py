"""JSON schemas, regular expressions and Lark grammars for llguidance, checked without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.sampling import Sampling

_OPTIONS = {
    "whitespace_pattern": r"( |\n[ \t]{0,32})",  # models that are lost write spaces without end
    "json_allowed_escapes": '"\\bfnrt',  # "\u0061" as a name would get round what is said of "a"
    "lenient": False,
    "coerce_one_of": False,
}
_FORMATS = {
    *("date-time", "time", "date", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
    *("uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer"),
    "regex",
}
"""What the standard defines. Other formats (`path`, `password`, `binary`) are remarks, and say nothing of the text."""
_DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"
"""Pydantic's pattern of a Decimal: the look-ahead asks for a digit."""
_ONE = "additionalProperties", "additionalItems", "items", "not", "if", "then", "else", "contains", "propertyNames"
_MANY = "allOf", "anyOf", "oneOf", "prefixItems", "items"
_NAMED = "properties", "patternProperties", "$defs", "definitions", "dependentSchemas"


def guided_text(sampling: Sampling) -> str | None:
    """What llguidance makes of the schema, regular expression or Lark grammar that `sampling` asks for, or None.

    Raises UserError for those that are wrong, or that cannot be kept while a text is written.
    """
    if sampling.json_schema is not None:
        return _checked(_from_schema(sampling.json_schema), "JSON schema")
    if sampling.regex is not None:
        return _checked(_matcher().grammar_from_regex(sampling.regex), "regular expression")
    if sampling.lark is not None:
        return _checked(_matcher().grammar_from_lark(sampling.lark), "Lark grammar")
    return None


def names_tokens(text: str) -> bool:
    """Whether only a vocabulary can tell if `text` (of `guided_text`) holds: it names tokens."""
    return any("no tokenizer" in warning for warning in _matcher().validate_grammar_with_warnings(text)[1])


def reason(message: str) -> str:
    """llguidance's words for what is wrong, as the end of a sentence on one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    text = told[0] if told else lines[0] if lines else "llguidance cannot use it"
    return re.sub(r"^at \d+\(\d+\): ", "", text).rstrip(".")


def _matcher() -> Any:
    from llguidance import LLMatcher  # only where it is needed: workers start sooner so

    return LLMatcher


def _checked(text: str, kind: str) -> str:
    wrong, messages = _matcher().validate_grammar_with_warnings(text)
    if not wrong:
        if not any("no tokenizer" in warning for warning in messages):
            _begin(text, kind)
        return text
    if messages[0].startswith('Unimplemented keys: ["uniqueItems"]'):
        raise UserError(
            'invalid JSON schema: "uniqueItems" cannot be kept while a text is written; leave it out '
            "(in Pydantic: a list, not a set), and drop what comes twice afterwards."
        )
    if unknown := re.match(r"Unimplemented keys: \[(.*)\]", messages[0]):
        raise UserError(f"invalid JSON schema: {unknown[1]} cannot be kept while a text is written; leave it out.")
    if lost := re.match(r"Resource '(.*?)' is not present in a registry", messages[0]):
        raise UserError(
            f'invalid JSON schema: what "$ref" names, {lost[1]}, is not in the schema; put it under "$defs" '
            'and name it "#/$defs/...".'
        )
    if messages[0].startswith("oneOf constraints are not supported"):
        raise UserError(
            'invalid JSON schema: "oneOf" cannot be kept where one text may fit several of its schemas; use "anyOf".'
        )
    raise UserError(f"invalid {kind}: {reason(messages[0])}.")


def _begin(text: str, kind: str) -> None:
    """Go to where it begins, with bytes as tokens. Raises UserError where llguidance cannot, or where nothing fits."""
    from llguidance import LLTokenizer

    matcher = _matcher()(LLTokenizer("byte"), text, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        said = reason(matcher.get_error())
        raise UserError(f"invalid {kind}: {'no text fits it' if said == 'NoExtensionBias' else said}.")


def _from_schema(text: str) -> str:
    try:
        schema = json.loads(text)
        if schema is False:
            raise UserError("invalid JSON schema: nothing fits false.")
        schema = {} if schema is True else schema
        for part in _parts(schema):
            _prepare(part)
            _follow(part, schema)
        made: str = _matcher().grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)
    except json.JSONDecodeError as error:
        raise UserError(f"invalid JSON schema: it is not JSON ({error}).") from None
    except RecursionError:
        raise UserError("invalid JSON schema: it nests too deeply.") from None
    except ValueError as error:
        raise UserError(f"invalid JSON schema: {reason(str(error))}.") from None
    return made


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all schemas in it, but for those that are true or false."""
    if not isinstance(schema, bool | dict):
        raise UserError('invalid JSON schema: a schema is an object, such as {"type": "object"}.')
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        yield part
        waiting += [part[key] for key in _ONE if key in part]
        waiting += [one for key in _MANY if isinstance(part.get(key), list) for one in part[key]]
        waiting += [one for key in _NAMED if isinstance(part.get(key), dict) for one in part[key].values()]


def _follow(part: dict[str, Any], schema: Any) -> None:
    """Refuse a reference that only leads round. `schema`: what "#" means."""
    first, seen = part.get("$ref"), set()
    here: Any = part
    while isinstance(here, dict) and isinstance(name := here.get("$ref"), str) and re.match("#(/|$)", name):
        if here.keys() - _SILENT:
            return
        if name in seen:
            raise UserError(
                f'invalid JSON schema: "$ref": {json.dumps(first)} leads back to itself and says nothing; '
                "put a schema there."
            )
        seen.add(name)
        here = schema
        for step in name.split("/")[1:]:
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(here, list) and step.isdecimal() and int(step) < len(here):
                here = here[int(step)]
            else:
                here = here.get(step) if isinstance(here, dict) else None  # what is not there llguidance says itself


def _prepare(part: dict[str, Any]) -> None:
    """Drop what says nothing of the text; refuse what llguidance would not keep."""
    if str(part.get("format")) not in _FORMATS:
        part.pop("format", None)
    if part.get("pattern") == _DECIMAL:
        part["pattern"] = r"^[+-]?(\d+\.?\d*|\.\d+)$"
    names = part.get("propertyNames")
    if isinstance(names, dict) and not part.keys() & {"properties", "patternProperties"}:  # dict[Literal[...], T]
        listed = names.get("enum", [names["const"]] if "const" in names else None)
        if isinstance(listed, list) and names.keys() <= {"enum", "const", "type", "title"}:
            del part["propertyNames"]
            value = part.get("additionalProperties", True)
            part["properties"] = {name: value for name in listed if isinstance(name, str)}
            part["additionalProperties"] = False
    for key in _FORGOTTEN & part.keys():
        raise UserError(f'invalid JSON schema: "{key}" cannot be kept while a text is written; leave it out.')
    least = part.get("minProperties", 0)
    open_ = part.get("additionalProperties", True) is not False or part.get("patternProperties")
    required = part.get("required", [])
    # A name that the schema does not list may be written twice, and counts once.
    if open_ and isinstance(least, int) and isinstance(required, list) and least > len(set(map(str, required))) + 1:
        raise UserError(
            'invalid JSON schema: "minProperties" cannot be kept where names are free; '
            'list the names in "properties" and set "additionalProperties" to false.'
        )


_SILENT = {"$ref", "$defs", "definitions", "$schema", "$id", "$comment", "title", "description", "default", "examples"}
"""What may stand beside a reference and says nothing of the text."""
_FORGOTTEN = {"$recursiveRef", "divisibleBy", "disallow", "extends"}
"""Keywords of drafts 3 and 2019 that llguidance would pass over."""
