"""GBNF grammars: what is refused and why, what is allowed next."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_grammar
from sampler_helpers import demo_vocab, logits_after, piece_of, tokens_of

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.gbnf import GrammarError, read_gbnf
from pipeinfer_cpp.llama.grammar import Grammar, grammar_text
from pipeinfer_cpp.llama.library import lib
from pipeinfer_cpp.llama.native import Candidates, Native
from pipeinfer_cpp.llama.sampler import Sampler
from pipeinfer_cpp.sampling import Sampling

EOG = 2

GOOD = [
    'root ::= "a"',
    "root ::=",
    'root ::= "" | [] "x"',
    "# a comment\n\nroot ::= [^a-z\\]\\x41\\u00e9-] . # another\n",
    'root ::= ("a" |\n "b"\n)+ x{2} x{0,3} x{2,}\r\nx ::= "c"? "d"*',
    'root ::= ("a"*)* "z"',
    'root ::= (ws item?)*\nws ::= [ \\t]*\nitem ::= "x"',
    'root ::= ("a"{100}){20}',
    'root ::= ("a" ("b" ("c")?)?)?',
    'root ::= "a" root | "b"',
    'a ::= "x"\nroot ::= a\na ::= "y"',
    'root ::= <|im_end|> | <[5]> | !<[6]> "x"',
    'root ::= "a"{0,99999}',
    "root ::= " + "(" * 500 + '"a"' + ")" * 500,
    *(getattr(llama_grammar, name) for name in dir(llama_grammar) if name.endswith("_GBNF")),
]
BAD = {
    "": "no rule 'root'",
    "# nothing": "no rule 'root'",
    'other ::= "a"': "no rule 'root'",
    "root ::= thing": "rule 'root' uses 'thing', which is not defined",
    'root ::= ("a" | thing)*': "rule 'root' uses 'thing', which is not defined",
    'root = "a"': "line 1: expecting '::='",
    'x ::= "b"\nroot ::= "abc': "line 2: expecting a character",
    'root ::= "\\q"': "escape",
    'root ::= "\\x4"': "escape",
    "root ::= [a-": "the end of a range",
    "root ::= [abc": "closing ']'",
    'root ::= ("a"': "expecting ')'",
    'root ::= "a")': "expecting a new line or the end",
    "root ::= *": "a repetition of nothing",
    'root ::= ""+': "a repetition of nothing",
    'root ::= "a"{x}': "expecting a repetition",
    'root ::= "a"{1,2': "expecting a repetition",
    'root ::= "a"{3000}': "more than 2000 repetitions",
    'root ::= ("a"{1,100}){100}': "too many repetitions",
    "root ::= <|im_end": "expecting a token",
    'root ::= <nonsense> "a"': "the vocabulary has no token <nonsense>",
    'root ::= root "a" | "b"': "left-recursive",
    'root ::= a\na ::= b\nb ::= root "x" | "y"': "left-recursive",
}
"""Refused by llama.cpp as well."""
DEADLY = {
    'root ::= "a"{3,2}': "at least 3 and at most 2",  # llama.cpp fills the memory
    'root ::= a root "z" | "x"\na ::= b\nb ::= "c"?': "left-recursive",  # the same
    'root ::= a root\na ::= b\nb ::= ""': "never comes to a character",  # ends the process on first use
    "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(60)) + '\nr60 ::= "a"': "nest too many",
    "root ::= " + "(" * 5000 + '"a"' + ")" * 5000: "nested parentheses",
    'root ::= "a\0"': "NUL",
}


def sampler(**settings: Any) -> Sampler:
    vocab, n_vocab, pieces = demo_vocab()
    return Sampler(vocab, n_vocab, Sampling(**settings), pieces=pieces)


def grammar(text: str) -> Grammar:
    _, n_vocab, pieces = demo_vocab()
    return Grammar(pieces, Candidates(n_vocab), text)


@pytest.mark.parametrize("text", GOOD)
def test_good_grammars_are_good_for_llama_cpp_too(text: str) -> None:
    read_gbnf(text)
    native = Native(lib.llama_sampler_init_grammar(demo_vocab()[0], text.encode(), b"root"))
    native.close()


@pytest.mark.parametrize("text", BAD)
def test_bad_grammars_are_refused_with_the_reason_before_llama_cpp_complains(text: str, capfd: Any) -> None:
    with pytest.raises(UserError, match="invalid grammar: ") as caught:
        sampler(grammar=text)
    assert BAD[text] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    if text:  # an empty text is no grammar to llama.cpp
        assert not lib.llama_sampler_init_grammar(demo_vocab()[0], text.encode(), b"root")


@pytest.mark.parametrize("text", DEADLY, ids=range(len(DEADLY)))
def test_grammars_that_would_take_the_process_down_are_refused(text: str) -> None:
    with pytest.raises(GrammarError) as caught:
        read_gbnf(text)
    assert DEADLY[text] in str(caught.value)
    with pytest.raises(UserError, match="invalid grammar"):
        grammar_text(Sampling(grammar=text))


def test_forbidden_tokens_are_refused_and_change_nothing() -> None:
    ours = sampler(temp=0, grammar='root ::= "yes" | "no"', repeat_penalty=1.3)
    logits = logits_after((1,))
    before = ours.sample(logits, 0)
    for token in [*tokens_of("maybe"), EOG, 0, 1, 8191]:
        assert not ours.accept(token)
    assert ours.sample(logits, 0) == before
    for token in tokens_of("no"):
        assert ours.accept(token)
    assert ours.accept(EOG) and ours.accept(EOG)
    assert not ours.accept(tokens_of("n")[0])


@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_an_ended_grammar_allows_only_the_end(temp: float) -> None:
    ours = sampler(temp=temp, grammar='root ::= "no"')
    for token in tokens_of("no"):
        assert ours.accept(token)
    logits = logits_after((2,))
    vocab = demo_vocab()[0]
    drawn = ours.sample(logits, 5)
    assert lib.llama_vocab_is_eog(vocab, drawn.token)
    assert drawn.second == -1 or lib.llama_vocab_is_eog(vocab, drawn.second)
    assert ours.accept(drawn.token)
    assert lib.llama_vocab_is_eog(vocab, ours.sample(logits, 6).token)


@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_where_nothing_is_allowed_the_text_ends(temp: float) -> None:
    drawn = sampler(temp=temp, grammar='root ::= "\\x00"').sample(logits_after((2,)), 5)
    assert lib.llama_vocab_is_eog(demo_vocab()[0], drawn.token)
    assert drawn[2:] == (0.0, -1, 0.0, ())
    letters = {t: -math.inf for t in range(demo_vocab()[1]) if t != EOG}
    drawn = sampler(temp=temp, grammar="root ::= [a-z]+", logit_bias=letters).sample(logits_after((2,)), 5)
    assert (drawn.token, drawn.prob) == (EOG, 0.0)


def test_the_fast_way_to_all_allowed_tokens_is_exact() -> None:
    every = np.arange(demo_vocab()[1], dtype=np.int32)
    texts = ["", "{", '{"', '{"näme', '{"a"', '{"a":', '{"a": 12', '{"a": [1, {"b": nu', '{"a": 1}']
    for text in texts:
        ours = grammar(llama_grammar.JSON_GBNF)
        assert all(ours.accept(t) for t in tokens_of(text))
        assert np.array_equal(ours.all_allowed(), ours.allowed(every))
    for rule in [
        "root ::= [à-ÿ]+",
        "root ::= [^a-z]",
        'root ::= "the" | "there" | "therefore"',
        "root ::= !<[5]> <[7]>",
    ]:
        ours = grammar(rule)
        assert np.array_equal(ours.all_allowed(), ours.allowed(every))
    half = grammar("root ::= [à-ÿ]+")  # in the middle of a character
    first = next(t for t in half.all_allowed().tolist() if piece_of(t) == b"\xc3")
    assert half.accept(first)
    assert np.array_equal(half.all_allowed(), half.allowed(every))


@pytest.mark.parametrize(
    "settings",
    [
        {"temp": 0},
        {"seed": 1},
        {"seed": 2, "top_k": 3},
        {"seed": 3, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"seed": 4, "top_k": 0, "typical_p": 0.5, "top_p": 1.0, "min_p": 0.0},
    ],
)
def test_draws_are_those_with_all_forbidden_tokens_banned(settings: dict[str, Any]) -> None:
    """The grammar stands before the filters, whichever of its short cuts was taken."""
    for text in ["", "{", '{"', '{"a":', '{"a": 12']:
        ours = sampler(grammar=llama_grammar.JSON_GBNF, **settings)
        plain = grammar(llama_grammar.JSON_GBNF)
        assert all(ours.accept(t) and plain.accept(t) for t in tokens_of(text))
        forbidden = set(range(demo_vocab()[1])) - set(plain.all_allowed().tolist())
        reference = sampler(logit_bias={t: -math.inf for t in forbidden}, **settings)
        for pos in range(5):
            logits = logits_after((pos,), favoured=tuple(tokens_of('{}[]",: 12345 true')))
            drawn, expected = ours.sample(logits, pos), reference.sample(logits, pos)
            assert drawn[:2] == expected[:2]
            assert drawn.prob == pytest.approx(expected.prob, rel=1e-5)
