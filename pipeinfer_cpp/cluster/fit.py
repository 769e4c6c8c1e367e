"""Whether a pipeline fits into the memory of its machines, and which context does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import fit_split
from pipeinfer_cpp.gguf.needs import CELL, Model, Needs, Room
from pipeinfer_cpp.gguf.splits import LayerRange, split_by_shares
from pipeinfer_cpp.models.files import size_text
from pipeinfer_cpp.system.memory import Memory

KV_UNASKED = 1 << 30
"""Bytes of KV cache that a stage takes at most for a context that nobody asked for: llama.cpp writes all of
it at the start, up to a second for so much."""
STASH_SHARE = 0.1
"""Of what a machine has left, for conversations without a slot."""
_STEP, _LEAST = 256, 1024
"""Contexts are multiples of the first, and not chosen below the second."""


@dataclass(frozen=True)
class Machine:
    """One that holds stages. `name` for people; without `memory` it is not known, and anything fits."""

    name: str
    memory: Memory | None = None


@dataclass(frozen=True)
class Fit:
    """A target in slices, and a draft, on machines: who needs what.

    `stage_room` and `draft_room` give the size of the contexts for a number of positions. `machines` are
    those of the stages, the draft runs on the one named as `here`.
    """

    target: Model
    draft: Model | None
    ranges: Sequence[LayerRange]
    machines: Sequence[Machine]
    here: Machine
    stage_room: Callable[[int], Room]
    draft_room: Callable[[int], Room]

    def stages(self, n_ctx: int) -> list[Needs]:
        room = self.stage_room(n_ctx)
        return [self.target.stage(first, end, room) for first, end in self.ranges]

    def drafting(self, n_ctx: int) -> Needs | None:
        return None if self.draft is None else self.draft.whole(self.draft_room(n_ctx))

    def stash(self, n_ctx: int) -> int:
        """Positions of conversations without a slot that each stage may keep beside its cache: a tenth of what its
        machine has left, with room for two that change places. 0 where that is not known, and for models whose caches
        hold more than a cell for each position."""
        if any(cache.state or cache.sparse or cache.streams for cache in self.target.caches):
            return 0
        cells: dict[Machine, float] = {}
        for machine, need in zip(self.machines, self.stages(n_ctx), strict=True):
            cells[machine] = cells.get(machine, 0.0) + need.cell + CELL
        needs = self.by_machine(n_ctx)
        left = [(m.memory.usable - needs[m] if m.memory is not None else 0) / cells[m] for m in cells]
        return max(0, int(STASH_SHARE * min(left)) - n_ctx)

    def cell(self) -> float:
        """Bytes of cache for each position, of all processes together."""
        drafting = self.drafting(_STEP)
        return sum(need.cell for need in self.stages(_STEP)) + (drafting.cell if drafting is not None else 0)

    def by_machine(self, n_ctx: int) -> dict[Machine, int]:
        """Bytes that the pipeline needs of each machine."""
        needs: dict[Machine, int] = {}
        for machine, need in zip(self.machines, self.stages(n_ctx), strict=True):
            needs[machine] = needs.get(machine, 0) + need.total
        drafting = self.drafting(n_ctx)
        if drafting is not None:
            here = next((machine for machine in needs if machine.name == self.here.name), self.here)
            needs[here] = needs.get(here, 0) + drafting.total
        return needs

    def sentence(self, n_ctx: int) -> str:
        """What each process needs, by machine, and what a token of the context costs."""
        needs: dict[Machine, list[str]] = {}
        for i, (machine, need) in enumerate(zip(self.machines, self.stages(n_ctx), strict=True)):
            needs.setdefault(machine, []).append(f"stage {i} {size_text(need.total)}")
        drafting = self.drafting(n_ctx)
        if drafting is not None:
            here = next((machine for machine in needs if machine.name == self.here.name), self.here)
            needs.setdefault(here, []).append(f"the draft {size_text(drafting.total)}")
        places = []
        for machine, parts in needs.items():
            free = f" ({size_text(machine.memory.free)} free)" if machine.memory is not None else ""
            places.append(f"on {machine.name}{free}: {', '.join(parts)}")
        return (
            f"Memory needed {'; '.join(places)}; each of the context's {n_ctx:,} tokens costs "
            f"{self.cell() / 1000:.1f} kB."
        )

    def fits(self, n_ctx: int) -> bool:
        return not self._tight(n_ctx)

    def choose(self, asked: int | None, trained: int, *, strict: bool = True) -> tuple[int, str | None]:
        """The context, and what the user should know of it. `asked`: None leaves it to us, 0 is the model's own,
        which is `trained`.

        Unasked it is as much of the model's own as its caches may take: KV_UNASKED of each stage, and half of
        what a machine has left beside the weights. Raises UserError for a pipeline that does not fit, unless
        not `strict`.
        """
        least = min(trained, _LEAST)
        needed = least if asked is None else asked or trained
        if strict and not self.fits(needed):
            raise UserError(self.refusal(needed, trained))
        if asked is not None:
            return needed, None
        n_ctx = max(least, self._largest(trained, self._modest))
        if n_ctx == trained:
            return n_ctx, None
        return n_ctx, (
            f"The context is {n_ctx:,} tokens, not the model's {trained:,}, to keep its cache small "
            f"({size_text(self.cell() * n_ctx)}, {size_text(self.cell() * 1000)} per 1,000 tokens): "
            "--ctx-size sets another, 0 the model's own."
        )

    def largest_ctx(self, trained: int) -> int:
        """The longest context that fits at all; 0 when there is none."""
        return self._largest(trained, self.fits)

    def refusal(self, n_ctx: int, trained: int) -> str:
        """Why a context of `n_ctx` does not fit, and what would."""
        machine, needed = self._tight(n_ctx)[0]
        usable = machine.memory.usable if machine.memory is not None else 0
        what = f"{self.target.source.path.name} with a context of {n_ctx:,} tokens needs {size_text(needed)}"
        sentence = f"{what} of {machine.name}, which can give {size_text(usable)}"
        smaller = self.largest_ctx(min(n_ctx, trained))
        if smaller >= min(_LEAST, trained):
            return f"{sentence}: --ctx-size {smaller} fits."
        split = self._other_split(n_ctx)
        if split is not None:
            return f"{sentence}: --split {split} fits."
        more = "add machines" if len(set(self.machines)) > 1 else "spread it over several machines"
        return f"{sentence}: {more}, or take a smaller file of this model (one of fewer bits)."

    def _tight(self, n_ctx: int) -> list[tuple[Machine, int]]:
        """Machines that have too little."""
        needs = self.by_machine(n_ctx).items()
        return [(m, needed) for m, needed in needs if m.memory is not None and needed > m.memory.usable]

    def _modest(self, n_ctx: int) -> bool:
        """Whether the caches of this context leave something over, and are there in no time."""
        if any(need.kv > KV_UNASKED for need in self.stages(n_ctx)):
            return False
        least = self.by_machine(min(n_ctx, _STEP))
        for machine, needed in self.by_machine(n_ctx).items():
            if machine.memory is not None and needed - least[machine] > (machine.memory.usable - least[machine]) / 2:
                return False
        return True

    def _largest(self, trained: int, good: Callable[[int], bool]) -> int:
        """The largest multiple of _STEP up to `trained` (or that itself) that is good, 0 when none is."""
        if good(trained):
            return trained
        low, high = 0, -(-trained // _STEP)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if good(middle * _STEP) else (low, middle)
        return low * _STEP

    def _other_split(self, n_ctx: int) -> str | None:
        """Shares by what the machines of the stages can give, when that would fit."""
        known = [machine.memory for machine in self.machines]
        if len(set(self.machines)) < 2 or any(memory is None for memory in known):
            return None
        given = [m.usable / self.machines.count(machine) for m, machine in zip(known, self.machines, strict=True) if m]
        shares = [round(g / sum(given), 2) for g in given]
        try:
            wanted = split_by_shares(shares, self.target.source.n_layers)
            ranges, _ = fit_split(self.target.source, wanted)
        except UserError:
            return None
        if not replace(self, ranges=ranges).fits(n_ctx):
            return None
        return ",".join(f"{share:g}" for share in shares)

