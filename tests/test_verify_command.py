"""`pipeinfer verify` measures codecs on a real model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def verify(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeinfer_cpp", "verify", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_each_codec_is_measured_against_what_the_last_bits_do(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time there was a little\n\nThe old king had three\n")
    done = verify("--wire", "f32,bf16,q8,q4", "--json", "-n", "40", "--prompt-file", str(prompts))
    assert done.returncode == 0, done.stderr
    results = {r["wire"]: r for r in json.loads(done.stdout)}
    assert list(results) == ["last bits", "f32", "bf16", "q8", "q4"]
    assert results["f32"]["kl_mean"] == results["f32"]["changed_per_1000"] == 0
    floor = results["last bits"]["kl_mean"]
    assert 0 < floor < 1e-2
    assert results["bf16"]["kl_mean"] < 4 * floor and results["q8"]["kl_mean"] < 8 * floor
    assert results["q4"]["kl_mean"] > results["q8"]["kl_mean"]
    assert all(r["positions"] == results["f32"]["positions"] > 40 for r in results.values())


def test_it_says_what_to_do(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time there was a little\n")
    done = verify("--wire", "q8", "-n", "8", "--prompt-file", str(prompts))
    assert done.returncode == 0 and "Use q8" in done.stdout


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--wire", "q5"], "--wire q5 is not one of"),
        (["--wire", "q8", "--stages", "1"], "one stage has no link"),
        (["--wire", "q8", "--stages", "99"], "layers"),
        (["--wire", "q8", "--target", "nowhere.gguf"], "nowhere.gguf"),
        (["--wire", "q8", "--pair", "dmo"], "demo"),
        (["--wire", "q8", "--prompt-file", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input(args: list[str], sentence: str) -> None:
    done = verify(*args)
    assert done.returncode == 2 and not done.stdout
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1
