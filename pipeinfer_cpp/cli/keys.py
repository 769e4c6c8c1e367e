"""`pipeinfer keys`: who may use this machine's stages over a network."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeinfer_cpp.errors import UserError

keys = typer.Typer(help="This machine's key, and the keys that may use its stages.", no_args_is_help=True)


@keys.command()
def show() -> None:
    """Print this machine's public key, which others trust. It is made when missing."""
    from pipeinfer_cpp.net.keys import identity

    typer.echo(identity().text)


@keys.command()
def new(
    force: Annotated[
        bool, typer.Option("--force", help="Also where there is one: who trusts it must trust the new one.")
    ] = False,
) -> None:
    """Make a new key, and print the public one."""
    from pipeinfer_cpp.net.keys import identity
    from pipeinfer_cpp.system.files import config_dir

    if (config_dir() / "key").exists() and not force:
        raise UserError("There is a key already, and others may trust it: --force makes another one.")
    typer.echo(identity(new=True).text)


@keys.command()
def trust(
    key: Annotated[str, typer.Argument(help="What `pipeinfer keys show` prints on the other machine.")],
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
) -> None:
    """Let the owner of that key use this machine's stages, from now on."""
    from pipeinfer_cpp.net import keys as of

    of.trust(key, name)


@keys.command("list")
def list_() -> None:
    """Print the keys that are trusted, and their names."""
    from pipeinfer_cpp.net.keys import trusted

    for key, name in trusted().items():
        typer.echo(f"{key} {name}".rstrip())


@keys.command()
def forget(key: Annotated[str, typer.Argument(help="A key that is trusted.")]) -> None:
    """Trust it no longer. A session that is under way goes on."""
    from pipeinfer_cpp.net.keys import distrust

    if not distrust(key):
        raise UserError("That key is not trusted: `pipeinfer keys list` prints those that are.")
