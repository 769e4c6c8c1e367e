"""GBNF read and checked in Python, before llama.cpp sees it.

llama.cpp parses a grammar well, but a bad one can also make it print to stderr, fill the memory
(`"a"{3,2}`, some left recursions) or end the process later (a rule without any text). Nothing of
that can be caught through ctypes, so this module reads the grammar by the same rules as
`llama_grammar_parser` and refuses those with a reason. Characters are not kept: only what
refers to what.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

_MAX_REPETITION = 2000  # MAX_REPETITION_THRESHOLD of llama-grammar.cpp
_MAX_DEPTH = 1000  # of parentheses: llama.cpp recurses
_WORD = re.compile(r"[A-Za-z0-9-]+")
_CHAR = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[tnr\\\"\[\]-])|[^\\]", re.S)
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_OR_LINE = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_TOKEN_ID = re.compile(r"<\[[0-9]{1,10}\]>")
_TOKEN_TEXT = re.compile(r"<[^>]*>", re.S)
_COUNTS = re.compile(r"\{[ \t]*([0-9]+)[ \t]*(?:(,)[ \t]*([0-9]*)[ \t]*)?\}")


class GrammarError(ValueError):
    """Why a grammar cannot be used, as the end of a sentence."""


@dataclass
class Gbnf:
    """A grammar with repetitions and groups written out as rules of their own."""

    rules: dict[str, list[Sequence]] = field(default_factory=dict)
    symbols: set[str] = field(default_factory=set)
    token_texts: list[str] = field(default_factory=list)
    has_tokens: bool = False


@dataclass
class _Frame:
    """A rule body, or a group in it, that is being read."""

    name: str
    n_symbols: int
    nested: bool
    done: list[Sequence] = field(default_factory=list)
    seq: Sequence = field(default_factory=list)
    last: int = 0
    n_rules: int = 1


def read_gbnf(text: str) -> Gbnf:
    """The rules of `text`. Raises GrammarError when llama.cpp could not parse it or could not live with it."""
    if "\0" in text:
        raise GrammarError("it contains a NUL character")
    grammar = _Reader(text).read()
    if "root" not in grammar.rules:
        raise GrammarError("there is no rule 'root'")
    for name, alternatives in grammar.rules.items():
        for symbol in (s for seq in alternatives for s in seq if s is not None):
            if symbol not in grammar.rules:
                raise GrammarError(f"rule '{name.split('_')[0]}' uses '{symbol}', which is not defined")
    if reason := endless(grammar.rules):
        raise GrammarError(reason)
    return grammar


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.pos, self.out, self.rule = text, 0, Gbnf(), ""

    def read(self) -> Gbnf:
        self.skip(True)
        while self.pos < len(self.text):
            self.rule = self.take(_WORD, "a rule name").group()
            self.out.symbols.add(self.rule)
            self.skip(False)
            if not self.text.startswith("::=", self.pos):
                raise self.error("expecting '::='")
            self.pos += 3
            self.skip(True)
            self.body()
            if self.pos < len(self.text) and self.text[self.pos] not in "\r\n":
                raise self.error("expecting a new line or the end")
            self.skip(True)
        return self.out

    def body(self) -> None:
        stack = [_Frame(self.rule, 0, nested=False)]
        while stack:
            frame = stack[-1]
            c = self.text[self.pos : self.pos + 1]
            if c == "(":
                if len(stack) > _MAX_DEPTH:
                    raise self.error(f"more than {_MAX_DEPTH} nested parentheses")
                n_symbols = len(self.out.symbols)
                stack.append(_Frame(self.new_name(), n_symbols, nested=True))
                self.pos += 1
                self.skip(True)
            elif c == "|":
                frame.done.append(frame.seq)
                frame.seq, frame.last, frame.n_rules = [], 0, 1
                self.pos += 1
                self.skip(True)
            elif c and (c in '"[<!.*+?{' or _WORD.match(c)):
                self.item(frame, c)
                self.skip(frame.nested)
            else:
                self.out.rules[frame.name] = [*frame.done, frame.seq]
                stack.pop()
                if stack:
                    if c != ")":
                        raise self.error("expecting ')'")
                    outer = stack[-1]
                    outer.last, outer.n_rules = len(outer.seq), max(1, len(self.out.symbols) - frame.n_symbols)
                    outer.seq.append(frame.name)
                    self.pos += 1
                    self.skip(outer.nested)

    def item(self, frame: _Frame, c: str) -> None:
        """One symbol or one repetition of the symbol before it."""
        if c in "*+?":
            self.pos += 1
            self.repeat(frame, 1 if c == "+" else 0, 1 if c == "?" else None)
            return
        if c == "{":
            found = self.take(_COUNTS, "a repetition such as {2} or {1,3}")
            low, high = int(found[1]), int(found[3]) if found[3] else None if found[2] else int(found[1])
            if low > _MAX_REPETITION:
                raise self.error(f"more than {_MAX_REPETITION} repetitions")
            if high is not None and high < low:
                raise self.error(f"a repetition of at least {low} and at most {high}")
            self.repeat(frame, low, None if high is not None and high > _MAX_REPETITION else high)
            return
        frame.last, frame.n_rules = len(frame.seq), 1
        if c == '"':
            if self.literal():
                frame.seq.append(None)
        elif c == "[":
            if self.char_class():
                frame.seq.append(None)
        elif c in "<!":
            self.pos += c == "!"
            self.out.has_tokens = True
            if not (found_id := _TOKEN_ID.match(self.text, self.pos)):
                found_id = self.take(_TOKEN_TEXT, "a token such as <[42]> or <|im_end|>")
                self.out.token_texts.append(found_id.group())
            else:
                self.pos = found_id.end()
            frame.seq.append(None)
        elif c == ".":
            self.pos += 1
            frame.seq.append(None)
        else:
            name = self.take(_WORD, "a rule name").group()
            self.out.symbols.add(name)
            frame.seq.append(name)

    def repeat(self, frame: _Frame, low: int, high: int | None) -> None:
        before = frame.seq[frame.last :]
        if not before:
            raise self.error("a repetition of nothing")
        total = high or low or 1
        if frame.n_rules * total > _MAX_REPETITION:
            raise self.error("too many repetitions of repetitions")
        if low == 0:
            del frame.seq[frame.last :]
        frame.seq += before * (low - 1)
        inner: str | None = None
        for _ in range(1 if high is None else high - low):
            name = self.new_name()
            rest = name if high is None else inner
            self.out.rules[name] = [[*before, rest] if rest else list(before), []]
            inner = name
        if inner:
            frame.seq.append(inner)
        frame.n_rules *= total

    def literal(self) -> int:
        self.pos += 1
        n = 0
        while not self.text.startswith('"', self.pos):
            self.take(_CHAR, "a character or an escape such as \\n or \\x41, and a closing '\"'")
            n += 1
        self.pos += 1
        return n

    def char_class(self) -> int:
        self.pos += 1 + self.text.startswith("^", self.pos + 1)
        n = 0
        while not self.text.startswith("]", self.pos):
            self.take(_CHAR, "a character or an escape such as \\n or \\x41, and a closing ']'")
            n += 1
            if self.text.startswith("-", self.pos) and not self.text.startswith("-]", self.pos):
                self.pos += 1
                self.take(_CHAR, "the end of a range")
        self.pos += 1
        return n

    def take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.text, self.pos)
        if not found:
            raise self.error(f"expecting {what}")
        self.pos = found.end()
        return found

    def skip(self, newline_ok: bool) -> None:
        found = (_SPACE_OR_LINE if newline_ok else _SPACE).match(self.text, self.pos)
        self.pos = found.end() if found else self.pos

    def new_name(self) -> str:
        name = f"{self.rule}_{len(self.out.symbols)}"
        self.out.symbols.add(name)
        return name

    def error(self, reason: str) -> GrammarError:
        line = self.text.count("\n", 0, self.pos) + 1
        rest = self.text[self.pos : self.pos + 20].split("\n")[0]
        return GrammarError(f"line {line}: {reason} at {rest!r}" if rest else f"line {line}: {reason} at the end")


Sequence = list["str | None"]
"""Symbols of one alternative: the name of a rule, or None for something that takes characters or a token."""
Rules = Mapping[str, list[Sequence]]
Graph = dict[str, set[str]]

_MAX_PATHS = 1_000_000  # llama.cpp's own check walks every path anew


def endless(rules: Rules) -> str | None:
    """Why llama.cpp could not expand these rules (all of them defined), or None when it can. It expands a rule to the
    characters that it may start with; where that does not end, the process hangs, fills the memory or stops on an
    assertion."""
    direct = {name for name, alternatives in rules.items() if [] in alternatives}
    graph: Graph = {name: {s for s, _ in _leading(alternatives, direct)} for name, alternatives in rules.items()}
    order = components(graph)
    for name in _cyclic(graph, order):
        return _left(name)
    paths: dict[str, int] = {}
    for (name,) in order:  # what it leads to comes first
        paths[name] = 1 + sum(paths[s] for a in rules[name] for s, _ in _leading([a], direct))
    if sum(paths.values()) > _MAX_PATHS:
        return "its rules nest too many alternatives"

    # From here on "may be empty" is exact, where llama.cpp only looks one rule deep.
    empty = _grow(rules, lambda seq, known: all(s in known for s in seq))
    starts = _grow(rules, lambda seq, known: any(s is None or s in known for s in _head(seq, empty)))
    for name in rules:
        if name not in empty and name not in starts:
            return f"rule '{_plain(name)}' never comes to a character"
    graph = {name: {s for s, _ in _leading(alternatives, empty)} for name, alternatives in rules.items()}
    group = {name: i for i, names in enumerate(components(graph)) for name in names}
    for name, alternatives in rules.items():
        for symbol, is_last in _leading(alternatives, empty):
            if group[symbol] == group[name] and not is_last:
                return _left(name)
    return None


def components(graph: Graph) -> list[list[str]]:
    """Strongly connected components (Tarjan), each after those that it leads to."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    found: list[list[str]] = []
    stack: list[str] = []
    on_stack: set[str] = set()
    for root in graph:
        if root in index:
            continue
        work = [(root, iter(sorted(graph[root])))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, following = work[-1]
            for child in following:
                if child not in index:
                    index[child] = low[child] = len(index)
                    stack.append(child)
                    on_stack.add(child)
                    work.append((child, iter(sorted(graph[child]))))
                    break
                if child in on_stack:
                    low[node] = min(low[node], index[child])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    at = stack.index(node)
                    found.append(stack[at:])
                    on_stack.difference_update(stack[at:])
                    del stack[at:]
    return found


def _cyclic(graph: Graph, order: list[list[str]]) -> Iterable[str]:
    return (names[0] for names in order if len(names) > 1 or names[0] in graph[names[0]])


def _head(seq: Sequence, empty: set[str]) -> Sequence:
    """The symbols up to the first that takes something."""
    for i, symbol in enumerate(seq):
        if symbol not in empty:
            return seq[: i + 1]
    return seq


def _leading(alternatives: list[Sequence], empty: set[str]) -> list[tuple[str, bool]]:
    """The rules that an expansion comes to first, and whether nothing follows them."""
    return [
        (symbol, i == len(seq) - 1)
        for seq in alternatives
        for i, symbol in enumerate(_head(seq, empty))
        if symbol is not None
    ]


def _grow(rules: Rules, holds: Callable[[Sequence, set[str]], bool]) -> set[str]:
    """The least set of rules of which an alternative holds, given the set."""
    known: set[str] = set()
    grew = True
    while grew:
        more = {name for name in rules if name not in known and any(holds(s, known) for s in rules[name])}
        known |= more
        grew = bool(more)
    return known


def _plain(name: str) -> str:
    return name.split("_")[0]


def _left(name: str) -> str:
    return f"rule '{_plain(name)}' is left-recursive: it can come back to itself before any character"
