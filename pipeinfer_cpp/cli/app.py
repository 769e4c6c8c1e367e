"""The commands of `pipeinfer`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

app = typer.Typer(
    name="pipeinfer",
    help="Big models in slices on several llama.cpp processes, sped up by asynchronous pipelined speculation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from pipeinfer_cpp.versions import llama_version, package_version

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
    from pipeinfer_cpp.cli import bench, chat, doctor, generate, models, simulate, slicing, stage, trace, tune, verify

    if not app.registered_commands:
        app.command("chat")(chat.chat)
        app.command("generate")(generate.generate)
        app.command("stage")(stage.stage)
        app.command("slice")(slicing.cut)
        app.add_typer(models.app, name="models")
        app.command("verify")(verify.verify)
        app.command("bench")(bench.bench)
        app.command("tune")(tune.tune)
        app.command("simulate")(simulate.simulate)
        app.command("trace")(trace.trace)
        app.command("doctor")(doctor.doctor)
    return typer.main.get_command(app)
