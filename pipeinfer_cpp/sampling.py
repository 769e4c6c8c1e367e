"""What is asked of the sampler: plain values, named as in llama.cpp."""

from __future__ import annotations

import json
import math
import secrets
from typing import Any

import msgspec

from pipeinfer_cpp.errors import UserError

FORMS = "grammar", "json_schema", "regex", "lark"
"""Settings that ask for the text's form, one at a time."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one generation's sampler. Defaults are llama.cpp's.

    `temp` 0 or below is greedy, and so is one so small that logits over it would overflow.
    `top_k` 0 or below is off. `repeat_penalty` 1, `presence_penalty` 0 and `frequency_penalty` 0 are off;
    `repeat_last_n` tokens are looked at (0 none, -1 all that the context holds). `logit_bias` maps token ids
    to an amount added to their logit. At most one form is set: `grammar` (GBNF), `json_schema` (JSON text, or
    what it is made of: a dict, a Pydantic model), `regex` (that the whole text matches) or `lark`.
    `top_logprobs`: each token comes with the log-probabilities of so many likeliest ones (0 to 20).
    `seed` -1: a random one for each generation; the one that was used is in its `Result`.
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
    json_schema: Any = None
    regex: str | None = None
    lark: str | None = None
    seed: int = -1
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        schema = self.json_schema
        if schema is None or isinstance(schema, str):
            return
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        try:
            msgspec.structs.force_setattr(self, "json_schema", json.dumps(schema))
        except (TypeError, ValueError):
            raise TypeError(f"json_schema: JSON text, a dict or a Pydantic model, not {schema!r}") from None

    def check(self) -> None:
        """Raise UserError when a value is out of range."""
        rules = [
            (math.isfinite(self.temp), "--temp must be a finite number"),
            (math.isfinite(self.repeat_penalty), "--repeat-penalty must be a finite number"),
            (math.isfinite(self.presence_penalty), "--presence-penalty must be a finite number"),
            (math.isfinite(self.frequency_penalty), "--frequency-penalty must be a finite number"),
            (-(1 << 31) <= self.top_k < 1 << 31, "--top-k must be a number of 32 bits (0 or below: off)"),
            (-1 <= self.seed < 1 << 64, "--seed must be -1 (random), or 0 or more and below 2 to the power of 64"),
            (0.0 < self.top_p <= 1.0, "--top-p must be above 0 and at most 1"),
            (0.0 <= self.min_p <= 1.0, "--min-p must be between 0 and 1"),
            (0.0 < self.typical_p <= 1.0, "--typical must be above 0 and at most 1"),
            (0 <= self.top_logprobs <= 20, "top_logprobs must be between 0 and 20"),
            (self.repeat_penalty > 0.0, "--repeat-penalty must be above 0"),
            (
                -1 <= self.repeat_last_n < 1 << 31,
                "--repeat-last-n must be -1 (all of the context), 0 (off) or more, and below 2147483648",
            ),
            (not any(math.isnan(b) for b in self.logit_bias.values()), "--logit-bias must be a number"),
            (len(self.forms) <= 1, "Give only one of " + ", ".join(f"--{f.replace('_', '-')}" for f in FORMS)),
        ]
        for holds, sentence in rules:
            if not holds:
                raise UserError(sentence + ".")

    @property
    def forms(self) -> list[str]:
        """What is asked of the text's form: names out of FORMS."""
        return [name for name in FORMS if getattr(self, name) is not None]

    def seeded(self) -> Sampling:
        """The same with a seed of its own, where it has none."""
        return self if self.seed >= 0 else msgspec.structs.replace(self, seed=secrets.randbits(31))

    def within(self, n_ctx: int) -> Sampling:
        """The same for a context of `n_ctx` positions: the penalties look back no further."""
        last = n_ctx if self.repeat_last_n < 0 else min(self.repeat_last_n, n_ctx)
        return msgspec.structs.replace(self, repeat_last_n=last)

    @property
    def greedy(self) -> bool:
        return self.temp < 1e-6

    @property
    def penalises(self) -> bool:
        """True when a repetition, presence or frequency penalty is on."""
        off = self.repeat_penalty == 1.0 and self.presence_penalty == 0.0 and self.frequency_penalty == 0.0
        return self.repeat_last_n != 0 and not off

    def for_draft(self, n_vocab: int) -> Sampling:
        """The same for a draft model of `n_vocab` tokens: without the text's form, and without
        bias on tokens that it does not have."""
        bias = {token: amount for token, amount in self.logit_bias.items() if token < n_vocab}
        return msgspec.structs.replace(self, logit_bias=bias, top_logprobs=0, **dict.fromkeys(FORMS))
