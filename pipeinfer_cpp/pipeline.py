"""The public API: a pipeline of llama.cpp processes that generates.

with Pipeline.local(pair="demo", stages=2) as p:
    for token in p.generate("Once upon a time"):
        print(token.text, end="", flush=True)
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from pipeinfer_cpp.arguments import number, several, text, truth, whole
from pipeinfer_cpp.chat.chats import Chats, plain_messages
from pipeinfer_cpp.chat.template import template_of
from pipeinfer_cpp.cluster.crew import Crew
from pipeinfer_cpp.cluster.driver import Driver
from pipeinfer_cpp.cluster.launch import Process
from pipeinfer_cpp.cluster.live import Live
from pipeinfer_cpp.cluster.plan import Plan
from pipeinfer_cpp.cluster.session import Session
from pipeinfer_cpp.cluster.window import Window
from pipeinfer_cpp.engine import Settings
from pipeinfer_cpp.engine.cached import Past
from pipeinfer_cpp.errors import PipeInferError, UserError
from pipeinfer_cpp.generation import Generation, Reading
from pipeinfer_cpp.line import Line, Switchboard
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.results import Result
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.system.reports import Report

_KINDS: dict[str, Callable[[str, Any], Any]] = {
    "mode": text,
    "governor": truth,
    **dict.fromkeys(("ablate", "proposers"), lambda name, value: frozenset(several(text)(name, value))),
    **dict.fromkeys(("branches", "max_rows", "max_ahead", "draft_max"), whole),
    **dict.fromkeys(("cutoff", "recovery", "decay", "split"), number),
}
"""Of what `configure` can change."""


class Pipeline:
    """Stages, a draft worker where there is one, and the coordinator. Close it, or use `with`."""

    def __init__(self, options: Options, report: Report | None = None, crew: Crew | None = None) -> None:
        """`crew`: worker processes that were started already; they are this pipeline's to end."""
        if not isinstance(options, Options):
            raise TypeError(f"options: Options are needed, not {options!r} (Pipeline.local takes them one by one)")
        options.check()
        self.on_notice: Callable[[str], None] = lambda _text: None
        """Called in another thread with a sentence that the user should see at once: a stage is silent, is gone, or is
        back."""
        self._resources = contextlib.ExitStack()
        self._finalizer = weakref.finalize(self, _close, self._resources, os.getpid())
        try:
            self._session = Session(options, report, crew)
            self._resources.callback(self._session.close)
            # The driver's thread must not keep this alive.
            notice = partial(_notice, weakref.ref(self))
            self.driver = Driver(self._session, self._session.settings, trace=options.trace, notice=notice)
            self._resources.callback(self.driver.close)
        except BaseException:
            self.close()
            raise
        self.plan: Plan = self._session.plan
        self.vocabulary = self._session.vocabulary
        self.exact = self.plan.faithful
        self.kv_type = self._session.loaded[0].kv_type
        self.threads = [m.threads for m in self._session.loaded]
        """Of each stage."""
        self._board = Switchboard(self.driver, self.vocabulary, self._session.settings)
        self._line = Line(self._board, "local")
        """Of `generate` and `chat`."""
        self._chats: Chats | None = None

    @classmethod
    def local(cls, pair: str | None = None, *, report: Report | None = None, **options: Any) -> Pipeline:
        """Start the stages on this machine (or use those at the addresses in `stages`). See Options."""
        return cls(Options(pair=pair, **options), report)

    @property
    def processes(self) -> list[Process]:
        """Workers that were started here."""
        return self._session.processes

    @property
    def settings(self) -> Settings:
        return self._board.settings

    # ------------------------------------------------------------------------------------- using it

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        sampling: Sampling | Mapping[str, Any] | None = None,
        stop: str | Sequence[str] = (),
        goes_on: bool = False,
        reading: Reading | None = None,
    ) -> Generation:
        """Begin a generation behind the prompt: text, or token ids as they are.

        What the stages still hold of an earlier prompt with the same beginning is not computed again; in exact
        mode only what this prompt alone would compute in the same way, unless it `goes_on`: is the next turn
        of the conversation that the stages hold. `reading` is told how many of the prompt's tokens are read, now
        and then until the first token comes, and that all are.
        Raises UserError for a prompt that does not fit the context, and PipeInferError while another
        generation is under way. `max_tokens` -1: until the end, or until the context is full.
        """
        return self._line.generate(
            prompt, max_tokens=max_tokens, sampling=sampling, stop=stop, goes_on=goes_on, reading=reading
        )

    def conversation(self, owner: str = "local") -> Line:
        """A further conversation, with a slot of its own while it is in use. Conversations of one `owner` use each
        other's cells where their prompts begin alike; nobody else's."""
        return Line(self._board, owner, self)

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = -1,
        sampling: Sampling | Mapping[str, Any] | None = None,
        stop: str | Sequence[str] = (),
        reading: Reading | None = None,
    ) -> Generation:
        """Begin the answer to the last of these messages, by the model's chat template.

        A message is a dict of `role` (system, user, assistant) and `content` (text, or parts of type text); a text is
        one message of the user. The messages of the call before, its `result.text` as the assistant's and a new
        one of the user's go on where that answer ended: nothing is computed twice. Where the context is full the
        oldest questions go with their answers. Otherwise as `generate`.
        Raises UserError too for a model without a chat template.
        """
        self._board.check_alive()
        said = plain_messages(messages)
        if (max_tokens := whole("max_tokens", max_tokens)) < 1 and max_tokens != -1:
            raise UserError("--max-tokens must be at least 1, or -1 for as many as the context holds.")
        if self._chats is None:
            template = template_of(self.plan.target, self.plan.pair, self.vocabulary, None, {})
            self._chats = Chats(template, self.vocabulary, self.settings.n_ctx)
        with self._board.lock:
            self._line.rest("This pipeline generates one text at a time")
            quarter = self.settings.n_ctx // 4
            reserve = quarter if max_tokens == -1 else min(max_tokens, quarter)
            tokens, goes_on = self._chats.prompt(said, self._line.job, reserve)
        generation = self.generate(
            tokens, max_tokens=max_tokens, sampling=sampling, stop=stop, goes_on=goes_on, reading=reading
        )
        self._chats.began(generation.job)
        return generation

    @property
    def last(self) -> Result | None:
        """The result of the last generation that ended well."""
        return self._line.last

    def check_grammar(self, sampling: Sampling) -> None:
        """Raise UserError for an invalid grammar or bias here, before any stage sees it."""
        self._board.check_grammar(sampling)

    def configure(self, **changes: Any) -> None:
        """Change engine settings (mode, draft_max, cutoff, ...) between generations.

        Raises UserError, and changes nothing, for values that the stages were not opened for.
        """
        opened = self._session.settings
        held = {"n_ctx", "chunk", "eog", "exact", "checkpoints", "slots", "stash", "stash_longest"}
        for name in sorted(changes.keys() & held):
            if changes[name] != getattr(self.settings, name):
                raise UserError(f"{name} cannot be changed while the pipeline is open: open another one with it.")
        changes = {name: _KINDS[name](name, value) if name in _KINDS else value for name, value in changes.items()}
        known = {field.name for field in fields(self.settings)} - held
        if unknown := sorted(changes.keys() - known - held):
            raise UserError(f"configure: there is no setting {unknown[0]!r} (there are {', '.join(sorted(known))}).")
        try:
            settings = replace(self.settings, **changes)
        except (TypeError, ValueError) as error:
            raise UserError(f"These settings cannot be: {error}.") from None
        if settings.mode != "off" and not self.plan.guesses:
            raise UserError(f"mode {settings.mode} needs a draft model: this pipeline was opened without one.")
        for name in ("branches", "max_rows", "max_ahead"):
            if not 1 <= whole(name, getattr(settings, name)) <= getattr(opened, name):
                raise UserError(f"{name} can be 1 to {getattr(opened, name)} on this pipeline, as it was opened.")
        if not 1 <= settings.draft_max <= 63:
            raise UserError("--draft-max must be between 1 and 63.")
        for name in ("cutoff", "recovery", "decay", "split"):
            if not 0.0 <= getattr(settings, name) <= 1.0:
                raise UserError(f"{name} must be between 0 and 1.")
        with self._board.lock:
            self._line.rest()
            self.driver.configure(settings)
            self._board.settings = settings

    def forget(self) -> None:
        """Compute the next prompt of `generate` from its beginning, whatever the stages still hold of it."""
        self._line.forget()

    def past(self) -> Past:
        """The conversation of `generate` so far, see `Line.past`."""
        return self._line.past()

    def recall(self, past: Past) -> None:
        """Go on with it on this pipeline, see `Line.recall`."""
        self._line.recall(past)

    def live(self) -> Live:
        """What the pipeline does now: stages, conversations, rates of the last seconds. Any thread may ask."""
        now, plan = self.driver.live(), self.plan
        stages = [msgspec.structs.replace(stage, layers=plan.ranges[stage.index]) for stage in now.stages]
        draft = plan.draft.name if plan.draft is not None and now.draft is not None else None
        return msgspec.structs.replace(now, model=plan.target.name, draft=draft, stages=stages)

    def show(self) -> None:
        """Let `pipeinfer top` of the same user on this machine see it, until it is closed."""
        with contextlib.suppress(OSError):  # a pipeline is as good without
            self._resources.callback(Window(partial(_live, weakref.ref(self))).close)

    @property
    def warnings(self) -> list[str]:
        """What the user should know about how this was set up."""
        return self.plan.warnings

    def write_trace(self, path: Path) -> None:
        if self.driver.trace is None:
            raise UserError("This pipeline was opened without trace=True.")
        self.driver.trace.write(path)

    def close(self) -> None:
        """End all processes."""
        self._finalizer()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _close(resources: contextlib.ExitStack, owner: int) -> None:
    """All of it, unless this is a forked child: its parent's sockets, folder and processes are not its own."""
    if os.getpid() == owner:
        resources.close()


def _live(pipeline: weakref.ref[Pipeline]) -> Live:
    if (alive := pipeline()) is None:
        raise PipeInferError("This pipeline is gone.")
    return alive.live()


def _notice(pipeline: weakref.ref[Pipeline], text: str) -> None:
    if (alive := pipeline()) is not None:
        alive.on_notice(text)
