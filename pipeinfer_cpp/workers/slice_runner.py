"""What a stage does with a run: operations, decode, draws."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeinfer_cpp.emulation import stretched
from pipeinfer_cpp.engine.events import LOST
from pipeinfer_cpp.errors import FormLost, PipeInferError, UserError
from pipeinfer_cpp.gguf import Source
from pipeinfer_cpp.gguf.needs import Model
from pipeinfer_cpp.llama.checkpoints import Checkpoints
from pipeinfer_cpp.llama.context import Aborted, SliceContext, batches
from pipeinfer_cpp.llama.paths import PathSamplers
from pipeinfer_cpp.llama.pieces import Pieces
from pipeinfer_cpp.llama.selftest import WIDEST, bent, slice_seconds
from pipeinfer_cpp.llama.stash import Stash
from pipeinfer_cpp.net.codecs import codec
from pipeinfer_cpp.net.messages import Loaded, LoadSlice, RunHeader, WireOp
from pipeinfer_cpp.net.sockets import clock
from pipeinfer_cpp.system.reports import StepReport
from pipeinfer_cpp.workers.lifeline import resident_mb
from pipeinfer_cpp.workers.limits import Limits
from pipeinfer_cpp.workers.probe import Setup, forget, probe

_NOT_FINITE = "numbers that are not finite (NaN or infinite)"
_ADVICE = "the model's file may be damaged: try another copy, or another quantisation of it"


@dataclass(frozen=True, slots=True)
class Computed:
    """`outcome`: `done`, `skipped` or `aborted`. Times in seconds of this machine's monotonic clock."""

    outcome: str
    began: float
    ended: float
    hidden: NDArray[np.float32] | None = None
    draws: tuple[tuple[int, float], ...] = ()
    lost: str = ""
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()


class SliceRunner:
    """One slice with its context. `execute` is called by one thread, `cancel` by any."""

    def __init__(self, load: LoadSlice, path: str, report: StepReport) -> None:
        options = load.options
        self.first, self.last = load.index == 0, load.index == load.n_stages - 1
        self._stretch = stretched(load.stretch) if load.stretch else None
        start = _Start(load, path, report)
        context = self._ctx = start.context
        self._checkpoints, self._stash = Checkpoints(context), Stash(context)
        self._lock = threading.Lock()
        self._dead: set[int] = set()
        self._current = -1
        self._cut_short = threading.Event()
        self._samplers: dict[int, PathSamplers] = {}
        """By slot, on the last stage."""
        self._pieces = Pieces(context.vocab, context.n_vocab) if self.last else None
        self._n_seq, self._apart = options.n_seq, options.apart
        self._limits = Limits(
            options.n_seq, context.n_ctx, options.chunk, context.n_vocab, context.checkpointed, self._stash.longest
        )
        self._wire = codec(load.wire_in, context.row_width)
        try:
            seen = slice_seconds(context, min(4, max(start.curve), options.chunk))
        except BaseException:
            self.close()
            raise
        # Samples are looked at once, whatever the machine did besides: the slice itself sets level and bend.
        curve, off = bent(start.curve, seen)
        if off:
            start.forget()
        if self._stretch:
            curve = {w: max(s, self._stretch(w)) for w, s in curve.items()}
        self.loaded = Loaded(
            curve,
            start.safe,
            start.kv_type,
            resident_mb(),
            options.threads,
            context.checkpointed,
            self._stash.longest,
        )

    def cancel(self, runs: tuple[int, ...]) -> None:
        """Runs that are not here yet or wait will be skipped; the one under way is aborted."""
        with self._lock:
            self._dead.update(runs)
            if self._current in self._dead:
                self._ctx.abort.set()
                self._cut_short.set()

    def interrupt(self) -> None:
        """Stop whatever is computed: the session is over."""
        self._ctx.abort.set()
        self._cut_short.set()

    def execute(self, run: RunHeader, payload: memoryview | None, due: float | None = None) -> Computed:
        """Apply the operations, then decode unless the run is dead. On an emulated link it is here at `due`."""
        began = clock()
        self._limits.check(run)
        for op in run.ops:
            self._apply(op)
        for turn in run.turns if self.last else ():
            if turn.slot not in self._samplers:
                self._samplers[turn.slot] = PathSamplers(self._ctx.vocab, self._ctx.n_vocab, self._pieces)
            self._samplers[turn.slot].begin(turn.sampling, turn.prompt, turn.said, turn.root)
        with self._lock:
            dead = run.dead or run.id in self._dead
            self._dead = {r for r in self._dead if r > run.id}
            if not dead and run.rows:
                # Cleared together with taking the run: a late cancellation of the last one must not hit it.
                self._ctx.abort.clear()
                self._cut_short.clear()
                self._current = run.id
        if dead or not run.rows:
            return Computed("skipped", began, clock())
        try:
            if due is not None and due > began:
                if self._cut_short.wait(due - began):
                    return Computed("skipped", began, clock())
                began = clock()
            return self._decode(run, payload, began)
        except Aborted:
            return Computed("aborted", began, clock())
        finally:
            with self._lock:
                self._current = -1

    def _apply(self, op: WireOp) -> None:
        match op.kind:
            case "rm":
                self._ctx.seq_rm(op.seq, op.p0, op.p1)
            case "cp":
                self._ctx.seq_cp(op.src, op.seq, op.p0, op.p1)
            case "snapshot":
                self._checkpoints.save(op.src, op.seq)
            case "restore":
                self._checkpoints.restore(op.src, op.p0, op.seq)
            case "stash":
                self._stash.put(op.src, op.seq, op.p0)
            case "unstash":
                self._stash.take(op.src, op.seq, op.p0)
            case "drop":
                self._stash.drop(op.src)

    def held(self) -> tuple[int, ...]:
        """The last cached position of each sequence id, -1 for an empty one."""
        return tuple(self._ctx.seq_span(seq)[1] for seq in range(self._n_seq))

    def close(self) -> None:
        for samplers in self._samplers.values():
            samplers.close()
        self._ctx.close()

    def _decode(self, run: RunHeader, payload: memoryview | None, began: float) -> Computed:
        rows = run.rows
        pos = np.array([r.pos for r in rows], np.int32)
        seq = np.array([r.seq for r in rows], np.int32)
        tokens = np.array([r.token for r in rows], np.int32)
        hidden: NDArray[np.float32] | None = None
        if not self.first:
            width = self._ctx.row_width
            if payload is None or payload.nbytes != len(rows) * self._wire.row_bytes(width):
                raise UserError(f"Run {run.id} came without its hidden states: is the stage before it the same model?")
            hidden = self._wire.decode(payload, len(rows), width)
        wanted = np.array([r.draw for r in rows], np.int8) if self.last else None
        if hidden is not None and not _finite(hidden):
            raise PipeInferError(f"{_NOT_FINITE} in what came from the stage before it (run {run.id}); {_ADVICE}")
        for slot, samplers in self._samplers.items():
            samplers.look_ahead([(r.node, r.parent, r.token) for r in rows if r.draw and r.slot == slot])
        drawn: list[tuple[int, float]] = []
        outs: list[NDArray[np.float32]] = []
        tops: list[tuple[tuple[int, float], ...]] = []
        lost = ""
        parts = batches(seq.tolist()) if self._apart else [(0, len(rows))]
        for n, (a, b) in enumerate(parts):
            try:
                out = self._ctx.decode(
                    tokens[a:b],
                    pos[a:b],
                    seq[a:b],
                    wanted[a:b] if wanted is not None else None,
                    hidden[a:b] if hidden is not None else None,
                )
            except Aborted:
                return self._undone(pos, seq, began)
            if not _finite(out, logits=self.last):
                raise PipeInferError(f"it computed {_NOT_FINITE} (run {run.id}); {_ADVICE}")
            if self._stretch and n == len(parts) - 1:
                left = began + self._stretch(len(rows)) - clock()
                if left > 0 and self._cut_short.wait(left):
                    return self._undone(pos, seq, began)
            if not self.last:
                outs.append(out)
                continue
            for row, logits in zip((r for r in rows[a:b] if r.draw), out, strict=True):
                if self._cut_short.is_set():
                    return self._undone(pos, seq, began)
                try:
                    draw = self._samplers[row.slot].draw(row.node, row.parent, row.token, row.pos, logits)
                except FormLost as error:
                    drawn.append((LOST, 0.0))
                    tops.append(())
                    lost = str(error)
                    continue
                drawn.append((draw.token, draw.logprob) if draw is not None else (-1, 0.0))
                tops.append(draw.top if draw is not None else ())
        if not self.last:
            return Computed("done", began, clock(), hidden=outs[0] if len(outs) == 1 else np.concatenate(outs))
        for slot, node in run.finals:
            self._samplers[slot].final(node)
        return Computed("done", began, clock(), draws=tuple(drawn), lost=lost, tops=tuple(tops) if any(tops) else ())

    def _undone(self, pos: NDArray[np.int32], seq: NDArray[np.int32], began: float) -> Computed:
        """Cancelled behind its decode: its cells go, as after a decode that was aborted. A state that cannot be
        taken back in part is restored by the next live run's header."""
        if not self._ctx.checkpointed:
            for s in set(seq.tolist()):
                self._ctx.seq_rm(s, int(pos[seq == s].min()), -1)
        return Computed("aborted", began, clock())


def _finite(x: NDArray[np.float32], logits: bool = False) -> bool:
    """No NaN and no infinity; a logit may be minus infinity, which some models say of tokens they never draw."""
    if not x.size:
        return True
    rows = x.max(axis=1)
    return bool(np.isfinite(rows).all() and (logits or np.isfinite(x.min())))


class _Start:
    """The self-test, then the context. Samples come first, as far as no other stage is at them: what they take of
    memory is free again before the slice is loaded. `auto` is q8_0 in exact mode where the heads allow it."""

    def __init__(self, load: LoadSlice, path: str, report: StepReport) -> None:
        self._load, self._path, self._report = load, path, report
        self._context: SliceContext | None = None
        options = load.options
        source = Source.open(load.model.path)
        wanted = [Model(source).kv_type(options.kv_type, load.exact)]
        if options.kv_type == "auto" and wanted != ["f16"]:
            wanted.append("f16")
        how = options.flash_attn, options.threads, options.gpu_layers, options.n_ctx
        for kv_type in wanted:
            self.kv_type = kv_type
            setup = Setup(kv_type, *how, min(load.max_rows, WIDEST), load.exact)
            layers = load.first, load.end
            self.forget = partial(forget, source, layers, setup)
            try:
                self.curve, self.safe = probe(source, layers, path, setup, report, self._open)
                self.context = self._open()
                return
            except BaseException as error:
                if self._context is not None:
                    self._context.close()
                    self._context = None
                if not isinstance(error, UserError) or kv_type == wanted[-1]:
                    raise

    def _open(self) -> SliceContext:
        if self._context is None:
            said = -1

            def loading(share: float) -> None:
                nonlocal said
                if said != (said := int(100 * share)):
                    self._report("loading the layers", said, 100)

            self._report("loading the layers", 0, 0)
            options = self._load.options
            self._context = SliceContext(
                self._path,
                n_ctx=options.n_ctx,
                n_seq_max=options.n_seq,
                n_ubatch=options.chunk,
                kv_type=self.kv_type,
                flash_attn=options.flash_attn,
                n_threads=options.threads,
                n_gpu_layers=options.gpu_layers,
                apart=options.apart,
                progress=loading,
            )
        return self._context
