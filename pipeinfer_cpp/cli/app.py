"""The commands of `pipeinfer`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeinfer_cpp.cli.help import Brief, Group, ReaderLeft

__all__ = ["ReaderLeft", "app", "command"]

_DAILY, _MACHINES, _LAB = "Every day", "Several machines", "The lab"

app = typer.Typer(
    name="pipeinfer",
    cls=Group,
    help="Run big models in slices on several llama.cpp processes, sped up by asynchronous pipelined speculation.",
    epilog="`pipeinfer COMMAND --help` says more. --version prints the versions.\n"
    "--install-completion: Tab completes commands and options in your shell.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from pipeinfer_cpp.system.versions import llama_version, package_version

        typer.echo(f"pipeinfer {package_version()} (llama-cpp-python {llama_version()})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def command() -> Any:
    """The whole command as click has it."""
    from pipeinfer_cpp.cli import (
        bench,
        chat,
        doctor,
        generate,
        keys,
        models,
        serve,
        simulate,
        slicing,
        stage,
        top,
        trace,
        tune,
        verify,
    )

    if app.registered_commands:
        return typer.main.get_command(app)

    def add(name: str, function: Any, panel: str, short: str, **more: Any) -> None:
        app.command(name, short_help=short, rich_help_panel=panel, cls=Brief, **more)(function)

    examples = "pipeinfer chat --pair qwen3-8b\npipeinfer chat -m unsloth/Qwen3-4B-Instruct-2507-GGUF:Q4_K_M"
    add("chat", chat.chat, _DAILY, "Chat with a model", epilog=examples)
    examples = 'pipeinfer generate "Why is the sky blue?"\necho "Why is the sky blue?" | pipeinfer generate -n -1'
    short = "One answer to one prompt, for scripts and pipes"
    add("generate", generate.generate, _DAILY, short, epilog=examples)
    short = "List, inspect, fetch and remove models"
    app.add_typer(models.app, name="models", short_help=short, rich_help_panel=_DAILY)
    add("doctor", doctor.doctor, _DAILY, "Check what is installed and whether it works")
    examples = "pipeinfer serve --pair qwen3-8b --slots 4\ncurl http://127.0.0.1:8080/v1/models"
    add("serve", serve.serve, _DAILY, "Serve programs (OpenAI API) and browsers", epilog=examples)
    add("stage", stage.stage, _MACHINES, "Serve a part of a model's layers from this machine")
    short = "This machine's key, and whom it trusts"
    app.add_typer(keys.keys, name="keys", short_help=short, rich_help_panel=_MACHINES)
    examples = "pipeinfer top\npipeinfer top http://192.168.1.10:8080 --api-key KEY"
    add("top", top.top, _MACHINES, "Watch a running pipeline", epilog=examples)
    add("slice", slicing.cut, _MACHINES, "Cut a model ahead of its first start")
    add("bench", bench.bench, _LAB, "Compare modes side by side on this cluster")
    add("tune", tune.tune, _LAB, "Find the best settings for a pair on this cluster")
    add("simulate", simulate.simulate, _LAB, "Try a cluster in virtual time, before you buy it")
    add("verify", verify.verify, _LAB, "Show what rounding the hidden states changes")
    add("trace", trace.trace, _LAB, "Draw what generate --trace has written")
    return typer.main.get_command(app)
