"""Models by their name on Hugging Face: which file is meant, what is said where none is, fetched, listed, removed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import COMMAND, ENV
from hub import Hub
from pipeline_helpers import DRAFT, TARGET

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.models import hub as names
from pipeinfer_cpp.models.hub import is_hub_name

FILES = {
    "README.md": 1,
    "mmproj-F16.gguf": 1,
    "mtp-Big-Q4_K_M.gguf": 1,
    "imatrix.gguf": 1,
    "Big-Q8_0.gguf": 8_000_000_000,
    "Big-Q4_K_M.gguf": 4_000_000_000,
    "Big-UD-Q2_K_XL.gguf": 2,
    "BF16/Big-BF16-00001-of-00002.gguf": 9_000_000_000,
    "BF16/Big-BF16-00002-of-00002.gguf": 7_000_000_000,
}


@pytest.mark.parametrize(
    ("which", "file", "parts", "size"),
    [
        (None, "Big-Q4_K_M.gguf", 1, "4.0 GB"),
        ("Q8_0", "Big-Q8_0.gguf", 1, "8.0 GB"),
        ("q8_0", "Big-Q8_0.gguf", 1, "8.0 GB"),
        ("bf16", "BF16/Big-BF16-00001-of-00002.gguf", 2, "16.0 GB"),
        ("UD-Q2_K_XL", "Big-UD-Q2_K_XL.gguf", 1, "0 kB"),
        ("Q2_K_XL", "Big-UD-Q2_K_XL.gguf", 1, "0 kB"),
        ("Big-Q8_0.gguf", "Big-Q8_0.gguf", 1, "8.0 GB"),
        ("BF16/Big-BF16-00001-of-00002.gguf", "BF16/Big-BF16-00001-of-00002.gguf", 2, "16.0 GB"),
    ],
)
def test_which_file_is_meant(which: str | None, file: str, parts: int, size: str) -> None:
    model = names._choose("maker/big", which, FILES)
    assert (model.repo, model.file, model.parts, model.size) == ("maker/big", file, parts, size)
    assert len(model.names) == parts and set(model.names) <= set(FILES)


def test_without_a_quantisation() -> None:
    assert names._choose("m/b", None, dict.fromkeys(["b-F16.gguf", "a-Q8_0.gguf"], 1)).file == "a-Q8_0.gguf"
    assert names._choose("m/b", None, dict.fromkeys(["b-F16.gguf", "a-Q2_K.gguf"], 1)).file == "a-Q2_K.gguf"


@pytest.mark.parametrize(
    ("which", "files", "said"),
    [
        ("Q3_K", FILES, r"has no model Q3_K: it has BF16, Q4_K_M, Q8_0, Q2_K_XL\."),
        ("K_M", FILES, "has no model K_M"),
        (None, {"mmproj-F16.gguf": 1, "x.bin": 2}, "holds no GGUF model"),
        ("Q8_0", {"a/x-Q8_0.gguf": 1, "b/x-Q8_0.gguf": 1}, r"several models Q8_0: .* a/x-Q8_0.gguf, b/x-Q8_0.gguf"),
        ("Q8_0", {"x-Q8_0-00001-of-00002.gguf": 1}, r"lacks x-Q8_0-00002-of-00002\.gguf"),
        ("Q9", {"a/x-Q8_0.gguf": 1, "b/x-Q8_0.gguf": 1}, r"it has a/x-Q8_0.gguf, b/x-Q8_0.gguf\."),
    ],
)
def test_what_is_said_where_none_is_meant(which: str | None, files: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        names._choose("maker/big", which, files)


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("Qwen/Qwen3-0.6B-GGUF", True),
        ("Qwen/Qwen3-0.6B-GGUF:Q8_0", True),
        ("ggml-org/gpt-oss-20b-GGUF:sub/x.gguf", True),
        ("models/x.gguf", False),
        ("./models/x", False),
        ("../models/x", False),
        ("/models/x", False),
        ("x.gguf", False),
        ("demo", False),
        ("a/b/c", False),
        ("C:/x", False),
    ],
)
def test_what_is_such_a_name(text: str, is_name: bool) -> None:
    assert is_hub_name(text) == is_name


def test_a_file_of_that_path_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maker").mkdir()
    (tmp_path / "maker" / "model").write_bytes(b"")
    assert not is_hub_name("maker/model") and is_hub_name("maker/other")


# --------------------------------------------------------------------------------------- as a process


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    big = [random.Random(i).randbytes(9000) for i in (1, 2)]
    hub = Hub(
        {
            "maker/demo-GGUF/demo-Q8_0.gguf": TARGET.read_bytes(),
            "maker/demo-GGUF/mmproj-demo-Q8_0.gguf": b"no",
            "maker/little-GGUF/little-Q4_K_M.gguf": DRAFT.read_bytes(),
            "maker/parts/x/p-Q6_K-00001-of-00002.gguf": big[0],
            "maker/parts/x/p-Q6_K-00002-of-00002.gguf": big[1],
        }
    )
    yield hub
    hub.stop()


@pytest.fixture
def pipeinfer(hub: Hub, tmp_path: Path):  # type: ignore[no-untyped-def]
    """The command with a home of its own; only the cache of slices and tests is shared."""

    def run(*args: object, code: int = 0, **env: str) -> tuple[str, str]:
        done = subprocess.run(
            [*COMMAND, *map(str, args)],
            env=ENV | hub.environment(tmp_path / "hf") | {"XDG_CONFIG_HOME": str(tmp_path)} | env,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    return run


def test_pull_list_and_rm(pipeinfer, hub: Hub, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out, _ = pipeinfer("models", "pull", "maker/demo-GGUF")
    path = Path(out.strip())
    assert path.name == "demo-Q8_0.gguf" and path.read_bytes() == TARGET.read_bytes()
    hub.requests.clear()
    assert pipeinfer("models", "pull", "maker/demo-GGUF:q8_0")[0] == out and not hub.requests  # here already
    parts = json.loads(pipeinfer("models", "pull", "maker/parts:Q6_K", "--json")[0])["files"]
    assert parts[0].endswith("x/p-Q6_K-00001-of-00002.gguf")

    listed = json.loads(pipeinfer("models", "list", "--json")[0])
    found = {model["name"]: model for model in listed["models"]}
    assert set(found) == {"maker/demo-GGUF:Q8_0", "maker/parts:Q6_K"} and listed["memory"]["total"] > 0
    assert found["maker/demo-GGUF:Q8_0"]["size"] == TARGET.stat().st_size and found["maker/demo-GGUF:Q8_0"]["fits"]
    assert (found["maker/parts:Q6_K"]["parts"], found["maker/parts:Q6_K"]["size"]) == (2, 18000)
    table = pipeinfer("models", "list", COLUMNS="200")[0]
    assert "maker/demo-GGUF:Q8_0" in table and "mmproj" not in table

    assert pipeinfer("models", "rm", "maker/demo-GGUF:Q8_0")[0] == "Freed 45 MB.\n"
    assert not path.exists() and not [p for p in (tmp_path / "hf").rglob("*") if p.is_file() and p.stat().st_size > 1e6]
    assert json.loads(pipeinfer("models", "rm", "maker/parts", "--json")[0]) == {"freed": 18000, "kept": {}}
    _, said = pipeinfer("models", "rm", "maker/parts", code=2)
    assert said == "Error: maker/parts is not on this machine: `pipeinfer models list` shows what is.\n"


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("maker/none", 2, "Hugging Face has no maker/none"),
        ("maker/demo-GGUF:Q5_0", 2, "maker/demo-GGUF has no model Q5_0: it has Q8_0."),
    ],
)
def test_names_that_fit_nothing(pipeinfer, name: str, code: int, said: str) -> None:  # type: ignore[no-untyped-def]
    for args in (("models", "pull", name), ("generate", "--prompt", "x", "--target", name)):
        out, err = pipeinfer(*args, code=code)
        assert out == "" and err.startswith(f"Error: {said}") and err.count("\n") == 1


def test_generate_fetches_and_the_hint_names_a_draft(pipeinfer, hub: Hub) -> None:  # type: ignore[no-untyped-def]
    args = ["generate", "--prompt", "Once", "-n", 24, "--raw", "--stages", 1, "--temp", 0, "--no-exact"]
    pipeinfer("models", "pull", "maker/little-GGUF")
    hub.requests.clear()
    out, err = pipeinfer(*args, "--target", "maker/demo-GGUF")
    assert "Fetching maker/demo-GGUF/demo-Q8_0.gguf (45 MB) from Hugging Face." in err and len(hub.gets) == 1
    assert "is on this machine and has the same vocabulary: use it as the draft with --draft " in err and out
    hub.requests.clear()
    again, err = pipeinfer(*args, "--target", "maker/demo-GGUF", "--draft", "maker/little-GGUF:Q4_K_M")
    assert not hub.requests and again == out and "vocabulary" not in err and "acceptance" in err


def test_a_stage_finds_what_it_fetched_of_the_coordinators_file(  # type: ignore[no-untyped-def]
    pipeinfer, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from pipeinfer_cpp.gguf import Source
    from pipeinfer_cpp.net.messages import ModelRef
    from pipeinfer_cpp.workers.resolve import find_model

    own = Path(pipeinfer("models", "pull", "maker/demo-GGUF")[0].strip())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    there = "/home/other/.cache/huggingface/hub/models--maker--demo-GGUF/snapshots/0abc/demo-Q8_0.gguf"
    model = ModelRef(there, Source.open(TARGET).sha256())
    assert find_model(model, None, None, lambda *_: None) == own
    assert names.counterpart("/home/other/models/demo-Q8_0.gguf") is None
    assert names.counterpart(there.replace("demo-Q8_0", "other")) is None


def test_a_draft_that_another_pair_needs_stays(pipeinfer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    draft = 'draft = { repo = "maker/little-GGUF", file = "little-Q4_K_M.gguf" }\n'
    toml = f'[pair.a]\ntarget = {{ repo = "maker/demo-GGUF", file = "demo-Q8_0.gguf" }}\n{draft}'
    toml += f'[pair.b]\ntarget = {{ path = "{TARGET}" }}\n{draft}[pair.own]\ntarget = {{ path = "{TARGET}" }}\n'
    (tmp_path / "m.toml").write_text(toml)
    given = ("--models", tmp_path / "m.toml")
    pipeinfer("models", "pull", "a", *given)
    out, _ = pipeinfer("models", "rm", "a", *given)
    assert out.splitlines() == ["maker/little-GGUF/little-Q4_K_M.gguf stays: b needs it.", "Freed 45 MB."]
    _, said = pipeinfer("models", "rm", "own", *given, code=2)
    assert "delete them yourself" in said and TARGET.exists()


# --------------------------------------------------------------------------------------------- slices


def test_prune(pipeinfer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from pipeinfer_cpp.gguf import Source, cached_slice

    cache = tmp_path / "cache"
    gone, kept = tmp_path / "gone.gguf", tmp_path / "kept.gguf"
    shutil.copy(DRAFT, gone)
    kept.write_bytes(DRAFT.read_bytes() + b"\0" * 32)
    slices = [cached_slice(Source.open(p), 0, 2, cache_dir=cache / "slices") for p in (gone, kept)]
    old = cached_slice(Source.open(kept), 2, 4, cache_dir=cache / "slices")
    for path in (old, old.with_suffix(".json")):
        os.utime(path, (1e9, 1e9))
    gone.unlink()
    env = {"PIPEINFER_CACHE": str(cache)}

    told = json.loads(pipeinfer("models", "prune", "--dry-run", "--json", **env)[0])
    why = {Path(one["path"]): one["goes"] for one in told["slices"]}
    assert why[slices[0]] == "its model is gone" and why[slices[1]] is None and why[old].startswith("not used for ")
    assert all(path.exists() for path in (*slices, old))
    table, _ = pipeinfer("models", "prune", **env)
    assert "its model is gone" in table and "Freed " in table.splitlines()[-1]
    assert not slices[0].exists() and not old.exists() and slices[1].exists()
    assert not slices[0].with_suffix(".json").exists()
    pipeinfer("models", "prune", "--all", **env)
    assert not list((cache / "slices").glob("*.gguf"))
    assert pipeinfer("models", "prune", **env)[0] == "Freed 0 kB; 0 kB of slices remain.\n"


def test_using_a_slice_makes_it_young(tmp_path: Path) -> None:
    from pipeinfer_cpp.gguf import Source, cached_slice

    source = Source.open(DRAFT)
    path = cached_slice(source, 0, 2, cache_dir=tmp_path)
    record = path.with_suffix(".json")
    os.utime(record, (1e9, 1e9))
    assert cached_slice(source, 0, 2, cache_dir=tmp_path) == path and record.stat().st_mtime > 1.6e9
