"""Shared noise with real models: the draft's draw is the target's more often than any other guess."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sampler_helpers import DRAFT, TARGET, demo_vocab, tokens_of

from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.llama.sampler import Sampler, draft_sampler
from pipeinfer_cpp.sampling import Sampling

OPENINGS = ["Once upon a time", "The old house at the end of the lane", "My dear sir,", "In the middle of the forest"]
LENGTH = 150


def rows(context: SliceContext, tokens: list[int], first: int) -> NDArray[np.float32]:
    """Logits `float32[n, n_vocab]` behind `tokens` at positions from `first` on."""
    pos = np.arange(first, first + len(tokens), dtype=np.int32)
    logits = context.decode(np.array(tokens, np.int32), pos, np.zeros(len(tokens), np.int32))
    return np.array(logits)


@pytest.fixture(scope="module")
def sampled() -> list[tuple[NDArray[np.float32], list[int], int]]:
    """For each opening: the draft's logits, the target's draws at temperature 0.8 with shared noise, the seed."""
    vocab, n_vocab, _ = demo_vocab()
    found = []
    target, draft = SliceContext(TARGET, n_threads=1), SliceContext(DRAFT, n_threads=1)
    for seed, opening in enumerate(OPENINGS):
        sampler = Sampler(vocab, n_vocab, Sampling(temp=0.8, seed=seed))
        text = tokens_of(opening)
        start = len(text)
        for context in (target, draft):
            context.clear()
        logits = rows(target, text, 0)[-1]
        while len(text) < start + LENGTH:
            text.append(sampler.sample(logits, len(text)).token)
            logits = rows(target, text[-1:], len(text) - 1)[0]
        seen = np.concatenate([rows(draft, text[i : i + 64], i) for i in range(0, len(text), 64)])
        found.append((seen[start - 1 : -1], text[start:], seed))
    target.close()
    draft.close()
    return found


def agreement(sampled: list[tuple[NDArray[np.float32], list[int], int]], temp: float, other_seed: int) -> float:
    vocab, n_vocab, _ = demo_vocab()
    hits = []
    for logits, drawn, seed in sampled:
        start = len(tokens_of(OPENINGS[seed]))
        guess = draft_sampler(vocab, n_vocab, Sampling(temp=temp, seed=seed + other_seed))
        hits += [guess.sample(x, start + i).token == t for i, (x, t) in enumerate(zip(logits, drawn, strict=True))]
    return float(np.mean(hits))


def test_shared_noise_raises_agreement(sampled: list[tuple[NDArray[np.float32], list[int], int]]) -> None:
    shared = agreement(sampled, 0.8, 0)
    best = agreement(sampled, 0.0, 0)
    independent = float(np.mean([agreement(sampled, 0.8, s) for s in (100, 200, 300)]))
    print(f"agreement at temperature 0.8: shared noise {shared:.3f}, argmax {best:.3f}, independent {independent:.3f}")
    deviation = math.sqrt(0.25 / (len(OPENINGS) * LENGTH))
    assert shared > independent + 4 * deviation
    assert shared > best + deviation
