"""Whether a draft model speaks the target's tokens."""

from __future__ import annotations

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf.source import Source

MAX_SIZE_DIFFERENCE = 128
"""llama.cpp's bound: vocabularies padded to other sizes still fit."""

_FIRST_COMPARED, _NORMAL = 5, 1


def check_pair(target: Source, draft: Source) -> None:
    """Raise UserError, with the first difference found, when the vocabularies do not fit.

    They fit when the tokenizers are of one kind, their sizes differ by at most 128, every token
    that both have is the same (special tokens among the first five may be named otherwise, as
    llama.cpp allows), and they agree on whether bos and eos are added, and which.
    """
    why = _difference(target, draft)
    if why:
        raise UserError(f"{draft.path.name} cannot draft for {target.path.name}: {why}. Choose a draft of its family.")


def _difference(target: Source, draft: Source) -> str | None:
    if not target.tokens or not draft.tokens:
        return f"{(draft if target.tokens else target).path.name} has no vocabulary"
    if target.vocab_type != draft.vocab_type:
        return f"its tokenizer is of kind {draft.vocab_type!r}, not {target.vocab_type!r}"
    if abs(target.n_vocab - draft.n_vocab) > MAX_SIZE_DIFFERENCE:
        return f"its vocabulary has {draft.n_vocab:,} tokens, not {target.n_vocab:,}"
    both = zip(target.tokens, draft.tokens, strict=False)  # the longer one's padding has no partner
    for i, (ours, theirs) in enumerate(both):
        if ours != theirs and not (i < _FIRST_COMPARED and _special(target, i) and _special(draft, i)):
            return f"token {i} is {theirs!r} there, not {ours!r}"
    for word, ours_on, theirs_on, ours_id, theirs_id in (
        ("bos", target.add_bos, draft.add_bos, target.bos, draft.bos),
        ("eos", target.add_eos, draft.add_eos, target.eos, draft.eos),
    ):
        if ours_on != theirs_on:
            return f"one of the two adds a {word} token to every text and the other does not"
        if ours_on and ours_id != theirs_id:
            return f"its {word} token is {theirs_id}, not {ours_id}"
    return None


def _special(source: Source, token: int) -> bool:
    return token < len(source.token_types) and source.token_types[token] != _NORMAL
