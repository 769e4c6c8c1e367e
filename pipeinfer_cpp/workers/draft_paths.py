"""The draft worker's paths: token lists with a sequence id each, of which some rows are cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeinfer_cpp.llama.context import SliceContext


@dataclass(slots=True)
class Path:
    """`tokens` is the whole history; KV cells exist for the first `cached` of them."""

    seq: int
    tokens: list[int]
    cached: int


class DraftPaths:
    """All live paths by number. Sequence ids are taken and freed with them."""

    def __init__(self, ctx: SliceContext, n_seq: int) -> None:
        self._ctx = ctx
        self._free = list(range(n_seq))
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
        self._ctx.seq_rm(best.seq, common, -1)
        self.paths = {number: Path(best.seq, wanted, common)}

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

    def _remove(self, path: Path) -> None:
        self._ctx.seq_rm(path.seq, 0, -1)
        self._free.append(path.seq)
