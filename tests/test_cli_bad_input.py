"""Bad input: exit code 2, one line on stderr (behind the memory that is needed, where it came so far), nothing on
stdout, nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_helpers import ENV, Ended, pipeinfer
from pipeline_helpers import DRAFT, TARGET, answers, free_port, hand_stages, until
from tiny_models import MODELS, Tiny, build

from pipeinfer_cpp.cluster.plan import outline
from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.llama.library import lib
from pipeinfer_cpp.options import Options
from pipeinfer_cpp.system.versions import installing

GENERATE = ["generate", "--prompt", "Hi", "--max-tokens", "2"]
PAIR = '[pair.x]\ntarget = { path = "none.gguf" }\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are wrong in some way; every command runs here."""
    path = tmp_path_factory.mktemp("bad")
    build(path / "tiny.gguf", MODELS["llama-tied"])
    build(path / "kimi.gguf", Tiny("kimi-k3"))
    build(path / "mamba.gguf", Tiny("mamba"))
    content = TARGET.read_bytes()
    (path / "half.gguf").write_bytes(content[: len(content) // 2])
    (path / "empty.gguf").write_bytes(b"")
    (path / "text.gguf").write_text("This is no model.")
    os.mkfifo(path / "pipe.gguf")  # nobody writes to it: whoever opened it would wait for ever
    (path / "long.txt").write_text("a word " * 1000)
    (path / "latin.txt").write_bytes("élan".encode("latin-1"))
    (path / "syntax.toml").write_text("[pair.x\n")
    (path / "key.toml").write_text(PAIR + "tarrget = 1\n")
    (path / "none.toml").write_text(PAIR)
    (path / "range.toml").write_text(PAIR + "[pair.x.speculation]\nbranches = 99\n")
    (path / "mode.toml").write_text(PAIR + '[pair.x.speculation]\nmode = "fast"\n')
    return path


def check(result: Ended, *words: str) -> None:
    assert (result.code, result.out) == (2, ""), result.err
    needed, error, end = result.err.rpartition("Error: ")
    assert error and end.count("\n") == 1 and end.endswith("\n"), result.err
    told = ("Memory needed on ", "Note: No small model ")
    assert all(line.startswith(told) for line in needed.splitlines()), result.err
    assert all(word in result.err for word in words), result.err
    assert not result.left


# (options of generate, words of the line)
GENERATING: list[tuple[str, str]] = [
    # models
    ("--target nowhere.gguf", "no file nowhere.gguf"),
    ("--target half.gguf", "truncated"),
    ("--target empty.gguf", "not a GGUF"),
    ("--target text.gguf", "not a GGUF"),
    ("--target kimi.gguf", "cannot be cut at all"),
    ("--target mamba.gguf", "mamba"),
    (f"--target {TARGET} --draft tiny.gguf", "vocabulary"),
    (f"--target {TARGET} --draft nowhere.gguf", "no file nowhere.gguf"),
    ("--target pipe.gguf", "is a pipe"),
    (f"--target {TARGET} --draft pipe.gguf", "is a pipe"),
    (f"--pair demo --target {TARGET}", "not both"),
    ("--pair nothing", "no pair named 'nothing'"),
    ("--pair falcon-180b", "is not on this machine"),
    ("--models nowhere.toml", "nowhere.toml does not exist"),
    ("--models syntax.toml", "not valid TOML"),
    ("--models key.toml", "unknown field `tarrget`"),
    ("--models range.toml --pair x", "$.branches"),
    ("--models mode.toml --pair x", "'fast'"),
    ("--models none.toml --pair x", "none.gguf, does not exist"),
    # stages
    ("--stages 13", "12 layers"),
    ("--stages many", "neither a number"),
    ("--stages tcp://127.0.0.1:1,tcp://127.0.0.1:1", "twice"),
    ("--stages tcp://nowhere", "not an address"),
    ("--layers 0-5,5-11", "overlap"),
    ("--layers 0-5,7-11", "gap"),
    ("--layers 0-5,6-12", "last layer is 11"),
    ("--split 0.5,half", "not a list of numbers"),
    ("--split 0.5,0.5 --stages 3", "3 stages"),
    # the others
    ("--ctx-size 100000", "trained for"),
    ("--kv-type q9", "--kv-type"),
    ("--kv-type q8_0 --no-flash-attn", "--flash-attn"),
    ("--mode fast", "--mode"),
    ("--pair demo-plain --mode async", "draft model"),
    ("--exact --branches 2", "--branches 1"),
    ("--temp hot", "--temp"),
    ("--top-p 2", "--top-p"),
    ("--logit-bias 5", "--logit-bias"),
    ("--logit-bias 9000+1", "8192"),
    ("--grammar root", "invalid grammar"),
    ("--grammar-file nowhere", "cannot be read"),
    ("--json-schema {", "invalid JSON schema"),
    ("--max-tokens 0", "at least 1"),
    ("--trace nowhere/trace.json", "cannot be written"),
    ("--nothing", "--nothing"),
    ("--max-token 3", "Did you mean --max-tokens?"),
    ("--temperature 1", "Did you mean --temp?"),
    ("--max-tokens -2", "or -1"),
    ("word", "one prompt"),
]


OTHERS: list[tuple[str, str]] = [
    ("generate", "one prompt"),
    ("generate --prompt-file nowhere", "cannot be read"),
    ("generate --prompt-file latin.txt", "UTF-8"),
    ("generate --prompt-file long.txt", "and the context 1024"),
    ("generate -", "empty"),
    ("chat --target kimi.gguf", "cannot be cut at all"),
    ("stage", "--listen"),
    ("stage --listen nowhere", "not an address"),
    ("stage --listen tcp://abc@127.0.0.1:7711", "is not a key"),
    ("chat --target pipe.gguf", "is a pipe"),
    ("verify --wire q8 --target pipe.gguf", "is a pipe"),
    ("bench --target pipe.gguf", "is a pipe"),
    ("stage --listen tcp://127.0.0.1:7711 --target pipe.gguf", "is a pipe"),
    ("slice pipe.gguf --stages 2", "is a pipe"),
    ("models inspect pipe.gguf", "is a pipe"),
    ("slice tiny.gguf", "one of --layers"),
    ("slice tiny.gguf --stages 5", "4 layers"),
    ("slice tiny.gguf --stages 2 -o nowhere", "not a folder"),
    ("slice kimi.gguf --stages 2", "cannot be cut at all"),
    ("models inspect nothing", "no pair named"),
    ("models inspect tiny.gguf --ctx-size 99", "--stages N"),
    ("models inspect tiny.gguf --stages 40", "4 layers"),
    ("models list --models syntax.toml", "not valid TOML"),
    ("sing", "'sing'"),
    ("generatte", "Did you mean 'generate'? See"),
]


CASES = [*((f"generate --prompt Hi {options}", words) for options, words in GENERATING), *OTHERS]


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[dict[str, Future[Ended]]]:
    """All the cases' commands, a few at a time: each is mostly start-up."""
    with ThreadPoolExecutor(3) as pool:
        yield {line: pool.submit(pipeinfer, *line.split(), cwd=folder) for line, _ in CASES}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line for line, _ in CASES])
def test_bad_input(running: dict[str, Future[Ended]], line: str, words: str) -> None:
    check(running[line].result(), words)


def test_what_an_extra_brings_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command that installs it into the environment that this one runs in, wherever that came from."""
    missing = "import sys; sys.modules.update(uvicorn=None, matplotlib=None)"
    (tmp_path / "sitecustomize.py").write_text(missing)
    monkeypatch.setitem(ENV, "PYTHONPATH", f"{tmp_path}{os.pathsep}{ENV['PYTHONPATH']}")
    install = f"run {sys.executable} -m pip install "
    assert installing("x") == f"{sys.executable} -m pip install x"
    monkeypatch.setattr("pipeinfer_cpp.system.versions.find_spec", lambda _name: None)
    assert installing("x") == f"uv pip install --python {sys.executable} x"
    for command, name in ((["serve"], "uvicorn"), (["bench", "--plot", "p.png"], "matplotlib")):
        ended = pipeinfer(*command, cwd=tmp_path)
        said = " ".join(ended.err.split())
        assert ended.code == 2 and install in said and name in said.partition(install)[2], ended.err


def test_layers_for_a_gpu_that_llama_cpp_was_not_built_for(folder: Path) -> None:
    if lib.llama_supports_gpu_offload():
        pytest.skip("llama.cpp has a GPU backend here")
    check(pipeinfer(*GENERATE, "--gpu-layers", "3", cwd=folder), "built without a GPU backend here")
    with pytest.raises(UserError, match="built without a GPU backend here"):  # before anything is cut or started
        outline(Options(pair="demo", gpu_layers=3))


def test_a_failed_command_leaves_no_trace_file(folder: Path) -> None:
    check(pipeinfer(*GENERATE, "--grammar", "x", "--trace", "trace.json", cwd=folder), "invalid grammar")
    assert not (folder / "trace.json").exists()


def test_text_that_is_not_utf_8(folder: Path) -> None:
    check(pipeinfer("generate", "--prompt", "\udcff", cwd=folder), "UTF-8")
    check(pipeinfer("generate", "-", given=b"\xff", cwd=folder), "UTF-8")


def test_a_port_in_use(folder: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
        check(pipeinfer("stage", "--listen", address), address, "in use")
        check(pipeinfer(*GENERATE, "--stages", address), address, "does not answer")


def test_a_stage_that_holds_another_model(folder: Path) -> None:
    with hand_stages(folder, 1, own=folder / "tiny.gguf") as (stage,):
        options = ["--target", TARGET, "--draft", DRAFT, "--stages", stage.address]
        check(pipeinfer(*GENERATE, *options), stage.address, "another model")


def test_a_stage_of_another_version() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    code = "import sys, pipeinfer_cpp.system.versions as v; v.package_version = lambda: '0.0.1'; "
    code += f"from pipeinfer_cpp.cli import run; sys.exit(run(['stage', '--listen', '{address}']))"
    stage = subprocess.Popen([sys.executable, "-c", code], env=ENV, stdout=subprocess.DEVNULL)
    try:
        until(lambda: answers(address, 0.2), 20)
        check(pipeinfer(*GENERATE, "--stages", address), address, "0.0.1")
    finally:
        stage.kill()
        stage.wait()
