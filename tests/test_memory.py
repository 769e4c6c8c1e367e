"""How much memory is free: the system's word, and the limits of control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeinfer_cpp.system.memory import Memory, memory

GB = 1 << 30


def files(folder: Path, **texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    files(tmp_path / "proc", meminfo=f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable:  {48 << 20} kB\n")
    return tmp_path / "proc"


def test_without_groups_it_is_what_the_system_says(proc: Path, tmp_path: Path) -> None:
    assert memory(proc, tmp_path / "none") == Memory(64 * GB, 48 * GB)


def test_a_limit_of_version_2_above_the_own_group(proc: Path, tmp_path: Path) -> None:
    files(proc / "self", cgroup="0::/jobs/mine\n")
    files(tmp_path / "groups/jobs/mine", memory__max="max\n")
    files(
        tmp_path / "groups/jobs",
        memory__max=f"{8 * GB}\n",
        memory__current=f"{6 * GB}\n",
        memory__stat=f"anon 5\ninactive_file {GB}\n",
    )
    assert memory(proc, tmp_path / "groups") == Memory(8 * GB, 3 * GB)


def test_a_limit_of_version_1_whose_path_is_the_hosts(proc: Path, tmp_path: Path) -> None:
    files(proc / "self", cgroup="5:cpu:/\n4:memory,hugetlb:/docker/abc\n")
    files(
        tmp_path / "groups/memory",
        memory__limit_in_bytes=f"{4 * GB}",
        memory__usage_in_bytes=f"{5 * GB}",
        memory__stat=f"total_inactive_file {2 * GB}",
    )
    assert memory(proc, tmp_path / "groups") == Memory(4 * GB, 1 * GB)


def test_no_limit_is_no_limit(proc: Path, tmp_path: Path) -> None:
    files(proc / "self", cgroup="4:memory:/\n")
    files(
        tmp_path / "groups/memory",
        memory__limit_in_bytes="9223372036854771712",
        memory__usage_in_bytes="5",
        memory__stat="",
    )
    assert memory(proc, tmp_path / "groups") == Memory(64 * GB, 48 * GB)


def test_this_machine() -> None:
    found = memory()
    assert found is not None and 0 < found.usable < found.free <= found.total


@pytest.mark.parametrize(("total", "free", "usable"), [(64, 48, 46), (4, 2, 1.75), (16, 0.1, 0)])
def test_some_is_left_to_others(total: float, free: float, usable: float) -> None:
    assert Memory(int(total * GB), int(free * GB)).usable == int(usable * GB)
