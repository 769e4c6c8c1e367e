"""What is asked of the sampler: plain values, named as in llama.cpp."""

from __future__ import annotations

import math

import msgspec

from pipeinfer_cpp.errors import UserError


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one generation's sampler. Defaults are llama.cpp's.

    `temp` 0 or below is greedy, and so is one so small that logits over it would overflow.
    `repeat_penalty` 1, `presence_penalty` 0 and `frequency_penalty` 0 are off; `repeat_last_n` tokens are
    looked at (0 none). `logit_bias` maps token ids to an amount
    added to their logit. At most one of `grammar` (GBNF) and `json_schema` (JSON text) is set.
    """

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    grammar: str | None = None
    json_schema: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise UserError when a value is out of range."""
        numbers = (self.temp, self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        rules = [
            (all(map(math.isfinite, numbers)), "--temp and the penalties must be finite numbers"),
            (0 <= self.top_k < 1 << 31, "--top-k must be 0 (off) or more, and below 2147483648"),
            (0 <= self.seed < 1 << 64, "--seed must be 0 or more, and below 2 to the power of 64"),
            (0.0 < self.top_p <= 1.0, "--top-p must be above 0 and at most 1"),
            (0.0 <= self.min_p <= 1.0, "--min-p must be between 0 and 1"),
            (0.0 < self.typical_p <= 1.0, "--typical must be above 0 and at most 1"),
            (self.repeat_penalty > 0.0, "--repeat-penalty must be above 0"),
            (0 <= self.repeat_last_n < 1 << 31, "--repeat-last-n must be 0 (off) or more, and below 2147483648"),
            (not any(math.isnan(b) for b in self.logit_bias.values()), "--logit-bias must be a number"),
            (self.grammar is None or self.json_schema is None, "Give --grammar or --json-schema, not both"),
        ]
        for holds, sentence in rules:
            if not holds:
                raise UserError(sentence + ".")

    @property
    def greedy(self) -> bool:
        return self.temp < 1e-6

    @property
    def penalises(self) -> bool:
        """True when a repetition, presence or frequency penalty is on."""
        off = self.repeat_penalty == 1.0 and self.presence_penalty == 0.0 and self.frequency_penalty == 0.0
        return self.repeat_last_n > 0 and not off

    def for_draft(self, n_vocab: int) -> Sampling:
        """The same for a draft model of `n_vocab` tokens: without grammar and schema, and without
        bias on tokens that it does not have."""
        bias = {token: amount for token, amount in self.logit_bias.items() if token < n_vocab}
        return msgspec.structs.replace(self, grammar=None, json_schema=None, logit_bias=bias)
