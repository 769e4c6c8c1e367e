"""The draft worker's paths: token lists with a sequence id each, of which some rows are cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeinfer_cpp.engine.settings import DRAFT_SLOTS
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


class DraftPaths:
    """All live paths by number. Sequence ids are taken and freed with them.

    A draft whose memory cannot remove a part of a sequence has one path: it goes back to the newest state
    that was kept, and reads the few tokens behind that again.
    """

    def __init__(self, ctx: SliceContext, n_seq: int) -> None:
        self._ctx = ctx
        self._free = [0] if ctx.checkpointed else list(range(n_seq))
        self._checkpoints = Checkpoints(ctx)
        self._kept: dict[int, int] = {}
        """Position -> slot of the states kept of the one path, ascending."""
        self.paths: dict[int, Path] = {}

    def reset(self, number: int, keep: int, tokens: Sequence[int]) -> None:
        """One path is left: the first `keep` tokens of the history plus `tokens`, on the longest cached prefix."""
        longest = max(self.paths.values(), key=lambda p: len(p.tokens), default=None)
        wanted = (longest.tokens[:keep] if longest else []) + list(tokens)
        best, common = None, -1
        for path in self.paths.values():
            n = 0
            for a, b in zip(path.tokens[: path.cached], wanted, strict=False):
                if a != b:
                    break
                n += 1
            if n > common:
                best, common = path, n
        common = min(common, len(wanted) - 1)  # the last token is always decoded: its logits are the next draft
        for path in list(self.paths.values()):
            if path is not best:
                self._remove(path)
        if best is None:
            self.paths = {number: Path(self._free.pop(), wanted, 0)}
            return
        best.tokens = wanted
        if common < best.cached:
            self.take_back(best, common)
        self.paths = {number: best}

    def fork(self, number: int, of: int, keep: int, token: int) -> None:
        """A side branch: the first `keep` tokens of path `of`, then `token`."""
        path = self.paths.get(of)
        if path is None or not self._free:
            return
        seq = self._free.pop()
        cached = min(keep, path.cached)
        if cached:
            self._ctx.seq_cp(path.seq, seq, 0, cached)
        self.paths[number] = Path(seq, [*path.tokens[:keep], token], cached)

    def drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            path = self.paths.pop(number, None)
            if path is not None:
                self._remove(path)

    def before(self, path: Path) -> None:
        """The rows behind what is cached of the path are about to be decoded."""
        at = path.cached
        if not self._ctx.checkpointed or at == 0 or at < max(self._kept, default=0) + EVERY:
            return
        if len(self._kept) == DRAFT_SLOTS:
            del self._kept[min(self._kept)]
        slot = min(set(range(DRAFT_SLOTS)) - set(self._kept.values()))
        self._checkpoints.save(slot)
        self._kept[at] = slot

    def take_back(self, path: Path, n: int) -> None:
        """No more than the first `n` rows stay cached; fewer where only an older state is kept."""
        if not self._ctx.checkpointed:
            self._ctx.seq_rm(path.seq, n, -1)
            path.cached = n
            return
        path.cached = max((pos for pos in self._kept if pos <= n), default=0)
        if path.cached:
            self._checkpoints.restore(self._kept[path.cached], path.cached)
        else:
            self._ctx.seq_rm(path.seq, 0, -1)
        self._kept = {pos: slot for pos, slot in self._kept.items() if pos <= path.cached}

    def _remove(self, path: Path) -> None:
        self._ctx.seq_rm(path.seq, 0, -1)
        self._kept.clear()
        self._free.append(path.seq)
