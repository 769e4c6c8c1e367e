"""From a point of the grid to a pipeline's options and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeinfer_cpp.chat.conversation import Conversation
from pipeinfer_cpp.chat.template import ChatTemplate
from pipeinfer_cpp.emulation import load_cluster
from pipeinfer_cpp.lab.suites import Suite
from pipeinfer_cpp.lab.sweep import Cell, parse_link
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.pipeline import Pipeline

ALIASES = {"weak": "demo-weak"}


def options_of(base: Options, cell: Cell) -> Options:
    """What was asked for, changed by the cell. Raises UserError."""
    options = base
    values = dict(cell.values)
    n = int(values["stages"]) if "stages" in values else None
    name = values.get("cluster") or (options.emulate.name if options.emulate is not None else None)
    if name is not None:
        same = options.emulate is not None and "cluster" not in values and n in (None, options.emulate.n_stages)
        cluster = options.emulate if same else load_cluster(name, n)
        options = replace(options, emulate=cluster, stages=cluster.n_stages)  # type: ignore[union-attr]
    elif n is not None:
        options = replace(options, stages=n, split=None, layers=None)
    if "link" in values:
        link = parse_link(values["link"])
        if options.emulate is not None:
            options = replace(options, emulate=options.emulate.with_link(link))
        else:
            options = replace(options, links=(link,) * (options.n_stages + 1))
    if "draft" in values:
        options = replace(options, draft=_draft(values["draft"], options.models))
    if "wire" in values:
        options = replace(options, wire=values["wire"])
    if "branches" in values:
        options = replace(options, branches=int(values["branches"]))
    if "threads" in values:
        options = replace(options, threads=int(values["threads"]))
    options.check()
    return options


def _draft(text: str, models: str | Path | None) -> Path:
    """A file, or the draft of a pair."""
    if text.endswith(".gguf"):
        return Path(text)
    from pipeinfer_cpp.models import load_registry

    return load_registry(Path(models) if models else None).pair(ALIASES.get(text, text)).path("draft")


def tokens_of(pipeline: Pipeline, suite: Suite, n: int) -> list[list[int]]:
    """The first n prompts as tokens; questions in the model's chat template, where it has one,
    and as a chat would ask them: nothing in them counts as a control token."""
    plan, vocabulary = pipeline.plan, pipeline.vocabulary
    source = plan.target.chat_template or (plan.pair.chat_template if plan.pair else None)
    prompts: Sequence[str] = suite.prompts[:n]
    if suite.chat and source:
        template = ChatTemplate(source, bos=vocabulary.name(vocabulary.bos), eos=vocabulary.name(vocabulary.eos))
        n_ctx = pipeline.settings.n_ctx
        return [Conversation(template, vocabulary, n_ctx).ask(text, reserve=0).tokens for text in prompts]
    return [vocabulary.tokenize(text, begin=True) for text in prompts]
