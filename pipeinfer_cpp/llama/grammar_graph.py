"""Which rules of a grammar lead back to themselves without taking a character.

llama.cpp expands a rule to the characters that it may start with. Where that expansion does not
end, the process hangs, fills the memory or stops on an assertion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

Sequence = list["str | None"]
"""Symbols of one alternative: the name of a rule, or None for something that takes characters or a token."""
Rules = Mapping[str, list[Sequence]]
Graph = dict[str, set[str]]

_MAX_PATHS = 1_000_000  # llama.cpp's own check walks every path anew


def endless(rules: Rules) -> str | None:
    """Why llama.cpp could not expand these rules (all of them defined), or None when it can."""
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
