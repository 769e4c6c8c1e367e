"""Is the text the target's own? Real pipelines against a bare llama.cpp loop, token for token.

    python scripts/verify_text.py                              # everything
    python scripts/verify_text.py --prompts 10 --max-tokens 24 # less
    python scripts/verify_text.py --part gaps --part chi       # some parts

Parts in exact mode, where every text must be the reference's: matrix (the prompts of
demo_models/prompts.jsonl), long (contexts beyond 512 tokens), turns (second chat turns behind what is
cached of the first), slow (stages that take 12 ms and more for a run, so that much is drafted, cancelled
and aborted). Greedy references are the bare loop's; sampled ones those of `off` with one stage, which are
compared with the bare loop's too. Other parts: gaps (without exact mode, and with 4 branches: where a
text parts from the reference, how near its two best tokens were), chi (chi-square tests of what is drawn).
Ends with 1 when anything is not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

from agreement import DEMO
from verify import chi, exact, gaps
from verify.bare import Bare
from verify.cases import PARTS, Case, anew, expect, long, plain, spread
from verify.report import Report, machine, versions

from pipeinfer_cpp.llama.vocabulary import Vocabulary
from pipeinfer_cpp.net.messages import Stretch
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling

TARGET = DEMO / "demo-target-q8_0.gguf"
DRAFTS = {"good": DEMO / "demo-draft-q8_0.gguf", "weak": DEMO / "demo-weak-draft-q8_0.gguf"}
MODES = ("async", "sync", "off")
SLOW: dict[str, Any] = {"stretch": Stretch(0.012, 0.001), "draft_stretch": Stretch(0.002)}
KINDS: dict[str, dict[str, Any]] = {
    "--no-exact": {"exact": False},
    "--no-exact, slow": {"exact": False, **SLOW},
    "--branches 4": {"branches": 4},
    "--branches 4, slow": {"branches": 4, **SLOW},
}
CTX = 1024
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:6.0f} s] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def opened(stages: int, draft: str | None, **options: Any) -> Iterator[Pipeline]:
    """A pipeline of the demo pair. One thread each, as the bare loop: f16 attention past 512 cells depends on that."""
    path = DRAFTS[draft] if draft else None
    with Pipeline.local(target=TARGET, draft=path, stages=stages, threads=1, ctx=CTX, **options) as pipeline:
        yield pipeline


def references(cases: list[Case], bare: Bare, report: Report) -> None:
    """What each case must give; see above."""
    expect(cases, bare.generate, bare.clear)
    same, n = anew(cases, bare)
    if n:
        report.notes.append(
            f"For comparison: of {n} second turns {same} are the same when the bare loop computes the first one's\n"
            "cells anew, in prompt chunks. That is not promised: those chunks are wider than the rows that wrote it.\n"
        )
    sampled = [c for c in cases if not c.sampling.greedy]
    if not sampled:
        return
    with opened(1, None, mode="off") as pipeline:
        exact.check(pipeline, ("bare loop", "none", "1"), "off", sampled, report)
        expect(sampled, lambda *a: exact.answer(pipeline, *a).token_ids, pipeline.forget)


def exact_parts(args: argparse.Namespace, vocabulary: Vocabulary, report: Report) -> tuple[str, str]:
    """Each pipeline is opened once and writes the cases of all parts in all modes.

    Returns the KV type, and the safe widths that the pipelines found.
    """
    widths = set()
    samplings = [Sampling(temp=0), Sampling(temp=0.8, seed=args.seed)]
    sizes = {"matrix": args.prompts, "long": args.long, "turns": args.turns}
    cases = {p: PARTS[p](vocabulary, sizes[p], args.max_tokens, samplings) for p in PARTS if p in args.part}
    slow = plain(vocabulary, args.slow, args.max_tokens, samplings) if "slow" in args.part else []
    with opened(1, None) as pipeline:
        kv_type = pipeline.kv_type
    bare = Bare(TARGET, kv_type=kv_type, n_ctx=CTX)
    references([*(c for part in cases.values() for c in part), *slow], bare, report)
    bare.close()
    say("references written")
    for stages in args.stages if cases else ():
        for draft in args.drafts:
            with opened(stages, draft) as pipeline:
                widths.add(pipeline.settings.max_rows)
                for part, mine in cases.items():
                    for mode in args.modes:
                        exact.check(pipeline, (part, draft, str(stages)), mode, mine, report)
            say(f"{stages} stages, {draft} draft: {len(report.differences)} differences so far")
    for draft in args.drafts if slow else ():
        with opened(3, draft, **SLOW) as pipeline:
            widths.add(pipeline.settings.max_rows)
            for mode in args.modes:
                exact.check(pipeline, ("slow", draft, "3"), mode, slow, report)
        say(f"slow stages, {draft} draft: {len(report.differences)} differences so far")
    return kv_type, ", ".join(map(str, sorted(widths)))


def gap_part(args: argparse.Namespace, vocabulary: Vocabulary) -> tuple[list[str], list[str]]:
    """A table's lines and what belongs below it, and what is not explained."""
    greedy = [Sampling(temp=0)]
    cases = [
        *plain(vocabulary, args.gap_prompts, args.max_tokens, greedy),
        *long(vocabulary, args.long, args.max_tokens, greedy),
    ]
    heads = ["setting", "stages", *args.modes]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    notes, failures = [""], []
    for flash_attn in (True, False):
        bare = Bare(TARGET, kv_type="f16", n_ctx=CTX, flash_attn=flash_attn, n_seq=1 + gaps.SIDES)
        expect(cases, bare.generate, bare.clear)
        for name, options in KINDS.items():
            slow = "stretch" in options
            mine = spread(cases, args.slow) if slow else cases
            label = name if flash_attn else f"{name}, no flash attention"
            for stages in [3] if slow else args.stages:
                cells = []
                with opened(stages, args.drafts[0], flash_attn=flash_attn, kv_type="f16", **options) as pipeline:
                    for mode in args.modes:
                        found = gaps.check(pipeline, mode, mine, bare, f"{label}, {stages} stages")
                        cells.append(found.cell())
                        failures += found.unexplained
                lines.append(f"| {label} | {stages} | " + " | ".join(cells) + " |")
                say(f"{label}, {stages} stages: {', '.join(cells)}")
        change, share = gaps.narrow(bare, cases, args.slow)
        how = "With" if flash_attn else "Without"
        notes.append(f"{how} flash attention the largest change is {change:.3f} (median of {args.slow} texts), and at")
        notes.append(f"{100 * share:.1f} % of all places the two best tokens are nearer than twice that.")
        bare.close()
    return lines + notes, failures


def chi_part(args: argparse.Namespace, vocabulary: Vocabulary) -> list[chi.Fit]:
    fits = []
    with opened(2, args.drafts[0], mode="async") as pipeline:
        bare = Bare(TARGET, kv_type=pipeline.kv_type, n_ctx=CTX)
        cases = plain(vocabulary, None, 4, [Sampling(temp=0.8, seed=args.seed)])
        for case in chi.open_ended(cases, bare, 4):
            fits += chi.sample(pipeline, bare, case, args.draws)
            say(f"{case.name}: p = {fits[-2].p:.4f}, {fits[-1].p:.4f}")
        bare.close()
    return fits


def arguments() -> argparse.Namespace:
    parts = [*PARTS, "slow", "gaps", "chi"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=parts, help="default: all")
    parser.add_argument("--prompts", type=int, help="of the matrix (default: all 60)")
    parser.add_argument("--gap-prompts", type=int, default=20, help="of the gaps")
    parser.add_argument("--long", type=int, default=6, help="long prompts")
    parser.add_argument("--turns", type=int, default=10, help="conversations of two turns")
    parser.add_argument("--slow", type=int, default=10, help="prompts on slow stages")
    parser.add_argument("--draws", type=int, default=500, help="generations for each chi-square test")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--stages", type=lambda s: [int(x) for x in s.split(",")], default=[1, 2, 3, 4])
    parser.add_argument("--drafts", type=lambda s: s.split(","), default=list(DRAFTS), help="good,weak")
    parser.add_argument("--modes", type=lambda s: s.split(","), default=list(MODES), help="async,sync,off")
    args = parser.parse_args()
    args.part = args.part or parts
    return args


def main() -> int:
    args = arguments()
    vocabulary = Vocabulary(TARGET)
    report, failures = Report(), []
    print(f"`{shlex.join(['scripts/verify_text.py', *sys.argv[1:]])}`\n\n{versions()}; {machine()}\n")
    print(
        f"{TARGET.name}; n_threads 1, flash attention on, n_batch = n_ubatch = 64 (so are prompt chunks), kv_unified,"
    )
    print(f"swa_full, context {CTX}; at most {args.max_tokens} tokens a text; greedy, and temperature 0.8 with seed")
    print(f"{args.seed}, top-k 40, top-p 0.95, min-p 0.05\n")
    if {*PARTS, "slow"} & set(args.part):
        kv_type, widths = exact_parts(args, vocabulary, report)
        print(f"Exact mode, {kv_type} KV, runs of at most {widths} rows: equal / all texts\n\n" + report.tables())
        failures += report.differences
    if "gaps" in args.part:
        lines, unexplained = gap_part(args, vocabulary)
        print("Not exact, f16 KV: equal / all texts; of the others, the one nearest to its bound: gap < 2 x change\n")
        print("\n".join(lines) + "\n")
        failures += unexplained
    if "chi" in args.part:
        fits = chi_part(args, vocabulary)
        print("Drawn tokens against the target's distribution, 2 stages, async\n\n" + chi.HEAD)
        print("\n".join(fit.row() for fit in fits) + "\n")
        failures += [f"{fit.name}: p = {fit.p:.5f}" for fit in fits if not fit.p > chi.LIMIT]
    print("\n".join(["Not as it must be:", *failures]) if failures else "All is as it must be.")
    print(f"\n{(time.monotonic() - BEGAN) / 60:.0f} minutes")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
