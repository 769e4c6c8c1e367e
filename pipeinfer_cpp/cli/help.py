"""Help that fits a small terminal: the options of every day; `--help-all` has the rest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class ReaderLeft(Exception):
    """Whoever read our output has gone. Not a BrokenPipeError, of which typer makes an end of its own."""


class Stopped(Exception):
    """Ctrl-C. As a KeyboardInterrupt typer would make it a code that a command may have chosen itself."""


class Group(TyperGroup):
    """The whole command. Its help names the commands in the groups of `PANELS`."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        try:
            return super().make_context(*args, **more)
        except BrokenPipeError:
            raise ReaderLeft from None
        except KeyboardInterrupt:
            raise Stopped from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderLeft from None
        except KeyboardInterrupt:
            raise Stopped from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        lines = [f"Usage: {ctx.command_path} COMMAND [OPTIONS]", ""]
        panels: dict[str, list[Any]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append(command)
        for title, commands in panels.items():
            rows = [(command.name, command.short_help or _sentence(command.help or "")) for command in commands]
            lines += [f"{title}:", *_rows(rows, 11)]
        lines += ["", *(self.epilog or "").splitlines()]
        typer.echo("\n".join(lines))


class Brief(TyperCommand):
    """`--help` is one line for each option, and only those of every day where more would not fit; `--help-all` is
    typer's own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help-all" in args[: args.index("--") if "--" in args else None]:
            super().format_help(ctx, ctx.make_formatter())
            ctx.exit()
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        width = _width()
        shown = [p for p in self.params if p.name != "help" and not getattr(p, "hidden", False)]
        places = "".join(f" {p.metavar or p.name}" for p in shown if p.param_type_name == "argument")
        lines = [f"Usage: {ctx.command_path}{places} [OPTIONS]", "", *_wrapped(self.help or "", width)]
        lines += [f"  {line}" for line in (self.epilog or "").splitlines()]
        texts = {**COMMON, **OF_COMMAND.get(str(self.name), {})}
        if len(lines) + len(shown) > _LINES:
            by_name = {p.name: p for p in shown}
            shown = [by_name[name] for name in OF_COMMAND.get(str(self.name), COMMON) if name in by_name]
        rows = [(_names(p), _brief(p, texts)) for p in shown]
        lines += ["", *_rows(rows, 2 + max(len(name) for name, _ in rows))]
        typer.echo("\n".join([*lines, "All options: --help-all"]))


_LINES = 22
"""Of a terminal's 24, without the last one and an empty one."""

COMMON = {
    "pair": "a pair of `pipeinfer models list` (default: demo)",
    "target": "or a GGUF or a name on Hugging Face",
    "draft": "its draft model, for speculation",
    "stages": "processes here, or addresses of stages (default: 2)",
    "ctx_size": "context, in tokens (default: what fits well)",
    "mode": "async, sync or off (default: async with a draft)",
    "system": "the system prompt",
    "prompt": "the prompt, also as an argument or on stdin",
    "prompt_file": "the prompt's file",
    "raw": "continue the text, without the model's chat template",
    "max_tokens": "tokens at most; -1: until the end ({default})",
    "temp": "temperature, 0 is greedy ({default})",
    "seed": "one seed gives one text (default: -1, random)",
    "chat_template": "another chat template: a file, or a name",
    "stop": "text at which the answer ends (repeatable)",
    "json_schema": "a JSON schema that the answer has to fit",
    "as_json": "one JSON object on stdout",
}
"""In this order."""


OF_COMMAND = {
    "bench": {
        "pair": COMMON["pair"],
        "target": COMMON["target"],
        "draft": COMMON["draft"],
        "stages": COMMON["stages"],
        "emulate": "slow down to the speed of a cluster: gigabit, wifi, ...",
        "modes": "arms: off,sync:4,async is the default; or ablation",
        "suite": "prompts: story, chat, translate or code",
        "prompt_file": "or prompts of your own, one a line",
        "prompts": "how many of them ({default})",
        "max_tokens": "tokens behind each ({default})",
        "rounds": "measurements of each prompt in each arm ({default})",
        "sweep": 'a grid: "stages=1,2,4 wire=f16,q8"',
        "output": "write a JSON file, and resume from it",
        "baseline": "compare with an earlier result; exit code 1 if slower",
        "plot": "draw the result",
        "profile": "write the measured speeds as a cluster.toml",
    },
    "tune": {
        "pair": COMMON["pair"],
        "stages": COMMON["stages"],
        "emulate": "slow down to the speed of a cluster: gigabit, wifi, ...",
        "suite": "prompts: story, chat, translate or code",
        "prompt_file": "or prompts of your own, one a line",
        "prompts": "half to search, half to judge ({default})",
        "max_tokens": "tokens behind each ({default})",
        "dry_run": "only say what was found",
    },
    "simulate": {
        "cluster": "a preset or a cluster.toml ({default})",
        "stages": "nodes (default: the cluster's)",
        "acceptance": "share of right drafts (default: 0.7)",
        "replay": "or a recording of `pipeinfer bench --record`",
        "tokens": "tokens to generate ({default})",
        "prompt": "tokens of the prompt ({default})",
        "layers": "of the model (default: 80 or more)",
        "draft_ms": "the draft's milliseconds a token",
        "wire": "f32, f16, bf16, q8 or q4 ({default})",
        "branches": "paths of the token tree ({default})",
        "ablate": "techniques switched off",
        "as_json": COMMON["as_json"],
    },
    "stage": {
        "listen": "tcp://HOST:PORT (required)",
        "insecure": "needed where other machines can reach it",
        "target": "its copy of the model, or its slice of it",
        "pair": "or the pair that has it",
        "threads": "default: what the coordinator says, else all cores",
    },
    "slice": {
        "layers": "the layers of each slice: 0-9,10-19",
        "stages": "or into how many even slices",
        "output": "a folder that gets the slices as well",
        "plan": "only show what becomes of each key and tensor",
    },
    "inspect": {
        "what": "a GGUF, a pair, or a name on Hugging Face",
        "stages": "also show how much memory N stages need here",
        "ctx_size": "with a context of N tokens; 0: the model's own",
    },
    "pull": {"name": "a pair, or a name on Hugging Face"},
    "rm": {"name": "a pair, or a name on Hugging Face"},
    "inflate": {"what": "a GGUF, or a pair's name for its target", "heads": "attention heads (default: as the width)"},
    "prune": {"days": "remove slices not used for N days ({default})", "dry_run": "only show what would be removed"},
    "verify": {
        "wire": "codecs: f16, bf16, q8, q4 (required)",
        "target": "or a GGUF",
        "stages": "stages, so N - 1 links ({default})",
        "prompt_file": "prompts of your own, one a line",
        "max_tokens": "tokens behind each prompt ({default})",
    },
    "trace": {"file": "what `pipeinfer generate --trace` wrote", "output": "picture or page ({default})"},
}


def _brief(parameter: Any, texts: dict[str, str]) -> str:
    default = parameter.default if parameter.default is not None else "none"
    text = texts.get(parameter.name)
    if text is None:
        full = (getattr(parameter, "help", None) or "").rstrip(".")
        text = full if full[1:2].isupper() else full[:1].lower() + full[1:]
    return text.format(default=f"default: {default}") if "{default}" in text else text


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name)
    short = [name for name in parameter.opts if not name.startswith("--")]
    long = [name for name in parameter.opts if name.startswith("--")]
    return ", ".join([*short[:1], *long[:1]])


def _width() -> int:
    return min(shutil.get_terminal_size((80, 24)).columns, 100)


def _rows(rows: Sequence[tuple[str, str]], left: int) -> list[str]:
    width = _width() - left - 2
    return [f"  {name:{left}}{text if len(text) <= width else text[: width - 1] + '…'}" for name, text in rows]


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(_sentence(text), width)


def _sentence(text: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(text.strip().partition("\n\n")[0].split())
