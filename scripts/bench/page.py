"""docs/speed.md, from the figures that bench_speed.py measured."""

from __future__ import annotations

from typing import Any

HEAD = """# What was measured

Written by `python scripts/bench_speed.py --json speed.json --page docs/speed.md` (in several sittings if need be:
what the JSON holds is not measured again). Real llama.cpp processes and sockets, timed by the script's own clock,
modes interleaved prompt by prompt, the best draft length of `sync` from 1 to 8 chosen afterwards. In the
**stretched** parts each decode lasts at least the time given (a cancellation ends it early), so that the stages are
as slow as machines would be, on one that is not: time is added, nothing else is. `virtual` is the same engine in
virtual time with the same drafts replayed.

"""
STRETCHED = {
    "text": "text openings, good draft; 4 stages of 20 ms + 6 ms a further row, draft 2 ms",
    "chat": "chat questions, good draft; the same",
    "weak": "text openings, weak draft; the same",
    "free": "text openings, good draft; 4 stages of 20 ms however many rows",
}
OTHER = """
On uneven stages (20, 100, 100 and 100 ms, rows free, draft 10 ms) with a draft that is always right, `async` writes
**{uneven:.1f} tokens/s**; a plain pipeline of 320 ms a token would write 3.1.

Without any stretching, one stage against a bare llama.cpp loop of the same model on one thread, {bare:.2f} ms a
token: **{ratio:.2f}** of its tokens/s; what the orchestration adds to each run is **{cost:.2f} ms**. That is little
of a token of a real model.

## When it pays

* `async` gains most where rows cost and the way through the pipeline is long: there `sync` waits, and pays for rows
  that die.
* With rows that cost nothing, a well-tuned `sync` on four stages is nearly as fast: {free:.2f} is all that is
  between them.
* A weak draft does no harm, as its guesses ride in time that was free; the governor stops those that do not pay.
* On one machine whose cores are busy there is nothing to win. [lab.md](lab.md) tells how to ask about a cluster of
  your own.
"""


def page(figures: dict[str, dict[str, Any]]) -> str:
    """Needs the figures of all parts. Raises KeyError when one is missing."""
    rows = []
    for part, what in STRETCHED.items():
        f = figures[part]
        speeds = [f"{f[name]:.1f}" for name in ("off", "sync", "async")]
        speeds[1] += f" (k = {f['best_sync'].removeprefix('sync-')})"
        ratios = [f"{f[name]:.2f}" for name in ("async_over_off", "async_over_sync", "async_over_virtual")]
        checks = [f"{f[name]:.2f}" for name in ("sync_over_closed_form", "ttft_async_over_off")]
        rows.append([what, f"{f['acceptance']:.2f}", *speeds, *ratios, *checks])
    columns = ["", "acceptance", "off", "best sync", "async", "async / off", "async / sync", "of the virtual"]
    columns += ["sync, of its closed form", "first token, async / off"]
    lines = ["| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows]]
    hosts = sorted({f["host"] for f in figures.values()})
    own = figures["overhead"]
    text = OTHER.format(
        uneven=figures["uneven"]["tokens_per_s_of_async"],
        bare=own["bare_ms_a_token"],
        ratio=own["ratio"],
        cost=own["orchestration_ms"],
        free=figures["free"]["async_over_sync"],
    )
    return HEAD + f"On {' and '.join(hosts)}. Tokens/s:\n\n" + "\n".join(lines) + "\n" + text
