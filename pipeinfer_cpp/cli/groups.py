"""Options that several commands share, written once as dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any


def with_options(*groups: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a typer command of a function that takes one instance of each dataclass, then its own parameters.

    The command has the parameters of all of them; a field's annotation is typer's
    (`Annotated[type, typer.Option(...)]`).
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[len(groups) :]
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in own]
        for group in groups:
            parameters += _parameters(group)

        def command(**values: Any) -> None:
            made = []
            for group in groups:
                names = [field.name for field in dataclasses.fields(group)]
                made.append(group(**{name: values.pop(name) for name in names}))
            function(*made, **values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(group)
    ]
