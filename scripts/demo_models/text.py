"""What all sources share: special tokens, ChatML, clean-up of characters, and the choice of held-out documents."""

from __future__ import annotations

import hashlib
import re

EOT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SLURS = re.compile(
    r"nigg|negro|darkey|darkie|\bcoon\b|savages?\b|\bjew(s|ish|ess)?\b|\bgips|\bgyps|kaffir|\bsquaw|redskin|hottentot"
    r"|heathen|mulatto|\bwhore|\brape|\bsuicid|\bslut",
    re.IGNORECASE,
)
"""Paragraphs of old books with one of these are left out."""

_QUOTES = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2026": "...", "\u2013": "-", "\u2014": "--", "\r": ""})
_SPACES = str.maketrans({"\u00a0": " ", "\ufeff": "", "\t": " "})
_SINGLE = str.maketrans({"\u2019": "'", "\u2018": "'", "\x92": "'", "\x93": '"', "\x94": '"'})


def chatml(messages: list[tuple[str, str]]) -> str:
    """(role, text) pairs as one ChatML document."""
    return "".join(f"{IM_START}{role}\n{text.strip()}{IM_END}\n" for role, text in messages)


def norm(text: str) -> str:
    """Plain quotes, dashes and spaces; characters outside of Latin-1 letters and ASCII are dropped."""
    text = text.translate(_QUOTES).translate(_SPACES)
    text = re.sub(r"(^|[\s(\-])\u2018", r'\1"', text)
    text = re.sub(r"([,.!?;:\-])\u2019(?=[\s)]|$)", r'\1"', text)
    text = text.translate(_SINGLE)
    text = re.sub(r"[^\x09\x0a\x20-\x7eà-öø-ÿÀ-ÖØ-Þ£°½¼¾]", "", text)
    return re.sub(r" {2,}", " ", text).strip()


def held(text: str) -> bool:
    """Whether a document belongs to the held-out 2%: decided by its text alone."""
    return int(hashlib.md5(text.encode()).hexdigest()[:8], 16) % 50 == 0
