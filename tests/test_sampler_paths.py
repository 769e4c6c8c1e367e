"""Samplers of the token tree: whatever was speculated, each row is drawn as plain decoding would."""

from __future__ import annotations

import resource
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampler_helpers import demo_vocab, logits_after, tokens_of

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.native import Native
from pipeinfer_cpp.llama.paths import PathSamplers
from pipeinfer_cpp.llama.sampler import Draw, Sampler
from pipeinfer_cpp.sampling import Sampling

GRAMMAR = 'root ::= ("ab" | "a" [xyz] root | "[" [0-9]+ "]")* "."'
PROMPT = [9, 44, 44, 1000, 9]
START = len(PROMPT) - 1  # the position of node 0

KINDS: dict[str, dict[str, Any]] = {
    "stateless": {"temp": 0.9},
    "greedy penalties": {"temp": 0.0, "repeat_penalty": 1.4, "repeat_last_n": 6, "frequency_penalty": 0.5},
    "penalties": {"temp": 0.8, "presence_penalty": 1.0, "repeat_penalty": 1.2},
    "grammar": {"temp": 0.9, "grammar": GRAMMAR},
    "regex": {"temp": 0.9, "regex": r"(ab|a[xyz]+|\[[0-9]+\])*\."},
    "both": {"temp": 0.0, "grammar": GRAMMAR, "presence_penalty": 2.0, "logit_bias": {2: -3.0}},
}


def favoured() -> tuple[int, ...]:
    return (*(t for c in "abxyz[]0123." for t in tokens_of(c)), 2)


def logits_at(path: tuple[int, ...]) -> Any:
    return logits_after((*PROMPT, *path), favoured=favoured())


def plain(sampling: Sampling, path: tuple[int, ...]) -> Draw | None:
    """The draw behind `path` (below the prompt) by one sampler that saw nothing else."""
    vocab, n_vocab, pieces = demo_vocab()
    sampler = Sampler(vocab, n_vocab, sampling, pieces=pieces)
    sampler.feed_prompt(PROMPT)
    alive = all(sampler.accept(t) for t in path)
    drawn = sampler.sample(logits_at(path), START + len(path) + 1) if alive else None
    sampler.close()
    return drawn


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_row_of_a_random_tree_is_drawn_as_in_plain_decoding(kind: str, data: st.DataObject) -> None:
    sampling = Sampling(seed=data.draw(st.integers(0, 3)), **KINDS[kind])
    stateless = kind == "stateless"
    vocab, n_vocab, pieces = demo_vocab()
    paths = PathSamplers(vocab, n_vocab)
    paths.pieces = pieces
    paths.begin(sampling, PROMPT)
    tree: dict[int, tuple[int, tuple[int, ...]]] = {0: (-1, ())}  # node: parent, path
    live = {0}  # below the last final node, came here, and not forbidden
    known: dict[int, Draw | None] = {}
    root = 0

    def row(node: int) -> None:
        parent, path = tree[node]
        token = path[-1] if path else PROMPT[-1]
        drawn = paths.draw(node, parent, token, START + len(path), logits_at(path))
        if stateless:
            assert drawn == plain(sampling, path)
        elif node not in live and parent not in live:
            assert drawn is None
        else:
            assert drawn == plain(sampling, path)
            if drawn is not None:
                live.add(node)
        known[node] = drawn

    row(0)
    for _ in range(data.draw(st.integers(3, 14))):
        action = data.draw(st.sampled_from(["grow", "grow", "grow", "lose", "final", "again"]))
        if action in ("grow", "lose"):
            parent = data.draw(st.sampled_from(sorted(tree)))
            drawn = known.get(parent)
            right = [drawn.token] * 8 if drawn else []
            token = data.draw(st.sampled_from([*right, *favoured()]))
            node = max(tree) + data.draw(st.integers(1, 3))
            tree[node] = (parent, (*tree[parent][1], token))
            if action == "grow":  # a lost row is that of a dead run: its node never comes
                row(node)
        elif action == "again":
            row(data.draw(st.sampled_from(sorted(live))))
        else:
            root = data.draw(st.sampled_from(sorted(live)))
            paths.final(root)
            live = {n for n in live if tree[n][1][: len(tree[root][1])] == tree[root][1] and descends(tree, n, root)}
            nodes, samplers = paths.size
            assert nodes == (0 if stateless else len(live) - 1) and samplers <= len(live)
    paths.close()


def descends(tree: dict[int, tuple[int, tuple[int, ...]]], node: int, root: int) -> bool:
    while node not in (root, -1):
        node = tree[node][0]
    return node == root


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [1, 3, 1000])
def test_a_speculated_text_is_the_plain_text(kind: str, wrong: int) -> None:
    """Runs of the newest final token and three guesses, every `wrong`-th of them wrong."""
    sampling = Sampling(seed=5, **KINDS[kind])
    text: list[int] = []
    while len(text) < 16:
        drawn = plain(sampling, tuple(text))
        assert drawn is not None
        text.append(drawn.token)

    vocab, n_vocab, _ = demo_vocab()
    paths = PathSamplers(vocab, n_vocab)
    paths.begin(sampling, PROMPT)
    drawn = paths.draw(0, -1, PROMPT[-1], START, logits_at(()))
    assert drawn is not None
    found, root, newest, n_guess = [drawn.token], 0, 0, 0
    while len(found) < len(text):
        base = len(found) - 1
        rows = [found[-1]]
        for token in text[base + 1 : base + 4]:
            n_guess += 1
            rows.append(97 if n_guess % wrong == 0 else token)
        parent, expected = root, found[-1]
        for i, token in enumerate(rows):
            newest += 1
            logits = logits_at((*text[:base], *rows[: i + 1]))
            drawn = paths.draw(newest, parent, token, START + base + i + 1, logits)
            parent = newest
            if token == expected and drawn is not None:
                root = newest
                paths.final(root)
                found.append(expected := drawn.token)
            else:
                expected = -1
    assert found[: len(text)] == text
    paths.close()


def test_below_a_forbidden_token_everything_is_dead() -> None:
    vocab, n_vocab, _ = demo_vocab()
    paths = PathSamplers(vocab, n_vocab)
    paths.begin(Sampling(temp=0, grammar='root ::= "a" "b"* "."'), PROMPT)
    a, b, x = (tokens_of(c)[0] for c in "abx")
    assert paths.draw(0, -1, 9, 4, logits_at(())) is not None
    assert paths.draw(1, 0, x, 5, logits_at((x,))) is None
    assert paths.draw(2, 1, b, 6, logits_at((x, b))) is None
    assert paths.draw(3, 0, a, 5, logits_at((a,))) is not None
    assert paths.draw(4, 3, b, 6, logits_at((a, b))) is not None
    assert paths.size == (2, 1)  # the sampler that the forbidden token did not move served the next
    paths.close()


def test_what_was_looked_ahead_at_is_not_found_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, n_vocab, pieces = demo_vocab()
    paths = PathSamplers(vocab, n_vocab)
    paths.pieces = pieces
    a, b = (tokens_of(c)[0] for c in "ab")
    sampling = Sampling(temp=0.8, regex=r"ab*\.")  # a greedy draw asks for few tokens, which is as quick
    paths.begin(sampling, PROMPT)
    paths.look_ahead([(0, -1, 9), (1, 0, a), (2, 1, b)])
    paths.looked_ahead()
    monkeypatch.setattr("pipeinfer_cpp.llama.guide._Points._go", lambda *_: pytest.fail("it was computed again"))
    drawn = [paths.draw(n, n - 1, t, 4 + n, logits_at((a, b)[:n])) for n, t in enumerate((9, a, b))]
    monkeypatch.undo()
    assert drawn == [plain(sampling, (a, b)[:n]) for n in range(3)]
    paths.close()


def test_what_a_dead_run_wanted_is_left() -> None:
    """Its masks would stand before those of the next run, and before the end of the turn."""
    vocab, n_vocab, pieces = demo_vocab()
    paths = PathSamplers(vocab, n_vocab)
    paths.pieces = pieces
    a = tokens_of("a")[0]
    paths.begin(Sampling(temp=0.8, regex=r"a*[a-z]{3,900}\."), PROMPT)
    paths.looked_ahead()
    guide = paths._base.guide() if paths._base is not None else None
    assert guide is not None
    masks = guide._points._masks
    with guide._points._moving:  # the helper waits here
        paths.look_ahead([(n, n - 1, a) for n in range(1, 40)])
        paths.look_ahead([(1, 0, a), (2, 1, a)])
    paths.looked_ahead()
    assert 3 <= len(masks) <= 4  # at the beginning, of the dead run at most one, and those of the run that lives
    with guide._points._moving:
        paths.look_ahead([(n, n - 1, a) for n in range(3, 40)])
        closing = threading.Thread(target=paths.close)
        closing.start()
        while paths._ahead is not None:
            time.sleep(0.001)
    closing.join()
    assert len(masks) <= 5


def test_a_final_node_that_has_not_come_yet_is_awaited() -> None:
    vocab, n_vocab, _ = demo_vocab()
    paths = PathSamplers(vocab, n_vocab)
    paths.begin(Sampling(temp=0, presence_penalty=1.0), PROMPT)
    paths.draw(0, -1, 9, 4, logits_at(()))
    paths.draw(1, 0, 50, 5, logits_at((50,)))
    paths.final(2)
    assert paths.size == (1, 1)
    paths.draw(2, 0, 60, 5, logits_at((60,)))
    assert paths.size[0] == 0
    assert paths.draw(3, 1, 70, 6, logits_at((50, 70))) is None
    assert paths.draw(4, 2, 70, 6, logits_at((60, 70))) == plain(Sampling(temp=0, presence_penalty=1.0), (60, 70))
    paths.close()


def test_stateless_sampling_keeps_no_books() -> None:
    vocab, n_vocab, _ = demo_vocab()
    paths = PathSamplers(vocab, n_vocab)
    alive = Native.alive
    paths.begin(Sampling(), PROMPT)
    natives = Native.alive
    logits = logits_at(())
    for node in range(1000):
        assert paths.draw(node, node - 1, 5, 4 + node, logits) is not None
        if node % 3 == 0:
            paths.final(node)
    assert paths.size == (0, 0) and Native.alive == natives <= alive + 1
    paths.close()
    assert Native.alive == alive


def test_an_invalid_grammar_leaves_nothing_behind() -> None:
    vocab, n_vocab, _ = demo_vocab()
    paths = PathSamplers(vocab, n_vocab)
    paths.begin(Sampling(grammar=GRAMMAR), PROMPT)
    alive = Native.alive
    with pytest.raises(UserError, match="invalid grammar"):
        paths.begin(Sampling(grammar="root ::= nothing"), PROMPT)
    assert Native.alive < alive and paths.size == (0, 0)
    paths.begin(Sampling(temp=0), PROMPT)
    assert paths.draw(0, -1, 9, 4, logits_at(())) is not None


def test_turns_leak_no_samplers_and_no_memory() -> None:
    vocab, n_vocab, _ = demo_vocab()
    paths = PathSamplers(vocab, n_vocab)
    logits = logits_at(())
    a, b, x = (tokens_of(c)[0] for c in "abx")

    def turn() -> None:
        paths.begin(Sampling(temp=0.8, grammar='root ::= ("a" | "b")* "."', repeat_penalty=1.1), PROMPT)
        paths.draw(0, -1, 9, 4, logits)
        base, node = 0, 1
        for _ in range(10):
            paths.draw(node, base, a, 5, logits)
            for fork in range(1, 6):
                paths.draw(node + fork, node + fork // 2, (a, b, x)[fork % 3], 6, logits)
            assert paths.size[1] <= 6
            paths.final(node)
            base, node = node, node + 10

    alive = Native.alive
    for _ in range(10):
        turn()
    paths.close()
    assert Native.alive == alive
    before = memory()
    for _ in range(150):
        turn()
    paths.close()
    assert Native.alive == alive
    assert memory() - before < 4e6  # one leaked sampler a turn would be more


def memory() -> float:
    """Resident bytes (or, where /proc is missing, their peak)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
