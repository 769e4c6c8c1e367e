"""JSON Schema keyword by keyword, random schemas, expressions and Lark grammars, with other judges of what fits."""

from __future__ import annotations

import enum
import ipaddress
import json
import re
from typing import Annotated, Any, Literal, Optional

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampler_helpers import demo_vocab
from test_schemas import accepts, guide_of, judge, written

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.guide import Guide
from pipeinfer_cpp.llama.schema import guided_text
from pipeinfer_cpp.sampling import Sampling

TREE = {"type": "object", "properties": {"v": {"type": "integer"}, "l": {"$ref": "#"}, "r": {"$ref": "#"}}}
CLOSED = {"additionalProperties": False}
GROUPS: dict[str, list[tuple[Any, list[Any]]]] = {
    "additionalProperties": [
        ({"properties": {"a": {}}, "type": "object", **CLOSED}, [{}, {"a": 1}, {"a": 1, "z": 2}, {"z": 1}]),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, [{}, {"q": True}, {"q": 1}]),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
         [{"a": None, "b": 3}, {"a": None, "b": None}, {"b": 4}]),
    ],
    "allOf": [
        ({"allOf": [{"type": "integer"}, {"minimum": 2}]}, [1, 2, 9, "x"]),
        ({"type": "object", "allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                                      {"properties": {"b": {"type": "string"}}, "required": ["b"]}]},
         [{"a": 1, "b": "x"}, {"a": 1}, {"b": "x"}, {"a": "x", "b": "x"}]),
        ({"allOf": [True, {"type": "string"}]}, ["x", 1]),
    ],
    "anyOf": [
        ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]}, [1, "ab", "abc", None]),
        ({"type": "string", "anyOf": [{"maxLength": 1}, {"minLength": 3}]}, ["", "a", "ab", "abc"]),
        ({"anyOf": [True, {"type": "integer"}]}, [1, "x", None]),
        ({"anyOf": [{"type": "null"}, {"type": "object", "required": ["a"]}]}, [None, {"a": 1}, {}, 3]),
    ],
    "boolean": [(True, [1, "x", None, {}, []]), ({"properties": {"a": False}, "type": "object"}, [{}, {"a": 1}])],
    "const": [
        ({"const": 2}, [2, 3, "2"]),
        ({"const": None}, [None, 0, False]),
        ({"const": False}, [False, 0, [False]]),
        ({"const": {"a": [1, "x"]}}, [{"a": [1, "x"]}, {"a": [1]}, {}]),
        ({"const": 'a "quoted"\\ \n'}, ['a "quoted"\\ \n', "a"]),
    ],
    "enum": [
        ({"enum": [1, 2, 3]}, [1, 3, 4, "1"]),
        ({"enum": [6, "foo", [], True, {"foo": 12}]}, [6, "foo", [], True, {"foo": 12}, {"foo": 13}, None]),
        ({"enum": ["über", "日本", "😀"]}, ["über", "日本", "😀", "uber"]),
        ({"type": "string", "enum": ["a", 1]}, ["a", 1, "1"]),
    ],
    "exclusive bounds": [
        ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6}, [3, 4, 5, 6]),
        ({"type": "number", "exclusiveMaximum": 3}, [2.9, 3, 3.0, -7]),
        ({"type": "number", "exclusiveMinimum": -0.5}, [-0.5, -0.25, 0, 1]),
    ],
    "bounds": [
        ({"type": "integer", "minimum": -12, "maximum": 123}, [-13, -12, -1, 0, 9, 99, 100, 123, 124]),
        ({"type": "number", "minimum": 1.1}, [1.1, 1.0, 2, 0.6]),
        ({"type": "number", "maximum": -2}, [-2, -2.5, -1.5, 0]),
    ],
    "format": [
        ({"type": "string", "format": "ipv4"}, ["127.0.0.1", "256.0.0.1", "1.2.3"]),
        ({"type": "string", "format": "date"}, ["2024-02-28", "2024-13-01", "24-01-01"]),
        ({"type": "string", "format": "uuid"}, ["2eb8aa08-aa98-11ea-b4aa-73b441d16380", "2eb8aa08"]),
        ({"type": "string", "format": "email"}, ["joe@example.com", "joe"]),
    ],
    "items": [
        ({"type": "array", "items": {"type": "integer"}}, [[], [1, 2], [1, "x"]]),
        ({"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}}, [[[True], []], [[1]], [True]]),
        ({"type": "array", "items": False}, [[], [1]]),
        ({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}},
         [[1, "x", "y"], [1], [], ["x"], [1, 2]]),
    ],
    "length": [
        ({"type": "string", "minLength": 2}, ["ab", "a", "日本", "😀"]),
        ({"type": "string", "maxLength": 2}, ["ab", "abc", "😀😀", "\n\n", "\\\\\\"]),
    ],
    "item counts": [
        ({"type": "array", "minItems": 1, "maxItems": 2}, [[], [1], [1, None], [1, 2, 3]]),
        ({"type": "array", "prefixItems": [{}, {}], "maxItems": 3}, [[1], [1, 2, 3], [1, 2, 3, 4]]),
    ],
    "multipleOf": [
        ({"type": "integer", "multipleOf": 3}, [0, 3, 4, -9, 12]),
        ({"type": "integer", "multipleOf": 5, "minimum": 7}, [5, 10, 11]),
    ],
    "pattern": [
        ({"type": "string", "pattern": "^a*$"}, ["", "aaa", "aab"]),
        ({"type": "string", "pattern": "a+"}, ["xxaayy", "xyz"]),
        ({"type": "string", "pattern": "^(\\+49|0)[1-9]\\d{2,5}$"}, ["+49123", "0123", "00123", "+4912"]),
        ({"type": "string", "pattern": "^\\w{1,4}@\\w{1,4}\\.(com|org)$"}, ["a@b.com", "a@b.net"]),
    ],
    "patternProperties": [
        ({"type": "object", "patternProperties": {"^f.*o$": {"type": "integer"}}, **CLOSED},
         [{"foo": 1}, {"foo": "x"}, {}, {"bar": 1}]),
    ],
    "properties": [
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
         [{"a": 1, "b": "x"}, {"a": "x"}, {"c": []}, {}]),
        ({"type": "object", "properties": {'say "hi"': {"type": "integer"}, "tab\t": {}}},
         [{'say "hi"': 1}, {'say "hi"': "x"}]),
    ],
    "required": [
        ({"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]},
         [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}]),
        ({"type": "object", "required": ["z"]}, [{"z": 1}, {}, {"y": 1}]),
        ({"type": "object", "properties": {"a": {}}, "required": []}, [{}, {"a": 1}]),
    ],
    "property counts": [
        ({"type": "object", "maxProperties": 2}, [{}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1}]),
    ],
    "propertyNames": [
        ({"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
         [{}, {"a": 1}, {"a": 1, "b": 2}, {"a": "x"}, {"c": 1}]),
        ({"type": "object", "propertyNames": {"const": "a"}}, [{}, {"a": None}, {"b": 1}]),
    ],
    "$ref": [
        (TREE, [{"v": 1, "l": {"v": 2}, "r": {"l": {}}}, {"l": {"v": "x"}}, {"l": 1}]),
        ({"$defs": {"n": {"type": "integer", "minimum": 0}}, "type": "array", "items": {"$ref": "#/$defs/n"}},
         [[0, 1], [-1], ["x"]]),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"enum": ["x"]}}, "$ref": "#/$defs/a"}, ["x", "y"]),
        ({"$defs": {"a/b": {"type": "null"}}, "$ref": "#/$defs/a~1b"}, [None, 1]),
    ],
    "type": [
        ({"type": kind}, [1, -0.5, "x", "", True, None, {}, {"a": 1}, [], [1]])
        for kind in ("integer", "number", "string", "boolean", "null", "object", "array")
    ] + [({"type": ["integer", "null"]}, [1, None, "x"]), ({"type": ["array", "object"], "items": {"type": "null"}},
                                                           [[None], [1], {"a": 1}])],
    "annotations": [
        ({"title": "T", "description": "d", "default": 3, "examples": [1], "$comment": "c", "type": "integer",
          "deprecated": True, "readOnly": True}, [1, "x"]),
    ],
}  # fmt: skip
"""By keyword, as the official suite groups its cases: a schema, and values that fit or do not."""
CASES = [(name, *case) for name, cases in GROUPS.items() for case in cases]
REFUSED: dict[str, Any] = {
    "not": {"not": {"type": "integer"}},
    "if": {"if": {"type": "integer"}, "then": {"minimum": 3}},
    "contains": {"type": "array", "contains": {"minimum": 5}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"dependentSchemas": {"a": {"required": ["b"]}}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "unevaluatedItems": {"type": "array", "unevaluatedItems": False},
    "$dynamicRef": {"$dynamicRef": "#node"},
}


@pytest.mark.parametrize(("name", "schema", "values"), CASES, ids=[f"{c[0]} {i}" for i, c in enumerate(CASES)])
def test_every_keyword_allows_what_fits_and_nothing_else(name: str, schema: Any, values: list[Any]) -> None:
    fits = [judge(schema).is_valid(value) for value in values]
    assert any(fits), name
    assert [accepts(guide_of(schema), json.dumps(value, ensure_ascii=False)) for value in values] == fits
    if "email" not in json.dumps(schema):  # what is written by chance finds no end of a name
        judge(schema).validate(json.loads(written(1, json_schema=schema)))


@pytest.mark.parametrize("keyword", REFUSED)
def test_a_keyword_that_cannot_be_kept_is_refused_by_its_name(keyword: str) -> None:
    for schema in (REFUSED[keyword], {"type": "object", "properties": {"a": REFUSED[keyword]}}):
        with pytest.raises(UserError, match="invalid JSON schema: ") as caught:
            guided_text(Sampling(json_schema=schema))
        assert f'"{keyword}"' in str(caught.value)


SMALL = st.integers(0, 1)
NAMES = st.sampled_from(["a", "b", "k"])
LEAVES = st.one_of(
    st.fixed_dictionaries({"type": st.just("integer")}, optional={"minimum": st.integers(-20, 3)}),
    st.fixed_dictionaries({"type": st.just("integer")}, optional={"maximum": st.integers(5, 2000)}),
    st.builds(lambda least, most: {"type": "string", "minLength": least, "maxLength": most}, SMALL, st.integers(2, 9)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "number", "minimum": 0, "maximum": 9}]),
    st.sets(st.sampled_from([None, True, 3, "x", "é"]), min_size=1).map(lambda e: {"enum": sorted(e, key=repr)}),
)


def _sorted(parts: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(parts.items()))


def objects_of(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    made = st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(NAMES, parts, max_size=3).map(_sorted)},
        optional={"additionalProperties": st.just(False)},
    )
    return made.flatmap(lambda s: st.just(s) | st.just(s | {"required": sorted(s["properties"])}))


def arrays_of(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    counts = {"minItems": SMALL, "maxItems": st.integers(1, 3)}
    return st.fixed_dictionaries({"type": st.just("array"), "items": parts, **counts})


RANDOM = st.recursive(
    LEAVES,
    lambda parts: objects_of(parts) | arrays_of(parts) | st.tuples(parts, parts).map(lambda p: {"anyOf": [*p]}),
    max_leaves=6,
)
def values_of(schema: Any) -> st.SearchStrategy[Any]:
    """Values that are near to fitting: each of its kinds, within and just beyond its bounds. Names are in its order."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of(*map(values_of, schema["anyOf"]))
    kind = schema["type"]
    if kind == "array":
        return st.lists(values_of(schema["items"]), max_size=schema["maxItems"] + 1)
    if kind == "object":
        parts = schema["properties"]
        names = st.sets(st.sampled_from(sorted(parts))) if parts else st.just(set())
        return names.flatmap(lambda some: st.fixed_dictionaries({n: values_of(parts[n]) for n in some}))
    near = schema.get("minimum", schema.get("maximum", 0))
    return {
        "integer": st.integers(near - 3, near + 3),
        "number": st.sampled_from([-1, 0, 0.5, 2.25, 9, 9.5]),
        "string": st.text(st.sampled_from("aé日😀\"\\\n "), max_size=10),
        "boolean": st.booleans(),
        "null": st.none(),
    }[kind]


QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(data=st.data())
def test_random_schemas_allow_what_fits_and_nothing_else(data: st.DataObject) -> None:
    """Values made for it, in its own order of names, and those made for another."""
    schema = data.draw(RANDOM)
    guide = guide_of(schema)
    for value in (data.draw(values_of(schema)), data.draw(values_of(data.draw(RANDOM)))):
        fits = judge(schema).is_valid(value)
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)  # in the schema's order
        assert accepts(guide, text) == fits, (schema, text)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=RANDOM, seed=st.integers(0, 99))
def test_what_is_written_fits_random_schemas(schema: Any, seed: int) -> None:
    judge(schema).validate(json.loads(written(seed, json_schema=schema)))


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Address(pydantic.BaseModel):
    street: str = pydantic.Field(description="with its number", max_length=12)
    zip: Annotated[str, pydantic.StringConstraints(pattern=r"^\d{5}$")]
    host: ipaddress.IPv4Address | None = None


class Order(pydantic.BaseModel):
    id: int = pydantic.Field(alias="orderId", gt=0, lt=1000)
    level: Level
    to: Address
    lines: Annotated[list[tuple[Annotated[str, pydantic.Field(max_length=6)], int]], pydantic.Field(max_length=3)]
    paid: Literal[True, "later"] = "later"
    by: dict[Literal["card", "cash"], float] = {}


class Words(pydantic.RootModel[list[Annotated[str, pydantic.Field(max_length=5)]]]):
    pass


class Tree(pydantic.BaseModel):
    value: Annotated[float, pydantic.Field(ge=0, le=1)] | Literal["none"]
    left: Optional[Tree] = None  # noqa: UP045
    right: Optional[Tree] = None  # noqa: UP045


@pytest.mark.parametrize("model", [Address, Order, Words, Tree])
def test_more_pydantic_models_as_people_write_them(model: type[pydantic.BaseModel]) -> None:
    for seed in range(4):
        model.model_validate_json(written(seed, json_schema=model))


REGEXES = {
    r"[A-Z]{3}-\d{4}": ["ABC-1234", "AB-1234", "abc-1234"],
    r"(yes|no|may ?be)": ["yes", "maybe", "may be", "may", ""],
    r"\d{1,3}(,\d{3})*(\.\d+)?": ["1", "12,345.6", "12,34", "1."],
    r"#[0-9a-fA-F]{6}": ["#00ffAA", "#00ffA", "00ffAA"],
    r"[^aeiou\s]+": ["xyz", "xaz", "日本", " "],
    r"(?i)hello,? world!?": ["HELLO World", "hello, world!", "helo world"],
    r"\w+(\.\w+)*@\w+\.\w{2,3}": ["a.b@c.de", "a@b", "@c.de"],
    r"(a|b)*abb": ["abb", "aababb", "ab"],
    r"": ["", "a"],
}


def guide_for(**form: Any) -> Guide:
    text = guided_text(Sampling(**form))
    assert text is not None
    return Guide(demo_vocab()[2], text)


@pytest.mark.parametrize("regex", REGEXES)
def test_expressions_as_python_reads_them(regex: str) -> None:
    guide, texts = guide_for(regex=regex), REGEXES[regex]
    assert [accepts(guide, t) for t in texts] == [bool(re.fullmatch(regex, t)) for t in texts]


LARKS: dict[str, tuple[list[str], list[str]]] = {
    'start: "a" start "b" | ""': (["", "ab", "aaabbb"], ["a", "aab", "ba"]),
    "start: sum\nsum: term (/[+-]/ term)*\nterm: /\\d+/ | \"(\" sum \")\"": (["1", "1+(2-3)"], ["1+", "(1", "1++2"]),
    'start: WORD (", " WORD)*\nWORD: /[a-z]+/': (["a, bc", "x"], ["a,b", "A", ""]),
    'start: %json {"type": "integer"} ";"': (["-3;"], ["3", "x;"]),
    'start: head body?\nhead: "#" NAME "\\n"\nbody: /.+/\nNAME: /\\w{1,4}/': (["#ab\n", "#a\nx"], ["a\n", "#abcde\n"]),
}


@pytest.mark.parametrize("lark", LARKS, ids=range(len(LARKS)))
def test_lark_grammars_allow_what_they_derive(lark: str) -> None:
    guide, (good, bad) = guide_for(lark=lark), LARKS[lark]
    assert all(accepts(guide, t) for t in good) and not any(accepts(guide, t) for t in bad)
