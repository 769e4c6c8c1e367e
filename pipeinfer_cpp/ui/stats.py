"""What `/stats` shows."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from pipeinfer_cpp.chat.conversation import Conversation
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.sampling import Sampling
from pipeinfer_cpp.ui.consoles import escaped, turns


def stats_table(pipeline: Pipeline, conversation: Conversation, sampling: Sampling) -> Table:
    """The last answer, the conversation, the processes."""
    table = Table.grid(padding=(0, 2))
    result, plan, settings = pipeline.last, pipeline.plan, pipeline.settings

    def row(name: str, value: object) -> None:
        table.add_row(Text(name, "bold"), Text(escaped(str(value))))

    if result is not None:
        row("last answer", result.line())
        draft = result.draft
        if draft.proposed:
            judged = f"{draft.accepted} accepted, {draft.rejected} rejected, {draft.wasted} wasted"
            row("drafts", f"{draft.proposed} proposed, {judged}")
            row("accepted by depth", " ".join(f"{share:.2f}" for share in draft.accept_by_depth[:8]) or "-")
            hit = "-" if draft.sibling_hit is None else f"{draft.sibling_hit:.2f}"
            row("second choice right", f"{hit} (when the first was wrong)")
        row("runs", f"{result.runs.rows} rows, {result.runs.in_flight_mean:.1f} in flight on average")
    row("context", f"{conversation.n_tokens} of {settings.n_ctx} tokens in {turns(conversation.n_turns)}")
    row("seed", f"{sampling.seed}" + (" (greedy: of no effect)" if sampling.greedy else ""))
    row("target", f"{plan.target.path.name}, {plan.target.n_layers} layers")
    row("draft", plan.draft.path.name if plan.draft else "none")
    shares = ", ".join(f"{first}-{end - 1}" for first, end in plan.ranges)
    counts = sorted(set(pipeline.threads))
    threads = f"{counts[0]} thread{'s' if counts[0] > 1 else ''} each"
    if len(counts) > 1:
        threads = f"{', '.join(map(str, pipeline.threads))} threads"
    row("stages", f"{len(plan.ranges)} (layers {shares}), {threads}, KV {pipeline.kv_type}")
    if result is not None and result.memory_mb:
        row("memory", ", ".join(f"{name} {mb:.0f} MB" for name, mb in result.memory_mb.items()))
    for warning in [*pipeline.warnings, *(result.warnings if result else [])]:
        row("note", warning)
    return table
