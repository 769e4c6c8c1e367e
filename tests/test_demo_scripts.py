"""The demo models' training scripts, as far as they go without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from pipeline_helpers import ROOT

SCRIPTS = ROOT / "scripts" / "demo_models"
COMMANDS = sorted(path.name for path in SCRIPTS.glob("*.py") if "__main__" in path.read_text())
WEAK = ROOT / "pipeinfer_cpp" / "models" / "demo" / "demo-weak-draft-q8_0.gguf"
BARE = (
    "import runpy, sys; sys.modules.update(torch=None, tokenizers=None); sys.argv = sys.argv[1:]; "
    "sys.path.insert(0, sys.argv[1]); del sys.argv[1]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    """With PyTorch and tokenizers hidden, should they be installed."""
    command = [sys.executable, "-c", BARE, str(SCRIPTS / script), str(SCRIPTS), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", COMMANDS)
def test_help_needs_nothing(script: str) -> None:
    shown = run(script, "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: ") and not shown.stderr
    assert f"`{script}" in (SCRIPTS / "README.md").read_text()


@pytest.mark.parametrize(
    "line",
    [
        "train.py tiny --data none --out none",
        "build_data.py --mirrors none --out none",
        "make_ref.py weak --q8 none --data none --out none",
        "heldout_loss.py --data none weak=none",
        "export_gguf.py weak --pt none --tokenizer none --out none",
    ],
)
def test_what_is_not_installed_is_named(line: str) -> None:
    ended = run(*line.split())
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Not installed: ") and ended.stderr.count("\n") == 1
    assert "pip install 'pipeinfer-cpp[demo-models]'" in ended.stderr


@pytest.mark.parametrize(
    "line", ["check_gguf.py none --ref none", "samples.py none", "make_prompts.py --data . --out x"]
)
def test_missing_files_are_named(line: str) -> None:
    ended = run(*line.split())
    assert ended.returncode == 2 and ended.stderr.startswith("Not found: ") and ended.stderr.count("\n") == 1


def test_export_gives_the_bundled_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file's own weights and tokens, byte for byte."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from presets import PRESETS

    reader = gguf.GGUFReader(WEAK)
    tensors = {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}
    (tmp_path / "weak.q8.000").write_bytes(b"".join(tensors[name] for name, _ in PRESETS["weak"].shapes()))
    tokens, kinds, merges = (
        reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges")
    )
    special = [{"content": token} for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = {"model": {"vocab": vocab, "merges": merges}, "added_tokens": special}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    written = tmp_path / "weak.gguf"
    args = ("--q8", tmp_path / "weak.q8", "--tokenizer", tmp_path / "tokenizer.json", "--out", written)
    ended = run("export_gguf.py", "weak", *args)
    assert ended.returncode == 0, ended.stderr
    assert written.read_bytes() == WEAK.read_bytes()


def test_prompts() -> None:
    prompts = [json.loads(line) for line in (SCRIPTS / "prompts.jsonl").read_text().splitlines()]
    assert [prompt["id"] for prompt in prompts] == list(range(60))
    assert [prompt["type"] for prompt in prompts].count("chat") == 30
