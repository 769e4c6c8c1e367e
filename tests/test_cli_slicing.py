"""`pipeinfer slice` and `pipeinfer models list | inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import pipeinfer
from pipeline_helpers import TARGET
from tiny_models import MODELS, Tiny, build

from pipeinfer_cpp.cli import run
from pipeinfer_cpp.gguf import Source
from pipeinfer_cpp.pipeline import Pipeline
from pipeinfer_cpp.system.memory import Memory


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "tiny.gguf", MODELS["qwen2"])


def said(capfd: pytest.CaptureFixture[str], *args: object) -> str:
    """What the command prints, run in this process."""
    capfd.readouterr()
    code = run([str(arg) for arg in args])
    out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize(
    ("options", "ranges"),
    [
        (["--stages", "2"], [(0, 2), (2, 4)]),
        (["--layers", "0-0,1-3"], [(0, 1), (1, 4)]),
        (["--split", "0.5,0.25,0.25"], [(0, 2), (2, 3), (3, 4)]),
    ],
)
def test_slices_are_models_of_their_own(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path, options: list[str], ranges: list[tuple[int, int]]
) -> None:
    paths = [tmp_path / f"tiny-layers-{first}-{end - 1}.gguf" for first, end in ranges]
    assert said(capfd, "slice", tiny, *options, "-o", tmp_path).split() == [str(path) for path in paths]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    layers = [Source.open(path).n_layers for path in paths]
    assert layers == [end - first for first, end in ranges]


def test_the_plan_names_every_tensor_and_writes_nothing(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    out = said(capfd, "slice", tiny, "--stages", "2", "--plan")
    assert all(name in out for name in Source.open(tiny).tensors)
    assert "tiny.gguf, layers 0-1" in out and "tiny.gguf, layers 2-3" in out and "blk.2.attn_q.weight → blk.0" in out
    assert not list(tmp_path.iterdir())


def test_inspect_tells_what_a_file_is(capfd: pytest.CaptureFixture[str], tiny: Path) -> None:
    rows = dict(line.strip("│ \n").split("│") for line in said(capfd, "models", "inspect", tiny).splitlines()[1:-1])
    found = {name.strip(): value.strip() for name, value in rows.items()}
    assert (found["architecture"], found["layers"], found["width"], found["context"]) == ("qwen2", "4", "64", "512")
    assert found["quantisation"].startswith("F16 ") and found["chat template"] == found["can be sliced"] == "yes"
    assert found["vocabulary"].startswith("269 tokens") and found["output head"] == "its own"


def test_inspect_tells_why_a_model_cannot_be_sliced(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = said(capfd, "models", "inspect", build(tmp_path / "talkie.gguf", Tiny("talkie")))
    assert "no: talkie.gguf cannot be cut at all" in " ".join(out.split())


def test_inspect_tells_of_a_pair_whether_it_fits(capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path) -> None:
    out = said(capfd, "models", "inspect", "demo")
    assert "target" in out and "draft" in out and "The vocabularies fit" in out
    models = tmp_path / "models.toml"
    models.write_text(
        f'[pair.odd]\ndescription = "Odd"\ntarget = {{ path = "{TARGET}" }}\ndraft = {{ path = "{tiny}" }}\n'
    )
    out = said(capfd, "models", "inspect", "odd", "--models", models)
    assert "Odd" in out and "These two models do not fit together: tiny.gguf" in out


def test_list_shows_all_pairs_and_what_is_here(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    models = tmp_path / "models.toml"
    models.write_text(
        '[pair.mine]\ndescription = "My own"\ntarget = { path = "none.gguf", size = "1 GB" }\n'
        '[pair.odd]\ntarget = { path = "x.gguf" }\nsupported = false\nreason = "too odd."\n'
    )
    lines = said(capfd, "models", "list", "--models", models).splitlines()
    row = {
        line.split("│")[1].strip(): [part.strip() for part in line.split("│")[2:-1]] for line in lines if "│" in line
    }
    assert row["demo"][1:] == ["45 MB", "5.9 MB", "yes", "yes"]
    assert row["mine"] == ["My own", "1 GB", "none", "no", "yes"]
    assert row["kimi-k2.6"][1:] == ["375 GB", "none", "no", "no"] and row["odd"][-2] == "no: too odd."


@pytest.mark.parametrize("command", ["", "generate", "chat", "stage", "slice", "models", "models inspect"])
def test_help(capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert f"Usage: pipeinfer {command}".strip() in said(capfd, *command.split(), "--help")


def test_version() -> None:
    result = pipeinfer("--version")
    assert result.code == 0 and result.out.startswith("pipeinfer 0.") and "llama-cpp-python 0." in result.out


def test_inspect_weighs_the_stages(capfd: pytest.CaptureFixture[str]) -> None:
    rows = {}
    for line in said(capfd, "models", "inspect", "demo", "--stages", "2", "--ctx-size", "512").splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if len(cells) > 2:
            rows[cells[0]] = cells[1:]
    assert set(rows) == {"stage 0", "stage 1", "draft", "together"} and rows["stage 1"][0] == "6-11"
    memory = json.loads(said(capfd, "models", "inspect", "demo", "--stages", "2", "--json"))["memory"]
    assert (memory["ctx"], memory["ctx_largest"], memory["fits"]) == (1024, 1024, True)
    assert memory["bytes_per_token"] == 12 * 2 * 256 * 34 / 32 + 4 * 2 * 128 * 2 and memory["free"] > 0
    for process in memory["processes"]:
        parts = ("weights", "kv", "compute", "checkpoints", "program")
        assert process["total"] == sum(process[part] for part in parts)


def test_inspect_says_that_a_model_does_not_fit(
    capfd: pytest.CaptureFixture[str], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeinfer_cpp.cluster.plan.memory", lambda: Memory(1 << 30, 300 << 20))
    monkeypatch.setenv("COLUMNS", "300")
    out = said(capfd, "models", "inspect", tiny, "--stages", "2")
    assert "It does not fit: tiny.gguf with a context of" in out and "of this machine" in out


def test_what_slice_has_cut_is_what_the_first_start_uses(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "cache"))
    kept = [Path(line) for line in said(capfd, "slice", tiny, "--stages", "2").split()]
    assert [path.parent for path in kept] == [tmp_path / "cache" / "slices"] * 2
    before = [path.stat() for path in kept]
    with Pipeline.local(target=tiny, stages=2) as p:
        assert p.generate("Hello", max_tokens=2).wait().n_generated
    assert [path.stat().st_ino for path in kept] == [stat.st_ino for stat in before]
    assert [path.stat().st_mtime_ns for path in kept] == [stat.st_mtime_ns for stat in before]
    assert len(list((tmp_path / "cache" / "slices").glob("*.gguf"))) == 2


def test_slices_go_to_another_disk_too(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = [Path(line) for line in said(capfd, "slice", tiny, "--stages", "2", "-o", tmp_path).split()]
    assert said(capfd, "slice", tiny, "--stages", "2", "-o", tmp_path).split() == [str(path) for path in linked]
    texts = [path.read_bytes() for path in linked]

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    copied = tmp_path / "other"
    copied.mkdir()
    paths = said(capfd, "slice", tiny, "--stages", "2", "-o", copied).split()
    assert [Path(path).read_bytes() for path in paths] == texts
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(path.name for path in linked), "other"])
