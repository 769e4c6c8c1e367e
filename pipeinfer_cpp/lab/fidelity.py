"""What rounding the hidden states between stages changes in a model's output."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source, cached_slice, even_split, fit_split
from pipeinfer_cpp.llama.context import SliceContext
from pipeinfer_cpp.net.codecs import codec
from pipeinfer_cpp.proof.prove import prove
from pipeinfer_cpp.system.reports import StepReport

CHUNK = 64
NUDGE = "last bits"
"""No codec: every hidden state is changed by a millionth. A quantised model rounds its activations, so that
this already changes some tokens; no codec can be better."""


class Fidelity(msgspec.Struct, frozen=True):
    """One codec on all links, against float32 on the same tokens.

    changed_per_1000: greedy tokens that become others. kl: Kullback-Leibler divergence of the output
    distribution in nats, mean and 99th percentile over positions. max_hidden: the largest hidden state
    on any link. bytes_per_row: of one link.
    """

    wire: str
    links: int
    positions: int
    changed_per_1000: float
    kl_mean: float
    kl_p99: float
    max_hidden: float
    bytes_per_row: int
    refused: str | None = None
    """Why the codec cannot carry this model's hidden states."""

    def advice(self, floor: Fidelity) -> str:
        """Whether to use it, in one sentence. `floor`: what a change in the last bits does (NUDGE)."""
        if self.refused is not None:
            return f"Do not use {self.wire}: {self.refused}"
        if self.wire == "f32":
            return "f32 changes nothing."
        if self.kl_mean <= 2 * floor.kl_mean + 1e-6:
            return f"Use {self.wire}: it changes no more than a change in the last bits does with this model."
        if self.kl_mean <= 1e-3:
            return f"Use {self.wire} for chat on a slow link; keep f32 where the text must be the same."
        return f"Do not use {self.wire} with this model: it changes too much."


Ids = NDArray[np.int32]


class Chain:
    """All slices of a model in this process, with a codec on each link."""

    def __init__(self, source: Source, n_stages: int, n_ctx: int, threads: int, report: StepReport) -> None:
        self._contexts: list[SliceContext] = []
        self.max_hidden = 0.0
        ranges, _ = fit_split(source, even_split(source.n_layers, n_stages))
        prove(source, ranges)
        for first, end in ranges:
            path = cached_slice(source, first, end, progress=lambda done, total: report("cutting", done, total))
            self._contexts.append(SliceContext(path, n_ctx=n_ctx, n_ubatch=CHUNK, n_threads=threads))
        self.width = self._contexts[0].row_width

    def logits(self, tokens: Sequence[int], wire: str, begin: int) -> NDArray[np.float32]:
        """float32[len(tokens) - begin, vocabulary]: what the model says behind each token from `begin` on."""
        noise = np.random.default_rng(0)
        out = []
        for context in self._contexts:
            context.clear()
        for a in range(0, len(tokens), CHUNK):
            n = min(CHUNK, len(tokens) - a)
            ids = np.array(tokens[a : a + n], np.int32)
            pos, seq = np.arange(a, a + n, dtype=np.int32), np.zeros(n, np.int32)
            x: NDArray[np.float32] | None = None
            for context in self._contexts:
                if x is not None:
                    self.max_hidden = max(self.max_hidden, float(np.abs(x).max()))
                    if wire == NUDGE:
                        x = x * (1 + 1e-6 * noise.standard_normal(x.shape)).astype(np.float32)
                    else:
                        chosen = codec(wire, self.width)
                        x = chosen.decode(chosen.encode(x), n, self.width)
                x = _decoded(context, ids, pos, seq, x)
            assert x is not None
            out.append(x[max(0, begin - a) :].astype(np.float32))
        return np.concatenate(out)

    def continue_greedily(self, tokens: Sequence[int], n: int, eog: frozenset[int]) -> list[int]:
        """The model's own text behind a prompt, in float32."""
        self.logits(tokens[:-1], "f32", 0)
        text = list(tokens)
        while len(text) < len(tokens) + n:
            ids, pos, seq = np.array(text[-1:], np.int32), np.array([len(text) - 1], np.int32), np.zeros(1, np.int32)
            x: NDArray[np.float32] | None = None
            for context in self._contexts:
                x = _decoded(context, ids, pos, seq, x)
            assert x is not None
            token = int(x[0].argmax())
            if token in eog:
                break
            text.append(token)
        return text

    def close(self) -> None:
        for context in self._contexts:
            context.close()


def _decoded(context: SliceContext, ids: Ids, pos: Ids, seq: Ids, x: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """One decode. Ctrl-C waits for its end: within a callback Python would lose it."""
    presses: list[int] = []
    old = signal.getsignal(signal.SIGINT)
    if old is signal.SIG_IGN:
        return context.decode(ids, pos, seq, hidden=x)
    signal.signal(signal.SIGINT, lambda number, _frame: presses.append(number))
    try:
        out = context.decode(ids, pos, seq, hidden=x)
    finally:
        signal.signal(signal.SIGINT, old)
    if presses:
        raise KeyboardInterrupt
    return out


def compare(
    chain: Chain, n_links: int, prompts: Sequence[Sequence[int]], n: int, wires: Sequence[str], eog: frozenset[int]
) -> list[Fidelity]:
    """NUDGE, then each codec, on the model's own continuations of n tokens. Prompts have two tokens or more."""
    texts = [(len(p), chain.continue_greedily(p, n, eog)) for p in prompts]
    reference = [chain.logits(text, "f32", begin - 1) for begin, text in texts]
    results = []
    for wire in (NUDGE, *wires):
        changed, divergences, refused = 0, [], None
        try:
            for (begin, text), expected in zip(texts, reference, strict=True):
                got = chain.logits(text, wire, begin - 1)
                changed += int((got.argmax(1) != expected.argmax(1)).sum())
                divergences.append(_kl(expected, got))
        except UserError as error:
            refused, changed = str(error), 0
        all_kl = np.concatenate(divergences) if divergences and refused is None else np.zeros(1)
        positions = sum(len(e) for e in reference)
        results.append(
            Fidelity(
                wire,
                n_links,
                positions,
                1000 * changed / positions,
                float(all_kl.mean()),
                float(np.percentile(all_kl, 99)),
                chain.max_hidden,
                codec("f32" if wire == NUDGE else wire, chain.width).row_bytes(chain.width),
                refused,
            )
        )
    return results


def _kl(p_logits: NDArray[np.float32], q_logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(p || q) of each row, nats."""
    p, q = _log_softmax(p_logits), _log_softmax(q_logits)
    return np.asarray(np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0), np.float64)


def _log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    y = x.astype(np.float64)
    y -= y.max(axis=1, keepdims=True)
    return np.asarray(y - np.log(np.exp(y).sum(axis=1, keepdims=True)), np.float64)
