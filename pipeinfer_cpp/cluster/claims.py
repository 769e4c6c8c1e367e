"""What workers say, checked before the engine believes it: a worker of another kind must not end it without a name."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeinfer_cpp.engine.events import LOST
from pipeinfer_cpp.engine.run import InFlight
from pipeinfer_cpp.net.messages import Guessed, Loaded, Passed, RunBack


def back(said: RunBack, in_flight: Mapping[int, InFlight], n_vocab: int) -> str | None:
    """Why this answer to a run cannot be, None when it can. `n_vocab`: tokens that the target has."""
    flight = in_flight.get(said.run)
    if flight is None:
        return f"it answers run {said.run}, which is not under way"
    if said.dead:
        return f"it computed nothing for run {said.run}, which nobody cancelled" if flight.alive else None
    wanted = sum(row.draw for row in flight.run.rows)
    if len(said.draws) != wanted:
        return f"it answers run {said.run} with {len(said.draws)} draws instead of {wanted}"
    if said.tops and len(said.tops) != wanted:
        return f"it answers run {said.run} with likely tokens for {len(said.tops)} draws instead of {wanted}"
    if any(not 0 <= token < n_vocab or math.isnan(logprob) for top in said.tops for token, logprob in top):
        return f"it names likely tokens in run {said.run} that cannot be"
    for token, logprob in said.draws:
        if not LOST <= token < n_vocab or math.isnan(logprob):
            return f"it drew token {token} with log-probability {logprob} in run {said.run}, which is impossible"
    return None


def ready(said: Passed, stage: int, last_run: int) -> str | None:
    """Of stage `stage`; runs up to `last_run` were sent."""
    if said.stage != stage:
        return f"it says that it is stage {said.stage}"
    if not 0 < said.run <= last_run:
        return f"it passed on run {said.run}, which was never sent"
    seconds = said.ended - said.began
    if not (math.isfinite(seconds) and seconds >= 0 and said.bytes_out >= 0):
        return f"it says that run {said.run} took {seconds} s and {said.bytes_out} bytes, which is impossible"
    return None


def drafted(said: Guessed, n_vocab: int) -> str | None:
    """Paths that are dead or unknown do no harm: the engine passes over them."""
    if not (0 <= said.token < n_vocab and -1 <= said.second < n_vocab):
        return f"it drafted token {said.token} or {said.second}, which the target does not have"
    if not (0 <= said.prob <= 1 and 0 <= said.second_prob <= 1 and math.isfinite(said.ended - said.began)):
        return f"it gives token {said.token} the probability {said.prob}, which is impossible"
    return None


def loaded(said: Loaded, stage: bool) -> str | None:
    """What a worker measured at its start; only a `stage` has a curve."""
    times = said.curve.values()
    if stage and not (said.curve and min(said.curve) == 1 and all(math.isfinite(t) and t >= 0 for t in times)):
        return "it measured impossible times"
    if said.safe_width < 1 or said.threads < 0:
        return f"it takes {said.safe_width} rows with {said.threads} threads, which is impossible"
    if said.stash < 0:
        return f"it keeps conversations of {said.stash} positions, which is impossible"
    return None
