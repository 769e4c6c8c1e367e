"""Schemas, regular expressions and Lark grammars: what is written fits by another judge, the rest is refused."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
import re
import threading
import time
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from sampler_helpers import demo_vocab, logits_after, text_of, tokens_of

from pipeinfer_cpp.errors import FormLost, UserError
from pipeinfer_cpp.llama.guide import Guide
from pipeinfer_cpp.llama.pieces import Pieces
from pipeinfer_cpp.llama.sampler import Sampler
from pipeinfer_cpp.llama.schema import guided_text
from pipeinfer_cpp.sampling import Sampling

SCHEMAS: list[Any] = [
    {"type": "integer", "minimum": 1, "maximum": 10},
    {"type": ["string", "null"], "enum": ["red", "blue", None]},
    {"allOf": [{"$ref": "#/$defs/colour"}], "$defs": {"colour": {"enum": ["red", "green"]}}},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}},
    {"type": "string", "pattern": "^(yes|no)$"},
    {"type": "string", "pattern": "ab|cd"},
    {"type": "string", "pattern": r"^\d{2}-\w+$", "maxLength": 12},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "maxLength": 1500},
    {"type": "array", "items": {}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False, "minItems": 2},
    {"type": "array", "items": True, "maxItems": 2},
    {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2},
    {"type": "integer", "multipleOf": 7, "minimum": 10},
    {"multipleOf": 0.25, "type": "number"},
    {"const": {"a": [1, 'quoted "text"\n']}},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
    {"type": "object", "properties": {"a": {"type": "integer"}}},
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "patternProperties": {"^x-": {"type": "boolean"}},
        "additionalProperties": False,
    },
    {"type": "object", "required": ["k"], "minProperties": 2},
    {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "integer", "maximum": 3}]},
    {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 5}]},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "path"},
    {"$defs": {"s": {"type": "string"}}, "type": "object", "properties": {"format": {"$ref": "#/$defs/s"}}},
    True,
]
REFUSED: dict[str, str] = {
    "{": "it is not JSON",
    "[1]": "a schema is an object",
    '{"type": "quaternion"}': "quaternion",
    '{"$ref": "https://example.com/x"}': "example.com",
    '{"$ref": "#/nowhere"}': "nowhere",
    '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#"}}}': "leads back to itself",
    '{"type": "string", "pattern": "^(?=a)$"}': "look-around",
    '{"type": "array", "uniqueItems": true}': "leave it out (in Pydantic: a list, not a set)",
    '{"not": {"type": "string"}}': '"not" cannot be kept',
    '{"if": {}, "then": {}}': '"if", "then" cannot be kept',
    '{"properties": {"a": {"dependentRequired": {"a": ["b"]}}}}': '"dependentRequired" cannot be kept',
    '{"x-guidance": {"lenient": true}, "not": {}}': '"not" cannot be kept',
    '{"oneOf": [{"type": "number"}, {"type": "integer"}]}': '"oneOf" cannot be kept',
    '{"type": "object", "minProperties": 3}': '"minProperties" cannot be kept',
    '{"type": "string", "format": "regex"}': "regex",
    '{"type": "string", "minLength": 5, "maxLength": 2}': "minLength",
    "false": "false",
    '{"enum": ["\\ud800"]}': "hex escape",
    '{"items":' * 5000 + "1" + "}" * 5000: "nests too deeply",
}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, pydantic.Field(ge=1, le=9)]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    name: str | None = None


class Person(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(min_length=1, max_length=20)]
    age: Annotated[int, pydantic.Field(ge=0, lt=130)]
    colour: Colour = Colour.RED
    friends: list[Person] = []


class Note(pydantic.BaseModel):
    title: str
    count: Annotated[int, pydantic.Field(ge=0)]
    tags: list[str]


class Owner(pydantic.BaseModel):
    pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
    notes: dict[str, int]
    point: tuple[int, float]


class Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    id: uuid.UUID
    made: datetime.datetime
    day: datetime.date
    price: decimal.Decimal
    where: Path
    secret: pydantic.SecretStr
    code: Annotated[str, pydantic.Field(pattern=r"^(A|B)\d+$", max_length=5)]


MODELS: list[type[pydantic.BaseModel]] = [Cat, Dog, Person, Owner, Record]


def sampler(**chosen: Any) -> Sampler:
    vocab, n_vocab, pieces = demo_vocab()
    return Sampler(vocab, n_vocab, Sampling(**chosen), pieces=pieces)


def written(seed: int, **form: Any) -> str:
    """A text by logits of chance, with some leaning to what ends it."""
    ours = sampler(temp=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed, **form)
    tokens: list[int] = []
    while not tokens or tokens[-1] not in demo_vocab()[2].eog:
        logits = logits_after((seed, *tokens[-20:]))
        inside = text_of(tokens, "replace").replace('\\"', "").count('"') % 2
        logits[tokens_of(",")] += 4 + min(len(tokens) / 8, 12)
        logits[tokens_of('"' if inside else "}]")] += 4 + len(tokens) / 8
        logits[[t for c in "abcd0123456789-" for t in tokens_of(c)]] += 3 + min(len(tokens) / 8, 6)
        logits[2] += 12 + len(tokens) / 8
        drawn = ours.sample(logits, len(tokens))
        assert ours.accept(drawn.token)
        tokens.append(drawn.token)
        assert len(tokens) < 700
    return text_of(tokens)


def accepts(guide: Guide, text: str) -> bool:
    there = guide.clone()
    return all(there.accept(t) for t in tokens_of(text)) and 2 in there.all_allowed()


def judge(schema: Any) -> Any:
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_what_is_written_fits_its_schema(schema: Any) -> None:
    for seed in range(4):
        judge(schema).validate(json.loads(written(seed, json_schema=schema)))


_guides: dict[str, Guide] = {}


def guide_of(schema: Any) -> Guide:
    key = json.dumps(schema)
    if key not in _guides:
        text = guided_text(Sampling(json_schema=schema))
        assert text is not None
        _guides[key] = Guide(demo_vocab()[2], text)
    return _guides[key]


PLAIN = [s for s in SCHEMAS if s is not True and s.get("type") in ("integer", "string", "number") and "format" not in s]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_only_what_fits_is_accepted(data: st.DataObject) -> None:
    """Values for one schema, shown to another: the judge agrees wherever ours lets one pass."""
    schema = data.draw(st.sampled_from(SCHEMAS))
    single = st.sampled_from(PLAIN).flatmap(from_schema)
    named = st.dictionaries(st.sampled_from(["a", "b", "k", "x-1", "next", "format"]), single, max_size=3)
    value = data.draw(single | named | st.lists(single, max_size=4))
    if accepts(guide_of(schema), json.dumps(value, ensure_ascii=False)):
        judge(schema).validate(value)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (SCHEMAS[0], "7", "-585858"),
        (SCHEMAS[1], '"blue"', '"blues"'),
        (SCHEMAS[2], '"green"', "{}"),
        (SCHEMAS[3], '{"next": {"next": {}}}', '{"next": 1}'),
        (SCHEMAS[5], '"xcdx"', '"ac"'),
        (SCHEMAS[8], json.dumps("x" * 1400), json.dumps("x" * 1501)),
        (SCHEMAS[17], '{"a": 1, "b": "x"}', '{"\\u0061": "x"}'),
        (SCHEMAS[27], '"/tmp/x"', "1"),
        ({}, '{"a":\n  [1, null, {"b": "ü"}]}', '{"a": nul}'),
        ({"type": "array", "items": {"type": "integer"}}, "[\n" + " " * 32 + "1]", "[\n" + " " * 33 + "1]"),
    ],
)
def test_single_texts(schema: Any, good: str, bad: str) -> None:
    assert accepts(guide_of(schema), good) and not accepts(guide_of(schema), bad)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bounds_count_characters(data: st.DataObject) -> None:
    """Not bytes, and not the letters of an escape: whatever is near a bound is told as the judge tells it."""
    least, most = data.draw(st.sampled_from([(0, 1), (2, 4), (3, 3), (0, 40), (95, 105), (1000, 1005)]))
    n = max(0, data.draw(st.sampled_from([least, most])) + data.draw(st.integers(-2, 2)))
    letters = st.sampled_from(["a", " ", "é", "日", "😀", '"', "\\", "\n", "/"])
    some = data.draw(st.lists(letters, min_size=min(n, 12), max_size=min(n, 12)))
    value = ("".join(some) * n)[:n]
    schema = {"type": "string", "minLength": least, "maxLength": most}
    fits = judge(schema).is_valid(value)
    assert fits == (least <= n <= most)
    assert accepts(guide_of(schema), json.dumps(value, ensure_ascii=False)) == fits


@pytest.mark.parametrize("bounds", [(1, 1), (2, 5), (28, 32), (100, 110)])
def test_written_strings_keep_their_bounds(bounds: tuple[int, int]) -> None:
    schema = {"type": "string", "minLength": bounds[0], "maxLength": bounds[1]}
    for seed in range(3):
        judge(schema).validate(json.loads(written(seed, json_schema=schema)))


@pytest.mark.parametrize("model", MODELS)
def test_pydantic_models_as_people_write_them(model: type[pydantic.BaseModel]) -> None:
    for seed in range(3):
        model.model_validate_json(written(seed, json_schema=model))


@pytest.mark.parametrize("schema", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_kept_is_refused_by_name(schema: str) -> None:
    with pytest.raises(UserError, match="invalid JSON schema: ") as caught:
        guided_text(Sampling(json_schema=schema))
    assert REFUSED[schema] in str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "regex", [r"[A-Z]{2}-\d{3}", "(yes|no|maybe)", r"^[a-zé]{1,4}@\d{2}\.(org|com)$", "a.c", "[^a-z]{3}"]
)
def test_a_text_matches_its_regular_expression(regex: str) -> None:
    for seed in range(3):
        assert re.fullmatch(regex, written(seed, regex=regex))


def test_lark_grammars_and_the_tokens_that_they_name() -> None:
    grammar = 'start: greeting " " NAME\ngreeting: "hello" | "bye"\nNAME: /[a-z]{2,5}/'
    assert re.fullmatch("(hello|bye) [a-z]{2,5}", written(1, lark=grammar))
    assert sampler(lark="start: <|im_start|>").accept(tokens_of("<|im_start|>")[0])
    for form, words in [
        ({"lark": "start: <|nobody|>"}, "nobody"),
        ({"lark": "start: nothing"}, 'unknown name: "nothing"'),
        ({"lark": ""}, "Empty grammar"),
        ({"regex": "["}, "unclosed character class"),
        ({"regex": "(?=a)b"}, "look-around"),
    ]:
        with pytest.raises(UserError, match=r"invalid (Lark grammar|regular expression|grammar): ") as caught:
            sampler(**form)
        assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "form", [{"regex": r"[^\x00-\U0010FFFF]"}, {"lark": "start: start"}, {"lark": "start: A\nA: /a/ & /b/"}], ids=str
)
def test_a_form_that_no_text_fits_is_refused_without_a_model(form: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"invalid (Lark grammar|regular expression): no text fits it\.$"):
        guided_text(Sampling(**form))


def test_what_is_refused_with_the_vocabulary_only_ends_a_turn_only() -> None:
    pieces = demo_vocab()[2]
    text = guided_text(Sampling(regex="[a-z]+"))
    assert text is not None
    broken = text.replace("[a-z]+", "[a-z")
    for use in (Guide.all_allowed, Guide.prepare, lambda guide: guide.accept(5)):
        with pytest.raises(FormLost, match="invalid grammar"):
            use(Guide(pieces, broken))


def test_control_tokens_are_no_text() -> None:
    ours = sampler(regex=".*")
    assert not ours.accept(tokens_of("<|im_start|>")[0])
    assert ours.accept(tokens_of("word")[0])


def test_one_form_at_a_time_and_schemas_of_all_kinds() -> None:
    with pytest.raises(UserError, match="only one of grammar, json_schema, regex, lark"):
        Sampling(regex="a", json_schema={}).check()
    assert Sampling(json_schema={"type": "null"}).json_schema == '{"type": "null"}'
    assert json.loads(Sampling(json_schema=Cat).json_schema)["properties"]["lives"]["maximum"] == 9
    with pytest.raises(TypeError, match="json_schema: JSON text, a dict or a Pydantic model"):
        Sampling(json_schema=object())
    draft = Sampling(json_schema={}).for_draft(10)
    assert draft.forms == [] and Sampling(regex="a").for_draft(10).forms == []


def test_clones_go_their_own_ways() -> None:
    """The matcher that they share is moved back and forth, and allows what one of its own would."""
    text = guided_text(Sampling(json_schema=Person))
    assert text is not None
    rng = np.random.default_rng(1)
    guides: list[tuple[Guide, list[int]]] = [(Guide(demo_vocab()[2], text), [])]
    for _ in range(120):
        guide, path = guides[rng.integers(len(guides))]
        other = guide.clone()
        token = int(rng.choice(other.all_allowed()))
        assert other.accept(token)
        guides.append((other, [*path, token]))
    for guide, path in guides:
        fresh = Guide(demo_vocab()[2], text)
        assert all(fresh.accept(t) for t in path)
        assert np.array_equal(fresh.all_allowed(), guide.all_allowed())


def test_a_token_of_a_vocabulary_of_262144_takes_less_than_0_3_ms() -> None:
    pieces = wide_vocabulary()
    text = guided_text(Sampling(json_schema=Note))
    assert text is not None
    guide = Guide(pieces, text)
    tokens = tokens_of('{"title": "Somebody of here", "count": 41, "tags": ["red one", "blue"]}')
    best = []
    for _ in range(3):
        there, began = guide.clone(), time.perf_counter()
        for token in tokens:
            guide._points._masks.clear()
            there.prepare()
            assert there.accept(token)
        best.append((time.perf_counter() - began) / len(tokens))
    assert min(best) < 0.3e-3


@pytest.mark.parametrize("settings", [{"temp": 0}, {"seed": 3}, {"seed": 3, "top_k": 200, "min_p": 0.0}])
def test_a_draw_near_the_end_of_a_bounded_string_takes_no_mask(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a mask of 262144 tokens takes some 2 ms, a check of the best few 0.1 ms."""
    ours = sampler(json_schema={"type": "string", "maxLength": 12}, **settings)
    assert all(ours.accept(t) for t in tokens_of('"It was'))
    monkeypatch.setattr("pipeinfer_cpp.llama.guide._Points.mask", lambda *_: pytest.fail("a mask was made"))
    for seed in range(5):
        logits = logits_after((seed,))
        long = [t for t, text in enumerate(demo_vocab()[2].texts) if len(text) > 7][:50]
        logits[long] += 30  # forbidden
        logits[tokens_of(" so")] += 20
        assert ours.sample(logits, 9).token == tokens_of(" so")[0]


def test_masks_that_are_made_ahead_wait_for_draws_that_wait() -> None:
    """Locks are not fair: all masks of a run would come before its first draw."""
    text = guided_text(Sampling(json_schema=Person))
    assert text is not None
    guide = Guide(demo_vocab()[2], text)
    points = guide._points
    draw = threading.Thread(target=guide.allowed, args=(np.array([5]),))
    helper = threading.Thread(target=guide.prepare)
    with points._moving:  # as while a mask is made
        draw.start()
        until = time.monotonic() + 10
        while not points._gate.locked():
            assert time.monotonic() < until, "a draw does not say that it waits"
            time.sleep(0.001)
    draw.join()
    with points._gate:  # as while a draw waits
        helper.start()
        helper.join(0.3)
        assert helper.is_alive() and not points._masks
    helper.join()
    assert len(points._masks) == 1


DRAWN_FORMS: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": {"type": "string", "maxLength": 12}}, '"It was the e"'),
    ({"json_schema": Person}, '{"name": "Lily of here", "age": 4'),
    ({"regex": r"[A-Z][a-z]{2,9}(, [a-z ]{2,9}){1,3}\."}, "The, old boat."),
    ({"grammar": 'root ::= "ab"* [0-9]{1,3} "."'}, "abab12."),
]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_draw_is_that_of_the_whole_mask_whichever_few_were_looked_at(data: st.DataObject) -> None:
    """The reference makes all that is forbidden unlikely without end, and knows no form."""
    form, text = data.draw(st.sampled_from(DRAWN_FORMS))
    chosen = {
        "temp": data.draw(st.sampled_from([0.0, 0.3, 0.8, 2.0])),
        "top_k": data.draw(st.sampled_from([1, 2, 5, 40, 100, 300, 0])),
        "top_p": data.draw(st.sampled_from([0.05, 0.5, 0.95, 0.999, 1.0])),
        "min_p": data.draw(st.sampled_from([0.0, 0.001, 0.05, 0.5])),
        "typical_p": data.draw(st.sampled_from([1.0, 1.0, 1.0, 0.7])),
        "seed": data.draw(st.integers(0, 99)),
    }
    ours, reference = sampler(**form, **chosen), sampler(**chosen)
    tokens = tokens_of(text)
    assert all(ours.accept(t) for t in tokens[: data.draw(st.integers(0, len(tokens)))])
    assert ours._grammar is not None
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    n_vocab = demo_vocab()[1]
    logits = rng.normal(size=n_vocab) * data.draw(st.sampled_from([0.3, 1.0, 3.0, 10.0]))
    allowed = np.zeros(n_vocab, np.bool_)
    allowed[ours._grammar.clone().all_allowed() if data.draw(st.booleans()) else _fresh_allowed(ours)] = True
    logits += data.draw(st.sampled_from([0.0, 0.0, -4.0, -12.0])) * allowed  # what the model would not write itself
    peaks = rng.choice(n_vocab, 30, replace=False)
    logits[peaks] += rng.uniform(0, data.draw(st.sampled_from([0, 6, 20])), 30)
    raw = logits.astype(np.float32)
    if data.draw(st.booleans()):
        raw[rng.choice(n_vocab, n_vocab // 2, replace=False)] = -math.inf  # as some models say of some
    masked = np.where(allowed, raw, np.float32(-math.inf))
    drawn = ours.sample(raw, 7)
    if masked.max() == -math.inf:
        assert drawn.prob == 0.0 and drawn.token in demo_vocab()[2].eog
        return
    expected = reference.sample(masked, 7)
    assert drawn.token == expected.token
    if chosen["temp"] > 0:
        assert drawn.prob == pytest.approx(expected.prob, rel=1e-6)
        if expected.second_prob > 0:
            assert (drawn.second, drawn.second_prob) == (expected.second, pytest.approx(expected.second_prob, rel=1e-6))


def _fresh_allowed(ours: Any) -> Any:
    """What is allowed, found out without leaving a mask behind."""
    allowed = ours._grammar.clone().all_allowed()
    if isinstance(ours._grammar, Guide):
        ours._grammar._points._masks.clear()
    return allowed


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_tokens_checked_one_by_one_are_those_of_the_mask(data: st.DataObject) -> None:
    schema = data.draw(st.sampled_from(SCHEMAS))
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, demo_vocab()[1] - 1), min_size=1, max_size=100)) | {2}))
    text = guided_text(Sampling(json_schema=schema))
    assert text is not None
    single, masked = Guide(demo_vocab()[2], text), Guide(demo_vocab()[2], text)
    for _ in range(data.draw(st.integers(0, 12))):
        at_most = masked.all_allowed()
        token = int(data.draw(st.sampled_from(at_most[:400].tolist())))
        assert np.array_equal(single.allowed(ids), np.intersect1d(ids, at_most))
        assert np.array_equal(masked.allowed(ids), np.intersect1d(ids, at_most))
        assert single.accept(token) and masked.accept(token)


def test_where_the_text_is_settled_a_check_allows_the_one_usual_token_as_a_mask_does() -> None:
    """Otherwise what a draw is would depend on whether a mask was there."""
    text = guided_text(Sampling(json_schema=Person))
    assert text is not None
    single, masked = Guide(demo_vocab()[2], text), Guide(demo_vocab()[2], text)
    assert all(guide.accept(t) for guide in (single, masked) for t in tokens_of('{"'))
    ids = np.array([t for t, text in enumerate(demo_vocab()[2].texts) if text and b'name": "'.startswith(text)])
    usual = masked.all_allowed().tolist()
    assert len(ids) > 1 and len(usual) == 1
    assert single.allowed(ids).tolist() == masked.allowed(ids).tolist() == usual
    assert not any(single.clone().accept(t) for t in ids.tolist() if t != usual[0])


def wide_vocabulary() -> Pieces:
    """The demo's, and pairs of its words up to 262144."""
    vocab, n_vocab, pieces = demo_vocab()
    wide = Pieces(vocab, 262144)
    rng = np.random.default_rng(0)
    words = [text for text in pieces.texts if text.strip(b" abcdefghijklmnopqrstuvwxyz") == b"" and len(text) > 1]
    more = [b"".join(words[i] for i in pair) for pair in rng.integers(len(words), size=(262144 - n_vocab, 2))]
    wide.__dict__["texts"], wide.__dict__["eog"] = pieces.texts + more, pieces.eog
    plain = pieces.marked()
    wide.marked = lambda: plain + more  # type: ignore[method-assign]
    return wide
