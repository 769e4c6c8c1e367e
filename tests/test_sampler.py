"""The sampler against llama.cpp's own chain, and what it says of a draw."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sampler_helpers import demo_vocab, logits_after

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.library import lib
from pipeinfer_cpp.llama.native import Native
from pipeinfer_cpp.llama.sampler import Sampler, draft_sampler
from pipeinfer_cpp.llama.top import top_superset
from pipeinfer_cpp.sampling import Sampling

PROMPT = [7, 300, 300, 12, 4096, 300, 12, 5]

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "temperature": {"temp": 1.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "cold": {"temp": 0.2, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "top-k": {"top_k": 5, "top_p": 1.0, "min_p": 0.0},
    "large top-k": {"top_k": 3000, "top_p": 1.0, "min_p": 0.0},
    "top-p": {"top_k": 0, "top_p": 0.7, "min_p": 0.0},
    "min-p": {"top_k": 0, "top_p": 1.0, "min_p": 0.1},
    "typical": {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 0.6},
    "all filters": {"top_k": 50, "typical_p": 0.9, "top_p": 0.9, "min_p": 0.02, "temp": 1.2},
    "bias": {"logit_bias": {3: 9.0, 77: -4.0, 8191: 7.5}},
    "ban": {"logit_bias": {i: -math.inf for i in range(0, 8192, 2)}, "top_k": 0, "typical_p": 0.8},
    "repeat penalty": {"repeat_penalty": 1.3},
    "short window": {"repeat_penalty": 1.5, "repeat_last_n": 3},
    "presence and frequency": {"presence_penalty": 0.7, "frequency_penalty": 1.1, "logit_bias": {300: 8.0}},
}


def llama_chain(sampling: Sampling, logits: NDArray[np.float32]) -> dict[int, float]:
    """llama.cpp's own distribution: every sampler over the whole vocabulary, as common_sampler_init orders them."""
    n_vocab = demo_vocab()[1]
    s = sampling
    pairs = [lib.llama_logit_bias(t, b) for t, b in s.logit_bias.items()]
    chain = Native.chain(
        lib.llama_sampler_init_logit_bias(n_vocab, len(pairs), (lib.llama_logit_bias * len(pairs))(*pairs)),
        lib.llama_sampler_init_penalties(
            n_vocab, s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
        ),
        lib.llama_sampler_init_top_k(s.top_k),
        lib.llama_sampler_init_typical(s.typical_p, 0),
        lib.llama_sampler_init_top_p(s.top_p, 0),
        lib.llama_sampler_init_min_p(s.min_p, 0),
        lib.llama_sampler_init_temp_ext(s.temp, 0.0, 1.0),
        lib.llama_sampler_init_dist(1),
    )
    for token in PROMPT:
        chain.accept(token)
    records: Any = (lib.llama_token_data(i, float(x), 0.0) for i, x in enumerate(logits))
    data: Any = (lib.llama_token_data * n_vocab)(*records)
    array = lib.llama_token_data_array()
    pointer: Any = ctypes.cast(data, ctypes.POINTER(lib.llama_token_data))
    array.data, array.size, array.selected, array.sorted = pointer, n_vocab, -1, False
    lib.llama_sampler_apply(chain.pointer, ctypes.byref(array))
    chain.close()
    return {data[i].id: data[i].p for i in range(array.size) if data[i].p > 0.0}


def sampler(**settings: Any) -> Sampler:
    vocab, n_vocab, pieces = demo_vocab()
    return Sampler(vocab, n_vocab, Sampling(**settings), pieces=pieces)


@pytest.mark.parametrize("name", SETTINGS)
def test_distribution_is_that_of_llama_cpps_chain(name: str) -> None:
    settings = Sampling(**SETTINGS[name])
    ours = sampler(**SETTINGS[name])
    ours.feed_prompt(PROMPT)
    for i in range(4):
        logits = logits_after((i,), favoured=(3, 5, 12, 77, 300, 4096))
        reference = llama_chain(settings, logits)
        if name == "ban":  # llama.cpp's typical trips over banned tokens: compare with the rest alone
            rest = logits.copy()
            rest[::2] = -60.0
            reference = llama_chain(Sampling(top_k=0, typical_p=0.8), rest)
        found = {t: p for t, p in zip(*(a.tolist() for a in ours.distribution(logits)), strict=True) if p > 0.0}
        assert found.keys() == reference.keys()
        assert max(abs(found[t] - reference[t]) for t in found) < 1e-5


@pytest.mark.parametrize("name", ["defaults", "all filters", "repeat penalty"])
def test_draws_follow_the_distribution_across_seeds(name: str) -> None:
    logits = logits_after((1,), favoured=(3, 5, 12, 77, 300, 4096))
    n = 2000
    counts: dict[int, int] = {}
    for seed in range(n):
        ours = sampler(**SETTINGS[name], seed=seed)
        ours.feed_prompt(PROMPT)
        if not seed:
            expected = {t: n * p for t, p in zip(*(a.tolist() for a in ours.distribution(logits)), strict=True)}
        token = ours.sample(logits, 9).token
        counts[token] = counts.get(token, 0) + 1
    assert counts.keys() <= expected.keys()
    rare = [t for t in expected if expected[t] < 5]
    groups = [[t] for t in expected if t not in rare] + ([rare] if rare else [])
    observed = np.array([sum(counts.get(t, 0) for t in g) for g in groups])
    wanted = np.array([sum(expected[t] for t in g) for g in groups])
    assert len(groups) > 2
    free = len(groups) - 1
    limit = free * (1 - 2 / (9 * free) + 3.7 * math.sqrt(2 / (9 * free))) ** 3  # Wilson-Hilferty, p = 0.0001
    assert ((observed - wanted) ** 2 / wanted).sum() < limit


def test_greedy_takes_the_best_and_tells_its_runner_up() -> None:
    logits = logits_after((5,))
    before = logits.copy()
    drawn = sampler(temp=0).sample(logits, 3)
    order = np.argsort(-logits)
    exact = logits.astype(np.float64)
    logprob = exact - exact.max() - math.log(np.exp(exact - exact.max()).sum())
    assert (drawn.token, drawn.second) == (order[0], order[1])
    assert drawn.logprob == pytest.approx(logprob[order[0]], abs=1e-5)
    assert drawn.prob == pytest.approx(math.exp(logprob[order[0]]), rel=1e-4)
    assert drawn.second_prob == pytest.approx(math.exp(logprob[order[1]]), rel=1e-4)
    assert np.array_equal(logits, before)


def test_greedy_ties_go_to_the_lowest_id_as_in_llama_cpp() -> None:
    logits = np.zeros(demo_vocab()[1], np.float32)
    logits[[900, 40, 7000]] = 2.0
    drawn = sampler(temp=0).sample(logits, 0)
    assert (drawn.token, drawn.second) == (40, 900)
    with_grammar = sampler(temp=0, grammar="root ::= .*").sample(logits, 0)
    assert with_grammar.token == 40


def test_greedy_minds_bias_and_penalties() -> None:
    logits = np.zeros(demo_vocab()[1], np.float32)
    logits[[10, 20, 30]] = (3.0, 2.5, 2.0)
    assert sampler(temp=0, logit_bias={20: 1.0}).sample(logits, 0).token == 20
    assert sampler(temp=0, logit_bias={10: -math.inf}).sample(logits, 0).token == 20
    penal = sampler(temp=0, repeat_penalty=2.0)
    penal.feed_prompt([10])
    assert penal.sample(logits, 0).token == 20
    assert penal.accept(20)
    drawn = penal.sample(logits, 1)
    assert drawn.token == 30
    exact = logits.astype(np.float64)
    assert drawn.logprob == pytest.approx(exact[30] - math.log(np.exp(exact).sum()), abs=1e-5)  # of the raw logits


def test_penalties_forget_beyond_their_window() -> None:
    logits = np.zeros(demo_vocab()[1], np.float32)
    logits[10] = 1.0
    ours = sampler(temp=0, presence_penalty=5.0, repeat_last_n=2)
    ours.feed_prompt([10])
    assert ours.sample(logits, 0).token != 10
    assert ours.accept(11) and ours.accept(12)
    assert ours.sample(logits, 0).token == 10


def test_a_draw_tells_its_probability_and_its_runner_up() -> None:
    logits = logits_after((8,), favoured=(3, 5, 12))
    for seed in range(20):
        ours = sampler(seed=seed)
        p = dict(zip(*(a.tolist() for a in ours.distribution(logits)), strict=True))
        drawn = ours.sample(logits, 1)
        assert drawn.prob == pytest.approx(p[drawn.token])
        assert drawn.second_prob == pytest.approx(p[drawn.second]) and drawn.second != drawn.token
    assert sampler(top_k=1).sample(logits, 1)[2:] == (1.0, -1, 0.0, ())


def test_runner_up_is_the_draw_without_the_winner() -> None:
    logits = logits_after((9,), favoured=(3, 5, 12))
    for seed in range(20):
        drawn = sampler(seed=seed, top_k=0, top_p=1.0, min_p=0.0).sample(logits, 1)
        without = sampler(seed=seed, top_k=0, top_p=1.0, min_p=0.0, logit_bias={drawn.token: -math.inf})
        assert without.sample(logits, 1).token == drawn.second


def test_draft_draws_with_the_targets_noise_and_without_its_grammar() -> None:
    vocab, n_vocab, _ = demo_vocab()
    logits = logits_after((4,))
    settings = Sampling(seed=3, grammar='root ::= "x"', logit_bias={5: 1.0, n_vocab + 9: 1.0})
    draft = draft_sampler(vocab, n_vocab, settings)
    assert draft.stateless
    assert draft.sample(logits, 5) == sampler(seed=3, logit_bias={5: 1.0}).sample(logits, 5)


def test_a_clone_goes_its_own_way() -> None:
    logits = logits_after((4,))
    one = sampler(temp=0, repeat_penalty=1.5, frequency_penalty=1.0)
    other = one.clone()
    best = one.sample(logits, 0).token
    for _ in range(5):
        other.accept(best)
    assert other.sample(logits, 0).token != best
    assert one.sample(logits, 0).token == best
    one.close()
    assert other.sample(logits, 0).token != best


def test_stateless_means_neither_penalties_nor_grammar() -> None:
    assert sampler().stateless and sampler(temp=0, logit_bias={3: 1.0}).stateless
    assert sampler(repeat_penalty=1.2, repeat_last_n=0).stateless
    assert not sampler(repeat_penalty=1.2).stateless
    assert not sampler(grammar="root ::= .").stateless


@pytest.mark.parametrize("k", [1, 8, 40, 64, 500, 8000])
def test_top_superset_holds_the_best(k: int) -> None:
    for i in range(5):
        x = np.round(logits_after((i,)), 1 if i % 2 else 5)  # with ties, and with none
        ids = top_superset(x, k)
        bound = np.sort(x)[-k]
        assert set(np.flatnonzero(x >= bound)) <= set(ids.tolist())
        assert (np.diff(ids) > 0).all()
        assert len(ids) < 4 * k + 300 or k > 400


@pytest.mark.parametrize(
    "settings",
    [
        {"temp": math.nan},
        {"temp": math.inf},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"repeat_penalty": 0.0},
        {"frequency_penalty": math.nan},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {8192: 1.0}},
        {"logit_bias": {1: math.nan}},
        {"grammar": "root ::= .", "json_schema": "{}"},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    alive = Native.alive
    with pytest.raises(UserError):
        sampler(**settings)
    assert Native.alive == alive


def test_minus_one_means_what_llama_cpp_means() -> None:
    logits = logits_after((7,))
    assert sampler(top_k=-1, seed=4).sample(logits, 3) == sampler(top_k=0, seed=4).sample(logits, 3)
    asked = Sampling(repeat_last_n=-1, repeat_penalty=1.5)
    asked.check()
    assert asked.within(64).repeat_last_n == 64 and Sampling(repeat_last_n=2**31 - 1).within(64).repeat_last_n == 64
    best = int(logits.argmax())
    all_of_it = sampler(temp=0, repeat_last_n=-1, presence_penalty=50.0)
    all_of_it.feed_prompt([best, *range(5000, 5400)])
    assert all_of_it.sample(logits, 3).token != best
    with pytest.raises(UserError, match="-1"):
        sampler(repeat_last_n=-2)
