"""One sampler: logits in, a token out, by llama.cpp's own chain and a keyed draw."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.llama.grammar import Grammar, grammar_text
from pipeinfer_cpp.llama.guide import Guide
from pipeinfer_cpp.llama.gumbel import gumbel
from pipeinfer_cpp.llama.library import lib
from pipeinfer_cpp.llama.native import Candidates, Native
from pipeinfer_cpp.llama.pieces import Pieces
from pipeinfer_cpp.llama.schema import guided_text
from pipeinfer_cpp.llama.top import above, top_superset
from pipeinfer_cpp.sampling import Sampling

_HEADS = 8, 64, 256  # so many of the best are shown to a form, one step after the other, before the whole vocabulary is


class Draw(NamedTuple):
    """What a sampler drew.

    `logprob` is the log softmax of the raw logits at the token; `prob` the token's probability under
    the sampler's final distribution (greedy: the softmax of the raw logits). `second` is the
    runner-up of the draw, with its probability: -1 and 0.0 where nothing else was left. When a
    grammar and the logits leave no token at all, the token is the vocabulary's end, with `prob` 0.
    """

    token: int
    logprob: float
    prob: float
    second: int
    second_prob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens by raw logits with their log-probabilities: `Sampling.top_logprobs` of them."""


class _Shared:
    """What clones of a sampler have in common: settings, filters without state, scratch space."""

    def __init__(self, vocab: Any, n_vocab: int, sampling: Sampling, pieces: Pieces | None) -> None:
        self.n_vocab, self.sampling = n_vocab, sampling
        self.pieces = pieces or Pieces(vocab, n_vocab)
        self.candidates = Candidates(n_vocab)
        self.raw, self.scratch = np.empty(n_vocab, np.float32), np.empty(n_vocab, np.float32)
        bias = sampling.logit_bias
        for token, amount in bias.items():
            if not 0 <= token < n_vocab:
                raise UserError(f"--logit-bias names token {token}, but the vocabulary has {n_vocab} tokens.")
            if math.isnan(amount) or amount == math.inf:
                raise UserError(f"--logit-bias for token {token} must be a number, or -inf to forbid it.")
        self.bans = -math.inf in bias.values()
        self.biased = list(bias)
        self.filters: Native | None = None
        if not sampling.greedy:
            s, parts = sampling, []
            if s.top_k > 0:
                parts.append(lib.llama_sampler_init_top_k(s.top_k))
            if s.typical_p < 1.0:
                parts.append(lib.llama_sampler_init_typical(s.typical_p, 1))
            if s.top_p < 1.0:
                parts.append(lib.llama_sampler_init_top_p(s.top_p, 1))
            if s.min_p > 0.0:
                parts.append(lib.llama_sampler_init_min_p(s.min_p, 1))
            parts.append(lib.llama_sampler_init_temp(s.temp))
            self.filters = Native.chain(*parts)

    def adjuster(self) -> Native | None:
        """Logit bias and penalties, or None when there are none."""
        s, parts = self.sampling, []
        if s.logit_bias:
            pairs = (lib.llama_logit_bias(token, amount) for token, amount in s.logit_bias.items())
            bias = (lib.llama_logit_bias * len(s.logit_bias))(*pairs)
            parts.append(lib.llama_sampler_init_logit_bias(self.n_vocab, len(bias), bias))
        if s.penalises:
            parts.append(
                lib.llama_sampler_init_penalties(
                    self.n_vocab, s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
                )
            )
        return Native.chain(*parts) if parts else None


class Sampler:
    """llama.cpp's chain in its default order (logit bias, penalties, grammar, top-k, typical, top-p,
    min-p, temperature), then a Gumbel-max draw among the survivors, or the best when `temp` <= 0.

    `vocab` is llama.cpp's pointer and must outlive the sampler; `pieces` may be shared by samplers
    of one vocabulary. Raises UserError for settings out of range or an invalid grammar. A sampler
    and its clones share scratch space: one thread at a time.
    """

    def __init__(self, vocab: Any, n_vocab: int, sampling: Sampling, *, pieces: Pieces | None = None) -> None:
        sampling.check()
        if sampling.repeat_last_n < 0:  # whoever knows the context has settled this already
            sampling = sampling.within(1 << 17)
        text, guided = grammar_text(sampling), guided_text(sampling)
        self._shared = shared = _Shared(vocab, n_vocab, sampling, pieces)
        self._grammar: Grammar | Guide | None = None
        if text is not None:
            self._grammar = Grammar(shared.pieces, shared.candidates, text)
        elif guided is not None:
            self._grammar = Guide(shared.pieces, guided)
        self._adjuster = shared.adjuster()
        self._recent: deque[int] = deque(maxlen=sampling.repeat_last_n if sampling.penalises else 0)
        self._touched: NDArray[np.int32] | None = None

    @property
    def stateless(self) -> bool:
        """True when a draw depends on the logits and the position alone (no penalties, no grammar)."""
        return self._grammar is None and not self._shared.sampling.penalises

    def guide(self) -> Guide | None:
        """What llguidance allows here, to be asked ahead of time; None without it."""
        return self._grammar.clone() if isinstance(self._grammar, Guide) else None

    @property
    def few_looked_at(self) -> bool:
        """Whether a draw looks at few tokens only, so that it need not know all that are allowed."""
        return self._shared.sampling.greedy

    def feed_prompt(self, tokens: Iterable[int]) -> None:
        """Let the penalties see `tokens`. The grammar starts behind them."""
        if self._shared.sampling.penalises:
            for token in list(tokens)[-self._shared.sampling.repeat_last_n :]:
                self._penalise(token)

    def accept(self, token: int) -> bool:
        """Go on by `token`. False, and no change at all, when the grammar forbids it."""
        if self._grammar is not None and not self._grammar.accept(token):
            return False
        if self._shared.sampling.penalises:
            self._penalise(token)
        return True

    def sample(self, logits: NDArray[np.float32], pos: int) -> Draw:
        """Draw the token for position `pos` from `logits` (`float32[n_vocab]`, left as they are)."""
        shared = self._shared
        np.subtract(logits, best := logits.max(), out=shared.scratch)
        np.exp(shared.scratch, out=shared.scratch)
        log_total = float(best) + math.log(float(shared.scratch.sum()))
        x = self._adjusted(logits)
        greedy, n_top = shared.sampling.greedy, shared.sampling.top_logprobs
        draw = self._best(logits, x, log_total) if greedy else self._drawn(logits, x, log_total, pos)
        if n_top:
            ids = top_superset(logits, n_top)
            ids = ids[np.argsort(-logits[ids], kind="stable")[:n_top]]
            draw = draw._replace(top=tuple((int(i), float(logits[i]) - log_total) for i in ids))
        return draw

    def distribution(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """What `sample` draws from when `temp` > 0: token ids and their probabilities, both empty where
        nothing is allowed."""
        left, scaled = self._survivors(self._adjusted(logits))
        return left.copy(), _softmax(scaled)

    def clone(self) -> Sampler:
        """The same sampler at the same point, to go on by itself."""
        other = object.__new__(Sampler)
        other._shared, other._recent, other._touched = self._shared, self._recent.copy(), self._touched
        other._grammar = self._grammar.clone() if self._grammar is not None else None
        penalises = self._shared.sampling.penalises
        other._adjuster = self._adjuster.clone() if self._adjuster is not None and penalises else self._adjuster
        return other

    def close(self) -> None:
        """Free what llama.cpp holds for this sampler alone; the shared filters go with the last clone."""
        if self._grammar is not None:
            self._grammar.close()
        if self._adjuster is not None and self._shared.sampling.penalises:
            self._adjuster.close()

    def _penalise(self, token: int) -> None:
        assert self._adjuster is not None
        self._adjuster.accept(token)
        self._recent.append(token)
        self._touched = None

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits after bias and penalties: llama.cpp works on the few tokens that they concern."""
        if self._adjuster is None:
            return logits
        if self._touched is None:
            self._touched = np.array(sorted({*self._recent, *self._shared.biased}), np.int32)
        shared = self._shared
        np.copyto(shared.raw, logits)
        shared.candidates.fill(self._touched, logits[self._touched])
        shared.candidates.apply(self._adjuster)
        shared.raw[shared.candidates.ids] = shared.candidates.logits
        return shared.raw

    def _best(self, logits: NDArray[np.float32], x: NDArray[np.float32], log_total: float) -> Draw:
        if self._grammar is None:
            token = int(x.argmax())
            np.copyto(self._shared.scratch, x)
            self._shared.scratch[token] = -math.inf
            ranked = [token, int(self._shared.scratch.argmax())]
        else:
            ids = self._enough(self._grammar, x, 1)
            ranked = ids[np.argsort(-x[ids], kind="stable")[:2]].tolist()
        ranked = [t for t in ranked if x[t] > -math.inf]
        logprobs = [float(logits[t]) - log_total for t in ranked]
        if not ranked:
            return self._end(logits, log_total)
        second = (ranked[1], math.exp(logprobs[1])) if len(ranked) > 1 else (-1, 0.0)
        return Draw(ranked[0], logprobs[0], math.exp(logprobs[0]), *second)

    def _drawn(self, logits: NDArray[np.float32], x: NDArray[np.float32], log_total: float, pos: int) -> Draw:
        left, scaled = self._survivors(x)
        if not len(left):
            return self._end(logits, log_total)
        weight = _softmax(scaled)
        noisy = scaled + gumbel(max(self._shared.sampling.seed, 0), pos, left)
        i = int(noisy.argmax())
        token, prob, second, second_prob = int(left[i]), float(weight[i]), -1, 0.0
        if len(left) > 1:
            noisy[i] = -math.inf
            j = int(noisy.argmax())
            if noisy[j] > -math.inf:  # some models say so of tokens
                second, second_prob = int(left[j]), float(weight[j])
        return Draw(token, float(logits[token]) - log_total, prob, second, second_prob)

    def _survivors(self, x: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Ids that the grammar and the filters leave of adjusted logits, and their logits over `temp`."""
        shared, s = self._shared, self._shared.sampling
        assert shared.filters is not None
        ids: NDArray[Any] | None = None
        if self._grammar is not None:
            ids = self._enough(self._grammar, x, s.top_k) if s.top_k > 0 else self._grammar.all_allowed()
        elif s.top_k > 0:
            ids = top_superset(x, s.top_k)
        if s.typical_p < 1.0:  # llama.cpp's typical computes 0 * log 0 below that
            ids = above(x, ids, float(x.max() if ids is None else x[ids].max(initial=-math.inf)) - 87.0)
        elif shared.bans or self._grammar is not None:
            ids = above(x, ids, -math.inf)
        if ids is not None and not len(ids):
            return np.empty(0, np.int32), np.empty(0)
        shared.candidates.fill(ids, x if ids is None else x[ids])
        shared.candidates.apply(shared.filters)
        return shared.candidates.ids, shared.candidates.logits.astype(np.float64)

    def _enough(self, form: Grammar | Guide, x: NDArray[np.float32], k: int) -> NDArray[np.int32]:
        """Of what the form allows as many as it takes: the draw among them is the draw among all of it.

        The `k` best are (filters begin with top-k). Fewer are, where top-p and min-p leave the same of them whether
        all that were not looked at are forbidden or allowed: both keep a beginning of the order, and the more of it
        the more weight lies behind it. The whole vocabulary is asked for only where 256 of the best do not settle it.
        """
        near = top_superset(x, _HEADS[-1] + k)
        near = near[np.argsort(-x[near], kind="stable")]
        near = near[x[near] > -math.inf]
        kept, seen = near[:0], 0
        for n in _HEADS:
            kept = np.concatenate((kept, form.allowed(near[seen:n])))
            seen = n
            rest = near[n:]
            if len(kept) >= k or not len(rest) or self._settled(x, kept, rest):
                return kept.astype(np.int32)
        ids = form.all_allowed()
        best: NDArray[np.int32] = ids[top_superset(x[ids], k + 1)]  # and a second choice for a greedy draw
        return best

    def _settled(self, x: NDArray[np.float32], kept: NDArray[Any], rest: NDArray[Any]) -> bool:
        """Whether the filters leave the same of `kept`, whichever of the lower `rest` are allowed too."""
        shared = self._shared
        if shared.filters is None or shared.sampling.typical_p < 1.0 or not len(kept):
            return False
        left = []
        for ids in (kept, np.concatenate((kept, rest))):
            shared.candidates.fill(ids, x[ids])
            shared.candidates.apply(shared.filters)
            left.append(set(shared.candidates.ids.tolist()))
        return left[0] == left[1] and bool(x[list(left[0])].min() > x[rest[0]])

    def _end(self, logits: NDArray[np.float32], log_total: float) -> Draw:
        """The draw where nothing is allowed: the text ends."""
        eog = self._shared.pieces.eog
        if not len(eog):
            raise PipeInferError("The grammar allows no token here, and the vocabulary has none that ends the text.")
        token = int(eog[logits[eog].argmax()])
        return Draw(token, float(logits[token]) - log_total, 0.0, -1, 0.0)


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    weight: NDArray[np.float64] = np.exp(x - x.max(initial=-math.inf))
    weight /= weight.sum()
    return weight


def draft_sampler(vocab: Any, n_vocab: int, sampling: Sampling) -> Sampler:
    """The sampler for a draft model: the same settings and the same noise, without the grammar."""
    return Sampler(vocab, n_vocab, sampling.for_draft(n_vocab))
