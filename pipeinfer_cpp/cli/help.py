"""Help that fits a small terminal: the options of every day; `--help-all` has the rest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class ReaderLeft(Exception):
    """Whoever read our output has gone. Not a BrokenPipeError, of which typer makes an end of its own."""


class Group(TyperGroup):
    """The whole command. Its help names the commands in the groups of `PANELS`."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        try:
            return super().make_context(*args, **more)
        except BrokenPipeError:
            raise ReaderLeft from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderLeft from None

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
    """A command with more options than fit: `--help` shows those in `COMMON`, one line each."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help-all" in args[: args.index("--") if "--" in args else None]:
            super().format_help(ctx, ctx.make_formatter())
            ctx.exit()
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        width = _width()
        positional = [p for p in self.params if p.param_type_name == "argument"]
        places = "".join(f" {p.metavar or p.name}" for p in positional)
        lines = [f"Usage: {ctx.command_path}{places} [OPTIONS]", "", *_wrapped(self.help or "", width)]
        lines += [f"  {line}" for line in (self.epilog or "").splitlines()]
        rows = []
        for name in COMMON:
            for parameter in self.params:
                if parameter.name == name:
                    rows.append((_names(parameter), _brief(parameter)))
        lines += ["", *_rows(rows, 2 + max(len(name) for name, _ in rows))]
        typer.echo("\n".join([*lines, "All options: --help-all"]))


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
    "stop": "text at which the answer ends (repeatable)",
    "json_schema": "a JSON schema that the answer has to fit",
    "as_json": "one JSON object on stdout",
}
"""In this order."""


def _brief(parameter: Any) -> str:
    default = parameter.default if parameter.default is not None else "none"
    return COMMON[parameter.name].format(default=f"default: {default}")


def _names(parameter: Any) -> str:
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
