"""How many cores a process may count on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeinfer_cpp.system import machine


def put(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    put(tmp_path, a__cpu_DOT_max="250000 100000\n", a__b__cpu_DOT_max="max 100000\n")
    assert machine.cpu_quota("0::/a/b\n", tmp_path) == 2.5
    put(tmp_path, a__b__cpu_DOT_max="150000 100000\n")
    assert machine.cpu_quota("0::/a/b\n", tmp_path) == 1.5
    assert machine.cpu_quota("0::/elsewhere\n", tmp_path) is None


def test_inside_a_container_its_own_limit_is_at_the_root(tmp_path: Path) -> None:
    put(tmp_path, cpu_DOT_max="300000 100000\n")
    assert machine.cpu_quota("0::/docker/1234\n", tmp_path) == machine.cpu_quota("0::/\n", tmp_path) == 3.0


def test_the_older_kind_of_groups(tmp_path: Path) -> None:
    folder = "cpu,cpuacct__docker__"
    put(tmp_path, **{folder + "cpu_DOT_cfs_quota_us": "200000", folder + "cpu_DOT_cfs_period_us": "100000"})
    assert machine.cpu_quota("4:cpu,cpuacct:/docker\n3:cpuset:/docker\n", tmp_path) == 2.0
    put(tmp_path, **{folder + "cpu_DOT_cfs_quota_us": "-1"})
    assert machine.cpu_quota("4:cpu,cpuacct:/docker\n", tmp_path) is None


def test_cores_are_whole_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for quota, cores in ((None, 8), (2.5, 2), (0.3, 1), (64.0, 8)):
        monkeypatch.setattr(machine, "_quota", lambda quota=quota: quota)
        assert machine.cores() == cores
