"""The demo pair on two stages: the same text with and without speculation, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator

from pipeinfer_cpp.health.finding import FAILED, OK, Finding

PROMPT = "Once upon a time there was a little fox who"


def self_check() -> Iterator[Finding]:
    """Some five seconds."""
    from pipeinfer_cpp.pipeline import Pipeline
    from pipeinfer_cpp.sampling import Sampling

    with Pipeline.local(pair="demo", stages=2) as pipeline:
        results = {}
        for mode in ("off", "async"):
            pipeline.configure(mode=mode)
            pipeline.forget()
            results[mode] = pipeline.generate(PROMPT, max_tokens=48, sampling=Sampling(temp=0)).wait()
        width, exact = pipeline.settings.max_rows, pipeline.exact
    speeds = ", ".join(f"{mode} {r.tokens_per_s or 0:.0f} tokens/s" for mode, r in results.items())
    if results["off"].token_ids == results["async"].token_ids:
        yield Finding("self-check", OK, f"2 stages of the demo pair write one text: {speeds}")
    else:
        advice = "Please report it, with the output of `pipeinfer doctor --json`."
        yield Finding("self-check", FAILED, f"speculation changed the text ({speeds})", advice)
    yield Finding("exact mode", OK, f"on, runs of up to {width} rows" if exact else "off by default here")
    left = [process for process in pipeline.processes if process.death() is None]
    if left:
        yield Finding("processes", FAILED, f"{len(left)} did not end", "End them by hand, and report it.")
    else:
        yield Finding("processes", OK, f"{len(pipeline.processes)} were started, none is left")
