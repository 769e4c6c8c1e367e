"""models.toml: the bundled one, the user's own, --models, and what is said of malformed ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_helpers import pipeinfer

from pipeinfer_cpp.errors import UserError
from pipeinfer_cpp.gguf import Source, check_pair
from pipeinfer_cpp.models import ModelFile, bundled_toml, load_registry, user_toml


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own models.toml."""
    folder = tmp_path / "config" / "pipeinfer"
    folder.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder.parent))
    return folder


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------ the bundled file


def test_bundled_pairs() -> None:
    pairs = load_registry().pairs
    assert {"demo", "demo-weak", "demo-plain", "qwen3-8b", "llama-3.1-8b", "dolphin-70b"} <= set(pairs)
    for name, pair in pairs.items():
        assert pair.name == name and pair.description, name
        for model in (pair.target, pair.draft):
            if model is not None:
                sane(model)
        assert pair.supported or len(pair.reason) > 20, name
        assert pair.target != pair.draft, name


def sane(model: ModelFile) -> None:
    assert model.size is not None and re.fullmatch(r"[\d.]+ [MG]B", model.size), model
    if model.path is not None:
        assert model.local() == model.path and model.path.suffix == ".gguf", model
        return
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", str(model.repo)), model
    assert str(model.file).endswith(".gguf"), model
    assert len(set(model.names)) == model.parts, model


@pytest.mark.parametrize("name", [name for name, pair in load_registry().pairs.items() if pair.draft is not None])
def test_bundled_models_fit_each_other(name: str) -> None:
    """Only headers are read, of those pairs whose files are here."""
    pair = load_registry().pair(name)
    target, draft = (model.local() for model in pair.files)
    if target is None or draft is None:
        pytest.skip("not on this machine")
    check_pair(Source.open(target), Source.open(draft))


def test_a_pair_that_cannot_be_run(tmp_path: Path) -> None:
    text = '[pair.odd]\ntarget = { path = "x.gguf" }\nsupported = false\nreason = "it is too odd for this version."\n'
    with pytest.raises(UserError, match="The pair odd cannot be run: it is too odd"):
        load_registry(write(tmp_path / "odd.toml", text)).pair("odd")


@pytest.mark.parametrize(
    ("typed", "meant"), [("quen3-8b", "qwen3-8b"), ("dmo", "demo"), ("llama-8b", "llama-3.1-8b"), ("Demo", "demo")]
)
def test_unknown_name_suggests(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"There is no pair named '{typed}'\. Did you mean .*\b{re.escape(meant)}\b"):
        load_registry().pair(typed)


def test_unknown_name_like_nothing() -> None:
    with pytest.raises(UserError, match=r"There is no pair named 'zzz'\. `pipeinfer models list` shows all\."):
        load_registry().pair("zzz")


# ------------------------------------------------------------------------------- further files, in order

MINE = """
[pair.mine]
target = { path = "here.gguf" }
draft = { path = "/there/d.gguf" }
chat_template = "{{ messages }}"
[pair.mine.speculation]
cutoff = 0.3
branches = 2
"""


def test_the_users_own_file_adds_and_overrides(config: Path) -> None:
    write(config / "models.toml", MINE + '[pair.demo]\ndescription = "changed"\n')
    registry = load_registry()
    mine, demo = registry.pair("mine"), registry.pair("demo")
    assert user_toml() == config / "models.toml"
    assert mine.target.path == config / "here.gguf" and mine.target.local() is None
    assert mine.draft is not None and mine.draft.path == Path("/there/d.gguf")
    assert mine.chat_template == "{{ messages }}"
    assert (mine.speculation.cutoff, mine.speculation.branches, mine.speculation.mode) == (0.3, 2, None)
    assert demo.description == "changed" and demo.target.local() is not None and demo.draft is not None


def test_later_files_override_field_by_field(config: Path, tmp_path: Path) -> None:
    write(config / "models.toml", MINE)
    extra = write(tmp_path / "x.toml", '[pair.mine]\ndraft = { path = "d.gguf" }\nspeculation = { cutoff = 0.5 }\n')
    mine = load_registry(extra).pair("mine")
    assert mine.target.path == config / "here.gguf"
    assert mine.draft is not None and mine.draft.path == tmp_path / "d.gguf"
    assert (mine.speculation.cutoff, mine.speculation.branches) == (0.5, 2)
    assert mine.chat_template == "{{ messages }}"


def test_a_relative_models_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.toml", '[pair.a]\ntarget = { path = "sub/t.gguf" }\n')
    monkeypatch.chdir(tmp_path)
    assert load_registry(Path("x.toml")).pair("a").target.path == tmp_path / "sub/t.gguf"


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME")
    (tmp_path / ".config" / "pipeinfer").mkdir(parents=True)
    write(tmp_path / ".config" / "pipeinfer" / "models.toml", '[pair.a]\ntarget = { path = "~/t.gguf" }\n')
    assert load_registry().pair("a").target.path == tmp_path / "t.gguf"


def test_a_pair_can_be_said_to_be_supported(tmp_path: Path) -> None:
    extra = write(tmp_path / "x.toml", "[pair.falcon-180b]\nsupported = true\n")
    assert load_registry(extra).pair("falcon-180b").supported


def test_the_command_takes_both_files(tmp_path: Path) -> None:
    target = load_registry().pair("demo").target.path
    extra = write(tmp_path / "x.toml", f'[pair.extra]\ntarget = {{ path = "{target}" }}\n')
    shown = pipeinfer("models", "list", "--models", extra)
    assert shown.code == 0 and "extra" in shown.out and "qwen3-8b" in shown.out
    inspected = pipeinfer("models", "inspect", "extra", "--models", extra)
    assert inspected.code == 0 and "llama" in inspected.out


# --------------------------------------------------------------------------------------------- malformed

PART = '[pair.p]\ntarget = {{ repo = "a/b", file = "{}", parts = {} }}\n'
MALFORMED = {
    "not toml": ("[pair.p\n", "not valid TOML", "line 1"),
    "a repeated key": ("[pair.p]\nsupported = true\nsupported = true\n", "not valid TOML", "line 3"),
    "another table": ('[pairs.p]\ntarget = { path = "t" }\n', "pairs"),
    "a pair that is none": ("[pair]\np = 3\n", "pair 'p'", "int"),
    "all pairs that are none": ("pair = 3\n", "pair", "int"),
    "an unknown key": ('[pair.p]\ntarget = { path = "t" }\ndarft = { path = "d" }\n', "pair 'p'", "darft"),
    "an unknown key of a file": ('[pair.p]\ntarget = { pth = "t" }\n', "pair 'p'", "pth", "target"),
    "a number for a text": ("[pair.p]\ntarget = { path = 3 }\n", "pair 'p'", "target.path", "int"),
    "a text for a file": ('[pair.p]\ntarget = "t.gguf"\n', "pair 'p'", "target"),
    "no target": ('[pair.p]\ndraft = { path = "d" }\n', "pair 'p'", "target"),
    "a file of nothing": ("[pair.p]\ntarget = {}\n", "pair 'p'", "target", "either path, or repo and file"),
    "an empty path": ('[pair.p]\ntarget = { path = "" }\n', "pair 'p'", "target", "path"),
    "both places": ('[pair.p]\ntarget = { path = "t", repo = "a/b", file = "c" }\n', "pair 'p'", "target", "either"),
    "a repo without file": ('[pair.p]\ntarget = { repo = "a/b" }\n', "pair 'p'", "target", "either"),
    "a repo that is none": ('[pair.p]\ntarget = { repo = "b c", file = "f" }\n', "pair 'p'", "target", "OWNER/REPO"),
    "a repo with a web address": (
        '[pair.p]\ntarget = { repo = "https://huggingface.co/a/b", file = "f" }\n',
        "pair 'p'",
        "target",
        "OWNER/REPO",
    ),
    "a file outside": ('[pair.p]\ntarget = { repo = "a/b", file = "../f.gguf" }\n', "pair 'p'", "target", "../f.gguf"),
    "parts and another name": (PART.format("m.gguf", 2), "pair 'p'", "target", "-00001-of-00002.gguf"),
    "parts and another number": (PART.format("m-00001-of-00003.gguf", 2), "pair 'p'", "-00001-of-00002.gguf"),
    "no parts": (PART.format("m.gguf", 0), "pair 'p'", "target", "parts"),
    "an unknown setting": ('[pair.p]\ntarget = { path = "t" }\nspeculation = { cutof = 1 }\n', "'p'", "cutof"),
    "a setting out of range": (
        '[pair.p]\ntarget = { path = "t" }\nspeculation = { cutoff = 1.5 }\n',
        "'p'",
        "cutoff",
        "1.0",
    ),
    "a mode that is none": (
        '[pair.p]\ntarget = { path = "t" }\nspeculation = { mode = "fast" }\n',
        "'p'",
        "mode",
        "fast",
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed(tmp_path: Path, kind: str) -> None:
    text, *words = MALFORMED[kind]
    path = write(tmp_path / "bad.toml", text)
    with pytest.raises(UserError) as caught:
        load_registry(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and said.endswith(".") and "\n" not in said
    assert all(word in said for word in words), said


def test_malformed_bytes(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bad\.toml is not valid TOML"):
        load_registry(tmp_path / "bad.toml")


def test_the_users_own_file_is_named(config: Path) -> None:
    write(config / "models.toml", "[pair.p]\nsize = 3\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(config / 'models.toml'))}.*`size`"):
        load_registry()


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml does not exist: models takes the path of a models\.toml\."):
        load_registry(tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot be read"):
        load_registry(tmp_path)


def test_the_command_ends_with_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.toml", '[pair.p]\ntarget = { path = "t" }\nx = 1\n')
    for args in (("models", "list"), ("models", "pull", "p"), ("generate", "--prompt", "a", "--pair", "p")):
        result = pipeinfer(*args, "--models", path)
        assert result.code == 2 and result.err.count("\n") == 1, result.err
        assert "bad.toml" in result.err and "`x`" in result.err


def test_bundled_file_is_the_checkouts() -> None:
    assert bundled_toml().name == "models.toml" and bundled_toml().is_file()
