"""From what was asked for to what each worker is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from pipeinfer_cpp.cluster.choices import chosen_layers, chosen_models, chosen_settings, trained_ctx
from pipeinfer_cpp.cluster.fit import Fit, Machine
from pipeinfer_cpp.engine.settings import DRAFT_STATES, Settings
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source, check_pair, needs_checkpoints, row_width, slice_plan
from pipeinfer_cpp.gguf.needs import Model, Room
from pipeinfer_cpp.net.codecs import codec
from pipeinfer_cpp.net.keys import split_address
from pipeinfer_cpp.net.messages import ContextOptions, LoadDraft, LoadSlice, Message, ModelRef, Stretch
from pipeinfer_cpp.net.transit import LinkSpeed
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.proof.prove import prove
from pipeinfer_cpp.proof.vocabulary import check_vocabulary
from pipeinfer_cpp.system.machine import Share, cores, machine_id
from pipeinfer_cpp.system.memory import Memory, memory
from pipeinfer_cpp.system.reports import Report

if TYPE_CHECKING:
    from pipeinfer_cpp.models import Pair


@dataclass
class Plan:
    """Who holds which layers, with which settings."""

    options: Options
    pair: Pair | None
    target: Source
    draft: Source | None
    ranges: list[tuple[int, int]]
    addresses: list[str | None]
    settings: Settings
    exact: bool
    target_hash: str
    """Told to stages on other machines, which look for their own copy of the model by it; else ""."""
    share: Share
    """What each of the workers on this machine may use of it. With cores to spare they wait for messages
    without sleeping."""
    warnings: list[str] = field(default_factory=list)
    fit: Fit | None = None
    """What it needs of each machine's memory, once all machines are known."""
    report: Report | None = None

    @property
    def faithful(self) -> bool:
        """Whether texts are the model's own to the last bit: exact mode, and nothing is rounded between stages."""
        return self.exact and all(self.options.wire_of(link) == "f32" for link in range(len(self.ranges) - 1))

    @property
    def links(self) -> Sequence[LinkSpeed]:
        """Emulated links; none where they are real."""
        return self.options.emulate.links if self.options.emulate is not None else self.options.links or ()

    @property
    def guesses(self) -> bool:
        """Somebody guesses what comes next: a draft model, or the text itself."""
        return self.draft is not None or self.options.ngram

    @property
    def active(self) -> bool:
        return self.share.spare

    @property
    def trained_ctx(self) -> int:
        """The model's own context."""
        return trained_ctx(self.target)

    def check_branches(self, checkpoints: bool) -> None:
        """Raises UserError for side branches of a model whose state is restored from checkpoints."""
        if checkpoints and self.settings.branches > 1:
            raise UserError(f"{self.target.name} keeps a state that cannot be branched: use --branches 1 with it.")

    def settle(self, places: Sequence[Machine] | None = None, *, strict: bool = True) -> None:
        """Choose the context, now that it is known where each stage runs (default: all of them here). Raises
        UserError where the pipeline does not fit, unless not `strict`."""
        here = Machine("this machine", memory())
        target, draft = Model(self.target), Model(self.draft) if self.draft is not None else None
        kv_type = target.kv_type(self.options.kv_type, self.exact)
        stage, drafter = lambda n: self._stage_room(n, kv_type), self._draft_room
        self.fit = Fit(target, draft, self.ranges, places or [here] * len(self.ranges), here, stage, drafter)
        # layers on a GPU are not in main memory: what they need is only told
        strict = strict and self.options.gpu_layers == 0
        n_ctx, note = self.fit.choose(self.options.ctx, self.trained_ctx, strict=strict)
        self.settings = replace(self.settings, n_ctx=n_ctx, stash=self.fit.stash(n_ctx))
        self.warnings += [note] if note else []

    def tell(self) -> None:
        """Report what is needed of each machine's memory, once that is known."""
        if self.fit is not None and self.report is not None:
            self.report("memory", self.fit.sentence(self.settings.n_ctx), 0, 0)

    def _places(self, machines: Sequence[str], memories: Sequence[Memory | None]) -> list[Machine]:
        """Where each stage runs. A machine with several is named by the first, and has as little as any of them
        found; a container with a limit of its own is a machine of its own."""
        here = memory()
        known: dict[tuple[str, int | None], Machine] = {}
        known[machine_id(), here.total if here is not None else None] = Machine("this machine", here)
        keys = []
        for machine, address, found in zip(machines, filter(None, self.addresses), memories, strict=True):
            of_it = [key for key in known if key[0] == machine]
            key = (machine, found.total) if found is not None else next(iter(of_it), (machine, None))
            keys.append(key)
            if key not in known:
                known[key] = Machine(f"the {'container' if of_it else 'machine'} of {address}", found)
            elif (before := known[key].memory) is not None and found is not None and found.free < before.free:
                known[key] = replace(known[key], memory=found)
        return [known[key] for key in keys]

    def _stage_room(self, n_ctx: int, kv_type: str) -> Room:
        n, settings = len(self.ranges), replace(self.settings, n_ctx=n_ctx)
        context = self._stage_context(n_ctx)
        return _room(context, kv_type, settings.max_rows, settings.slots * settings.states(n))

    def _draft_room(self, n_ctx: int) -> Room:
        context = self._draft_context(n_ctx)
        states = self.settings.slots * DRAFT_STATES
        return _room(context, "f16" if context.kv_type == "auto" else context.kv_type, 1, states)

    def _draft_cells(self, n_ctx: int) -> int:
        of = self.settings
        return of.slots * (n_ctx + of.branches * (of.max_ahead + 8))

    @property
    def _apart(self) -> bool:
        """The slots' sequences have cells of their own."""
        return self.settings.apart and self.settings.slots > 1

    def _stage_context(self, n_ctx: int) -> ContextOptions:
        settings = replace(self.settings, n_ctx=n_ctx)
        cells = settings.kv_cells(len(self.ranges))
        if self._apart:
            return self._context(cells, settings.slots, apart=True)
        return self._context(cells, settings.slots * settings.branches + 1)

    def _draft_context(self, n_ctx: int) -> ContextOptions:
        return self._context(self._draft_cells(n_ctx), self.settings.slots * self.settings.branches + 1)

    def meet(self, machines: Sequence[str], memories: Sequence[Memory | None]) -> None:
        """The stages that were started by hand run on these machines, which have so much memory: any on this
        one take part of its cores. Raises UserError where the pipeline does not fit."""
        if machines:
            self.settle(self._places(machines, memories))
            self.tell()
        self.share = replace(self.share, processes=self.share.processes + list(machines).count(machine_id()))
        if self.options.emulate is None and self.share.crowded:
            n, threads = self.share.processes, self.share.threads
            self.warnings.append(
                f"{n} processes of {threads} thread{'s' if threads > 1 else ''} share {self.share.cores} cores here: "
                "expect no speed-up on this machine."
            )

    def orders(self, addresses: Sequence[str], machines: Sequence[str | None], eog: frozenset[int]) -> list[Message]:
        """The load order of each stage, then of the draft worker where there is one. `machines`: where the
        stages run, None for those started here."""
        options = self.options
        n = len(self.ranges)
        stretches = [options.stretch_of(index) for index in range(n)]
        draft_stretch = options.draft_stretch
        if options.emulate is not None:
            stretches = [*options.emulate.stretches([end - first for first, end in self.ranges])]
            draft_stretch = Stretch(options.emulate.draft_ms / 1000)
        context = self._stage_context(self.settings.n_ctx)
        contexts = [context if machine is None else self._there(context, machines, machine) for machine in machines]
        model = ModelRef(str(self.target.path), self.target_hash, options.pair)
        orders: list[Message] = [
            LoadSlice(
                model,
                index,
                n,
                first,
                end,
                contexts[index],
                self.exact,
                following=addresses[index + 1] if index + 1 < n else None,
                previous=split_address(addresses[index - 1])[1] if index else None,
                stretch=stretches[index],
                max_rows=self.settings.max_rows,
                active=self.active,
                wire_in=options.wire_of(index - 1),
                wire_out=options.wire_of(index),
                link=self.links[index] if self.links else None,
                patience=options.patience,
            )
            for index, (first, end) in enumerate(self.ranges)
        ]
        if self.draft is not None:
            context = self._draft_context(self.settings.n_ctx)
            orders.append(
                LoadDraft(str(self.draft.path), context, self.settings.slots, tuple(sorted(eog)), draft_stretch)
            )
        return orders

    def _there(self, context: ContextOptions, machines: Sequence[str | None], machine: str) -> ContextOptions:
        """For a stage that was started by hand: it knows its cores, we know who else is there."""
        sharing = self.share.processes if machine == machine_id() else list(machines).count(machine)
        return msgspec.structs.replace(context, threads=self.options.threads or 0, sharing=sharing)

    def _context(self, cells: int, n_seq: int, apart: bool = False) -> ContextOptions:
        options = self.options
        step = 256 * n_seq if apart else 256
        return ContextOptions(
            n_ctx=-(-cells // step) * step,
            apart=apart,
            n_seq=n_seq,
            chunk=options.chunk,
            kv_type=options.kv_type,
            flash_attn=options.flash_attn,
            threads=self.share.threads,
            gpu_layers=options.gpu_layers,
        )


def make_plan(options: Options, report: Report | None = None) -> Plan:
    """Find the models, check that they fit, divide the layers. Raises UserError."""
    plan = outline(options)
    plan.report = report
    plan.tell()
    if report:
        report("coordinator", "testing the split on a small model of its kind", 0, 1)
    check_vocabulary(plan.target)
    proof = prove(plan.target, plan.ranges)
    plan.warnings += filter(None, [proof.note])
    if report and proof.outcome == "untested":
        report("note", proof.note, 0, 0)
    if report:
        report("coordinator", "preparing", 1, 1)
    return plan


def outline(options: Options, *, strict: bool = True) -> Plan:
    """The plan, from the headers of the models alone. Of stages on this machine the context is settled, and it
    fits if `strict`. Raises UserError."""
    pair, target_path, draft_path = chosen_models(options)
    target = Source.open(target_path)
    draft = Source.open(draft_path) if draft_path is not None else None
    if draft is not None:
        check_pair(target, draft)
    n_stages = options.n_stages
    ranges, notes = chosen_layers(options, target)
    for first, end in ranges:
        slice_plan(target, first, end)
    for link in range(n_stages - 1):
        codec(options.wire_of(link), row_width(target))
    settings, tuned = chosen_settings(options, pair, target, draft)
    notes += tuned
    exact = options.exact if options.exact is not None else options.gpu_layers == 0 and settings.branches == 1
    if exact and settings.branches > 1:
        raise UserError("--exact needs --branches 1, and this pair has more in models.toml.")
    if options.gpu_layers and isinstance(options.stages, int):
        from pipeinfer_cpp.llama.library import check_gpu

        check_gpu(options.gpu_layers)
    addresses: list[str | None] = [None] * n_stages if isinstance(options.stages, int) else list(options.stages)
    n_local = sum(a is None for a in addresses) + (draft is not None)
    share = Share(cores(), n_local, options.threads)
    plan = Plan(options, pair, target, draft, ranges, addresses, settings, exact, "", share, notes)
    plan.check_branches(needs_checkpoints(target))
    if options.emulate is not None:
        plan.warnings.append(f"Emulated: nodes and links are as slow as those of {options.emulate.name!r}.")
    if not any(addresses):
        plan.settle(strict=strict)
    return plan


def _room(context: ContextOptions, kv_type: str, draws: int, checkpoints: int) -> Room:
    return Room(context.n_ctx, context.n_seq, context.chunk, draws, kv_type, context.flash_attn, checkpoints)
