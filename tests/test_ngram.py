"""Guesses from the text itself."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeinfer_cpp.engine import CostCurve, Engine, Settings
from pipeinfer_cpp.engine import events as ev
from pipeinfer_cpp.engine.ngram import LONGEST, Matches, Ngrams
from pipeinfer_cpp.engine.speculation import MatchCalibration, Trust
from pipeinfer_cpp.engine.tree import Node
from pipeinfer_cpp.sim.cluster import VirtualCluster
from pipeinfer_cpp.sim.worlds import Replay, independent

STEEP = CostCurve.linear(0.02, 0.006)
ONLY, BOTH = frozenset({"ngram"}), frozenset({"draft", "ngram"})


def longest(text: list[int], guessed: list[int]) -> tuple[int, int]:
    """By looking at every place."""
    whole, best = text + guessed, (-1, 0)
    for end in range(1, len(text)):
        if end == len(whole) - 1:
            continue
        length = 0
        while length < min(LONGEST, end + 1) and whole[end - length] == whole[-1 - length]:
            length += 1
        if length >= 2 and length >= best[1]:
            best = end + 1, length
    return best


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 3), max_size=40), st.lists(st.integers(1, 3), max_size=5), st.integers(0, 40))
def test_the_latest_of_the_longest_matches_is_found(text: list[int], guessed: list[int], first: int) -> None:
    """However the text grew."""
    matches = Matches()
    matches.begin(text[:first])
    matches.extend(text[first:])
    assert matches.find(guessed) == longest(text, guessed)


def test_another_text_forgets_and_a_longer_one_goes_on() -> None:
    matches = Matches()
    matches.begin([1, 2, 3, 4, 1, 2])
    assert matches.find() == (2, 2)
    matches.begin([1, 2, 3, 4, 1, 2, 3])
    assert matches.find() == (3, 3)
    matches.begin([1, 2, 9, 1, 2])
    assert matches.find() == (2, 2) and matches.tokens == [1, 2, 9, 1, 2]
    matches.begin([5, 6])
    assert matches.find() == (-1, 0)


def test_an_index_grows_by_one_number_a_token() -> None:
    """A text that repeats itself for ever adds no pairs, and is looked up as quickly."""
    matches = Matches()
    matches.begin([1, 2, 3] * 10_000)
    assert len(matches._last) == 4 and len(matches._before) == 30_000
    assert matches.find() == (29_997, LONGEST)


def test_a_text_that_repeats_itself_goes_on_through_its_guesses() -> None:
    ngrams = Ngrams()
    ngrams.begin([7, 1, 2, 3, 1, 2])
    assert ngrams.propose([], 5) == [(3, 2), (1, 3), (2, 4), (3, 5), (1, 6)]
    assert ngrams.propose([3], 2) == [(1, 3), (2, 4)]
    assert ngrams.propose([9], 2) == []


def test_what_a_match_was_worth_is_told_with_each_token() -> None:
    ngrams = Ngrams()
    ngrams.begin([1, 2, 3, 4, 1, 2])
    assert ngrams.final(3) == (2, True)
    assert ngrams.final(5) == (3, False)
    assert ngrams.final(6) is None


def test_matches_are_trusted_by_their_length() -> None:
    calibration = MatchCalibration(prior=4, memory=1.0)
    assert calibration(3) < calibration(6) < calibration(40) == calibration(16)
    before = calibration(6)
    for _ in range(8):
        calibration.learn(3, True)
    assert calibration(3) == pytest.approx((4 * 0.3 + 8) / 12) and calibration(6) == before


def test_two_that_agree_are_trusted_more() -> None:
    trust = Trust()
    alone = Node(1, 5, 1, prob=0.55, drafted=True)
    text = Node(1, 5, 1, prob=0.3, match=3)
    both = Node(1, 5, 1, prob=0.55, drafted=True, match=3)
    assert trust(alone) == pytest.approx(0.55) and trust(text) == pytest.approx(0.3)
    assert trust(both) == pytest.approx(1 - 0.45 * 0.7)


# ------------------------------------------------------------------------------------- in the engine


def begun(proposers: frozenset[str], prompt: list[int], **more: Any) -> tuple[Engine, int]:
    """An engine with this prompt, and the number of its draft path (0: none)."""
    engine = Engine(Settings(n_ctx=200, max_rows=4, proposers=proposers, **more), [STEEP] * 3)
    out = engine.handle(ev.Prompt(tuple(prompt), 60), 0.0)
    return engine, next((action.path for action in out if isinstance(action, ev.DraftReset)), 0)


def chain(engine: Engine) -> list[Node]:
    nodes, node = [], engine.slots[0].tree.root
    while node.children:
        (node,) = node.children
        nodes.append(node)
    return nodes


REPEATED = [*range(10, 30)] * 2 + [*range(10, 18)]
"""Eight tokens into its third round: 18 follows."""


def test_without_a_draft_model_the_text_guesses() -> None:
    engine, path = begun(ONLY, REPEATED)
    assert not path and not engine.worker.alive
    assert [node.token for node in chain(engine)][:12] == [18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29]
    assert {node.origin for node in chain(engine)} == {"ngram"}
    assert [node.match for node in chain(engine)][:3] == [8, 9, 10]


def test_a_draft_that_agrees_is_the_same_node() -> None:
    engine, path = begun(BOTH, REPEATED)
    proposed = engine.slots[0].stats.proposed
    engine.handle(ev.Drafted(path, len(REPEATED), 18, 0.9, 5, 0.05, 0.002), 0.001)
    first, second = chain(engine)[:2]
    assert first.drafted and first.match == 8 and first.prob == 0.9 and first.second == 5
    assert second.match == 9 and not second.drafted
    assert engine.slots[0].stats.proposed == proposed


def test_the_surer_of_two_is_kept() -> None:
    """A sure draft replaces the text's guess; an unsure one goes on behind it."""
    engine, path = begun(BOTH, REPEATED)
    engine.slots[0].tree.root.children[0].run = None
    engine.handle(ev.Drafted(path, len(REPEATED), 99, 0.95, -1, 0.0, 0.002), 0.001)
    assert chain(engine)[0].token == 99
    engine, path = begun(BOTH, REPEATED)
    out = engine.handle(ev.Drafted(path, len(REPEATED), 99, 0.15, -1, 0.0, 0.002), 0.001)
    assert chain(engine)[0].token == 18
    reset = next(action for action in out if isinstance(action, ev.DraftReset))
    assert (reset.keep, reset.tokens) == (len(REPEATED), (18,)) and reset.path != path


def test_short_matches_leave_the_place_to_a_draft_model() -> None:
    engine, _ = begun(BOTH, [1, 2, 3, 4, 1, 2])
    assert not chain(engine)  # of two tokens alike, 0.35 right: less than drafts in the mean
    engine, _ = begun(ONLY, [1, 2, 3, 4, 1, 2])
    assert chain(engine)


def test_a_draft_model_that_is_behind_goes_on_where_the_text_is() -> None:
    """The draft has said nothing yet when the text's own guess is final."""
    world = Replay([*range(10, 30)] * 8, {})
    cluster = VirtualCluster(
        world, [STEEP] * 2, Settings(n_ctx=300, proposers=BOTH, max_rows=8), draft_s=10.0, hop=0.0002
    )
    outcome = cluster.generate(world.text[:50], 80)
    assert outcome.tokens == world.text[50:130] and outcome.origins.count("ngram") > 60
    assert max(len(tokens) for tokens in cluster.draft.paths.values()) > 100


# -------------------------------------------------------------------------------------- in virtual time


def edit(n: int, every: int, seed: int = 0) -> tuple[Replay, int]:
    """A text of n tokens, then the same with every so many tokens one changed. Also where the second begins."""
    rng = random.Random(seed)
    old = [rng.randrange(1, 5000) for _ in range(n)]
    new = [rng.randrange(1, 5000) if i % every == every - 1 else token for i, token in enumerate(old)]
    return Replay([*old, *new, -1], {}), n + 8


def speed(world: Replay, begin: int, n: int, n_stages: int = 8, draft_s: float = 0.004, **more: Any) -> float:
    of = Settings(n_ctx=len(world.text) + 64, max_rows=16, **more)
    outcome = VirtualCluster(world, [STEEP] * n_stages, of, draft_s=draft_s).generate(world.text[:begin], n)
    assert outcome.tokens == world.text[begin : begin + n]
    return outcome.tokens_per_s


def test_edits_are_fast_without_a_draft_model() -> None:
    world, begin = edit(300, 12)
    ratio = speed(world, begin, 280, proposers=ONLY) / speed(world, begin, 60, mode="off")
    print(f"virtual: edits without a draft model {ratio:.2f} x off")
    assert ratio > 2.9


@pytest.mark.parametrize("n_stages", [1, 8])
def test_a_text_that_never_repeats_itself_costs_nothing(n_stages: int) -> None:
    """Pairs of tokens come again by chance, and are followed by something else; long matches are as wrong. On one
    stage, where a row more costs most, that is half a percent (without a limit on what is guessed 1.8%)."""
    rng = random.Random(1)
    world = Replay([rng.randrange(1, 12) for _ in range(700)], {})
    plain = speed(world, 100, 500, n_stages, mode="off")
    found = speed(world, 100, 500, n_stages, proposers=ONLY) / plain
    print(f"virtual: n-grams of a random text, {n_stages} stages: {found:.3f} x off")
    assert found > 0.99


def test_both_are_not_slower_than_the_draft_alone() -> None:
    world = independent(600, 0.7)
    rng = random.Random(2)
    text = [rng.randrange(1, 12) for _ in world.text]
    guesses = {
        i: g._replace(token=text[i] if g.token == world.text[i] else Replay.OFF) for i, g in world.guesses.items()
    }
    both = Replay(text, guesses)
    assert speed(both, 40, 500, proposers=BOTH) > 0.99 * speed(both, 40, 500)
