"""Every argument of the Python API, with values of every kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from pipeline_helpers import DRAFT, GREEDY, PROMPT, TARGET, local

from pipeinfer_cpp import Options, PipeInferError, Pipeline, Sampling, UserError
from pipeinfer_cpp.cli import run
from pipeinfer_cpp.engine import Settings
from pipeinfer_cpp.errors import naming_options

ODD: list[Any] = [
    None, "", "x\0", "x\ud800", -1, 0, 2**70, float("nan"), float("inf"), np.float32(0.5), np.int64(3), np.array([1.5]),
    [], [None], {}, {"a": 1}, b"x", object(), True, 1j,
]  # fmt: skip


@pytest.fixture(scope="module")
def p() -> Iterator[Pipeline]:
    with local(stages=1) as pipeline:
        yield pipeline


def refused_by_name(name: str, error: BaseException) -> bool:
    """By an error that is meant for the user, and names the argument, as Python has it."""
    return isinstance(error, TypeError | ValueError | UserError) and name in str(error) and "--" not in str(error)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Options)])
def test_options(name: str) -> None:
    needs_more = {"pair": "target", "target": "pair", "emulate": "preset"}
    for value in ODD:
        try:
            Options(**{name: value}).check()
        except Exception as error:
            words = (name, needs_more.get(name, name))
            assert any(refused_by_name(word, error) for word in words), (value, repr(error))


@pytest.mark.parametrize("name", Sampling.__struct_fields__)
def test_sampling(p: Pipeline, name: str) -> None:
    for value in ODD:
        try:
            p.generate(PROMPT, max_tokens=1, sampling={"temp": 0.5, name: value}).wait()
        except Exception as error:
            words = (name, "JSON schema", "schema", "regular expression", "grammar", "Lark")
            assert any(refused_by_name(word, error) for word in words), (value, repr(error))
    assert p.generate(PROMPT, max_tokens=2, sampling=GREEDY).wait().n_generated == 2


@pytest.mark.parametrize("name", ["prompt", "max_tokens", "sampling", "stop", "goes_on"])
def test_generate(p: Pipeline, name: str) -> None:
    for value in ODD:
        try:
            p.generate(**{"prompt": PROMPT, "max_tokens": 1, name: value}).wait()
        except Exception as error:
            assert refused_by_name(name, error), (value, repr(error))
    assert p.generate(PROMPT, max_tokens=2, sampling=GREEDY).wait().n_generated == 2


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_configure(p: Pipeline, name: str) -> None:
    before = p.settings
    for value in ODD:
        try:
            p.configure(**{name: value})
            p.configure(**{name: getattr(before, name)})
        except Exception as error:
            assert refused_by_name("technique" if name == "ablate" else name, error) or refused_by_name(name, error), (
                value,
                repr(error),
            )
        assert p.settings == before
    assert p.generate(PROMPT, max_tokens=2, sampling=GREEDY).wait().n_generated == 2


def test_a_pipeline_of_something_else() -> None:
    with pytest.raises(TypeError, match="options"):
        Pipeline("demo")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="warp"):
        Pipeline.local(target=TARGET, draft=DRAFT, warp=9)


def test_errors_name_arguments_here_and_options_on_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^ctx must be at least 16"):
        Options(ctx=3).check()
    with pytest.raises(UserError, match=r"^exact needs branches=1:"):
        Options(exact=True, branches=2).check()
    error = PipeInferError("Use --branches 1 or `pipeinfer stage --listen A`, or --force.")
    assert str(error) == "Use branches=1 or `pipeinfer stage --listen A`, or --force."
    with naming_options():
        assert str(error) == error.args[0]
    assert run(["generate", "x", "--ctx-size", "3"]) == 2
    assert "Error: --ctx-size must be at least 16" in capfd.readouterr().err
    assert msgspec.structs.asdict(Sampling())["seed"] == -1
