"""Arms side by side on one pipeline: A B A B, so that drift of the machine hits all alike."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipeinfer_cpp.errors import PipeInferError
from pipeinfer_cpp.lab.arms import CHANGEABLE, Arm
from pipeinfer_cpp.lab.intervals import Ratio, speed_up
from pipeinfer_cpp.lab.measurement import Measurement, pooled
from pipeinfer_cpp.lab.receipt import Receipt, digest, receipt
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.system.reports import CountReport


class Comparison(msgspec.Struct, frozen=True):
    """`arms`: pooled over prompts and rounds. `ratios`: speed over the first arm's. `same_text`: all arms
    wrote one text for every prompt."""

    arms: dict[str, Measurement]
    ratios: dict[str, Ratio]
    same_text: bool
    receipt: Receipt
    speeds: dict[str, list[list[float]]]
    """Tokens a second by arm, prompt, round."""


def compare(
    pipeline: Pipeline,
    arms: Sequence[Arm],
    prompts: Sequence[Sequence[int]],
    *,
    n_tokens: int,
    rounds: int,
    configuration: object,
    sampling: Sampling | None = None,
    report: CountReport = lambda done, total: None,
) -> Comparison:
    """Every prompt in every arm, `rounds` times, behind one round of warm-up with the first prompt.

    Raises PipeInferError when an answer is too short to have a speed.
    """
    chosen = sampling or Sampling(temp=0)
    kind = "emulated" if pipeline.plan.options.emulate or pipeline.plan.options.stretch else "measured"
    base = pipeline.settings
    parts: dict[str, list[list[Measurement]]] = {arm.name: [[] for _ in prompts] for arm in arms}
    texts: dict[str, list[list[int]]] = {arm.name: [] for arm in arms}
    total = len(arms) * (1 + len(prompts) * rounds)
    done = 0
    for turn in range(-1, rounds):
        for i, prompt in enumerate(prompts[:1] if turn < 0 else prompts):
            # The order turns round, so that no arm always comes first behind a prompt.
            for arm in arms if turn % 2 else arms[::-1]:
                pipeline.configure(**{name: getattr(base, name) for name in CHANGEABLE} | arm.changes)
                ids, measurement = one(pipeline, prompt, n_tokens, chosen, kind)
                done += 1
                report(done, total)
                if turn >= 0:
                    parts[arm.name][i].append(measurement)
                    texts[arm.name].append(ids)
    speeds = {name: [[m.tokens_per_s for m in row] for row in rows] for name, rows in parts.items()}
    first = arms[0].name
    written = {name: digest(sorted(map(tuple, ids))) for name, ids in texts.items()}
    return Comparison(
        arms={name: pooled([m for row in rows for m in row]) for name, rows in parts.items()},
        ratios={name: speed_up(speeds[name], speeds[first]) for name in speeds},
        same_text=len(set(written.values())) == 1,
        receipt=msgspec.structs.replace(receipt(pipeline, configuration), output=written),
        speeds=speeds,
    )


def one(
    pipeline: Pipeline, prompt: Sequence[int], n_tokens: int, sampling: Sampling, kind: str = "measured"
) -> tuple[list[int], Measurement]:
    """One generation from a forgotten conversation: its tokens, and what is said of it."""
    pipeline.forget()
    result = pipeline.generate(prompt, max_tokens=n_tokens, sampling=sampling).wait()
    if result.tokens_per_s is None or result.ttft_s is None or result.itl_s.mean is None:
        raise PipeInferError("The model answered a prompt with less than two tokens: choose other prompts.")
    tally, n = pipeline.driver.tally, result.n_generated
    decode = tally.times[-1] - tally.times[0]
    return result.token_ids, Measurement(
        kind=kind,
        mode=result.mode,
        tokens=n,
        tokens_per_s=result.tokens_per_s,
        ttft_s=result.ttft_s,
        itl_mean_s=result.itl_s.mean,
        itl_p50_s=result.itl_s.p50 or 0.0,
        itl_p99_s=result.itl_s.p99 or 0.0,
        acceptance=result.draft.acceptance,
        accept_by_depth=result.draft.accept_by_depth,
        sibling_hit=result.draft.sibling_hit,
        runs_sent=result.runs.sent,
        runs_cancelled=result.runs.cancelled,
        runs_aborted=result.runs.aborted,
        rows_per_token=result.runs.rows / n,
        in_flight=result.runs.in_flight_mean,
        utilisation=[min(tally.busy.get(i, 0.0) / decode, 1.0) for i in range(result.stages)],
        link_bytes=[tally.link_bytes.get(i, 0) / n for i in range(result.stages + 1)],
        memory_mb=result.memory_mb,
    )
