"""The draft worker's paths: token lists with a sequence id each, of which some rows are cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeinfer_cpp.engine.cached import common_length
from pipeinfer_cpp.engine.settings import DRAFT_STATES
from pipeinfer_cpp.llama.checkpoints import Checkpoints
from pipeinfer_cpp.llama.context import SliceContext

EVERY = 4
"""Where nothing can be removed in part (recurrent and hybrid drafts), the state is kept before every fourth token."""


@dataclass(slots=True)
class Path:
    """`tokens` is the whole history; KV cells exist for the first `cached` of them."""

    seq: int
    tokens: list[int]
    cached: int
    slot: int = 0


class DraftPaths:
    """All live paths of all slots, by number. Sequence ids are taken and freed with them.

    A draft whose memory cannot remove a part of a sequence has one path a slot: it goes back to the newest state
    that was kept, and reads the few tokens behind that again.
    """

    def __init__(self, ctx: SliceContext, n_seq: int, slots: int = 1) -> None:
        self._ctx = ctx
        self._free = list(range(slots if ctx.checkpointed else n_seq))
        self._checkpoints = Checkpoints(ctx)
        self._kept: dict[int, dict[int, int]] = {}
        """By sequence: position -> number of the states kept of its path, ascending."""
        self.paths: dict[int, Path] = {}

    def reset(self, number: int, keep: int, tokens: Sequence[int], slot: int = 0) -> None:
        """One path of the slot is left: the first `keep` tokens of its history plus `tokens`, on the longest
        cached prefix."""
        own = {n: self.paths.pop(n) for n, path in list(self.paths.items()) if path.slot == slot}
        longest = max(own.values(), key=lambda p: len(p.tokens), default=None)
        wanted = (longest.tokens[:keep] if longest else []) + list(tokens)
        best, common = None, -1
        for path in own.values():
            n = common_length(path.tokens[: path.cached], wanted)
            if n > common:
                best, common = path, n
        common = min(common, len(wanted) - 1)  # the last token is always decoded: its logits are the next draft
        for path in own.values():
            if path is not best:
                self._remove(path)
        if best is None:
            best = Path(self._free.pop(), wanted, 0, slot)
        best.tokens = wanted
        if common < best.cached:
            self.take_back(best, common)
        self.paths[number] = best

    def fork(self, number: int, of: int, keep: int, token: int) -> None:
        """A side branch: the first `keep` tokens of path `of`, then `token`."""
        path = self.paths.get(of)
        if path is None or not self._free:
            return
        seq = self._free.pop()
        cached = min(keep, path.cached)
        if cached:
            self._ctx.seq_cp(path.seq, seq, 0, cached)
        self.paths[number] = Path(seq, [*path.tokens[:keep], token], cached, path.slot)

    def drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            path = self.paths.pop(number, None)
            if path is not None:
                self._remove(path)

    def before(self, path: Path) -> None:
        """The rows behind what is cached of the path are about to be decoded."""
        at, kept = path.cached, self._kept.setdefault(path.seq, {})
        if not self._ctx.checkpointed or at == 0 or at < max(kept, default=0) + EVERY:
            return
        if len(kept) == DRAFT_STATES:
            del kept[min(kept)]
        first = path.seq * DRAFT_STATES
        state = min(set(range(first, first + DRAFT_STATES)) - set(kept.values()))
        self._checkpoints.save(state, path.seq)
        kept[at] = state

    def take_back(self, path: Path, n: int) -> None:
        """No more than the first `n` rows stay cached; fewer where only an older state is kept."""
        if not self._ctx.checkpointed:
            self._ctx.seq_rm(path.seq, n, -1)
            path.cached = n
            return
        kept = self._kept.get(path.seq, {})
        path.cached = max((pos for pos in kept if pos <= n), default=0)
        if path.cached:
            self._checkpoints.restore(kept[path.cached], path.cached, path.seq)
        else:
            self._ctx.seq_rm(path.seq, 0, -1)
        self._kept[path.seq] = {pos: state for pos, state in kept.items() if pos <= path.cached}

    def _remove(self, path: Path) -> None:
        self._ctx.seq_rm(path.seq, 0, -1)
        self._kept.pop(path.seq, None)
        self._free.append(path.seq)
