"""Training rows out of the token files, in processes of their own. Needs NumPy only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EOT = 0

# Share of the training tokens by source, in the main phase and in the last (chat) phase.
MAIN = {
    **{"children": 19, "novels": 39, "tinystories": 0.4, "tinystories_aug": 0.8, "fairytale": 2, "picture_books": 0.8},
    **{"fables": 0.3, "sgd": 6, "topical_chat": 3.5, "gsm": 2.5, "roleplay": 0.7, "fairytale_qa": 2},
    **{"fables_chat": 0.2, "tinystories_chat": 0.8, "synth_story": 9, "synth_chat": 13},
}
CHAT = {
    **{"children": 16, "novels": 10, "tinystories": 0.5, "tinystories_aug": 1.5, "fairytale": 2, "picture_books": 1},
    **{"fables": 0.5, "sgd": 2, "topical_chat": 4, "gsm": 1.5, "roleplay": 1.5, "fairytale_qa": 2},
    **{"fables_chat": 0.6, "tinystories_chat": 3, "synth_story": 12, "synth_chat": 42},
}
# A short last tuning of the target, for steadier stories.
TUNE = {
    **{"children": 8, "tinystories": 4, "tinystories_aug": 18, "fairytale": 2, "picture_books": 1, "fables": 1.5},
    **{"sgd": 0.5, "topical_chat": 2, "gsm": 0.5, "roleplay": 1, "fairytale_qa": 2, "fables_chat": 1.5},
    **{"tinystories_chat": 20, "synth_story": 8, "synth_chat": 30},
}
MIXES = {"main": MAIN, "chat": CHAT, "tune": TUNE}


class Source:
    """The documents of one source, each once before any comes again."""

    def __init__(self, flat: NDArray[np.uint16], first: int, end: int, rng: np.random.Generator) -> None:
        ends = np.flatnonzero(flat[first:end] == EOT) + first + 1
        starts = np.concatenate([[first], ends[:-1]])
        self.docs, self.rng, self.i = np.stack([starts, ends], 1), rng, 0
        self.mean = float((ends - starts).mean())
        rng.shuffle(self.docs)

    def share(self, i: int, n: int, rng: np.random.Generator) -> None:
        """Keep every n-th document, from the i-th."""
        self.docs, self.rng = self.docs[i::n].copy(), rng
        rng.shuffle(self.docs)

    def next(self) -> tuple[int, int]:
        """(first, end) of a document in the token file."""
        if self.i == len(self.docs):
            self.rng.shuffle(self.docs)
            self.i = 0
        self.i += 1
        first, end = self.docs[self.i - 1]
        return int(first), int(end)


def fill(
    queue: Any,
    progress: Any,
    data: str,
    rows: int,
    ctx: int,
    seed: int,
    i: int,
    n: int,
    chat_from: float,
    mixes: list[str],
) -> None:
    """Process i of n: put batches of `rows` x (ctx + 1) ids into the queue, for ever.

    The first of the two mixes holds until `progress` (0 to 1) reaches `chat_from`. A row begins at the beginning of
    a document, or in the middle of a cut one.
    """
    rng = np.random.default_rng(seed * 1000 + i)
    flat = np.load(Path(data) / "train.npy", mmap_mode="r")
    ranges = json.loads((Path(data) / "train_tokens.json").read_text())
    sources = {}
    for k, (first, end, n_docs) in ranges.items():
        if n_docs and any(k in MIXES[m] for m in mixes):
            source = Source(flat, first, end, np.random.default_rng(7))  # one order in all processes, then shared out
            source.share(i, n, rng)
            if len(source.docs):
                sources[k] = source
    names = list(sources)
    chances = []
    for mix in mixes:
        weights = np.array([MIXES[mix].get(k, 0) / sources[k].mean for k in names])
        chances.append(weights / weights.sum())
    while True:
        batch = np.zeros((rows, ctx + 1), np.uint16)
        picks, j = rng.choice(len(names), 64 * rows, p=chances[progress.value >= chat_from]), 0
        left = None
        for r in range(rows):
            filled = 0
            while filled < ctx + 1:
                if left is None:
                    left = sources[names[picks[j % len(picks)]]].next()
                    j += 1
                first, end = left
                m = min(end - first, ctx + 1 - filled)
                batch[r, filled : filled + m] = flat[first : first + m]
                filled += m
                left = (first + m, end) if first + m < end and rng.random() < 0.6 else None
        queue.put(batch)
