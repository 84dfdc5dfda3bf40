"""What a process may use: its container's share, whichever version of control groups says so."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from zpruner.runtime.machine import cores, free_memory

GB = 1 << 30
V1 = {"limit": "memory.limit_in_bytes", "used": "memory.usage_in_bytes", "cached": "total_inactive_file"}
V2 = {"limit": "memory.max", "used": "memory.current", "cached": "inactive_file"}
NONE = {1: str((1 << 63) - 4096), 2: "max"}


def machine(root: Path, groups: str, **folders: tuple[int, str, int, int]) -> Path:
    """Make the files of a machine with 10 GB free whose groups have (version, limit, bytes used, bytes cached)."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {10 * GB // 1024} kB\n")
    (root / "proc" / "self" / "cgroup").write_text(groups)
    for name, (version, limit, used, cached) in folders.items():
        names = V1 if version == 1 else V2
        folder = root.joinpath("sys", "fs", "cgroup", *(["memory"] if version == 1 else []), *name.split("__")[1:])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names["limit"]).write_text(f"{limit}\n")
        (folder / names["used"]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"cache 7\ninactive_file_x 9\n{names['cached']} {cached}\n")
    return root


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", ["/", "/docker/0a1b", "/../.."])
def test_memory_is_what_the_container_leaves(tmp_path: Path, version: int, path: str) -> None:
    """Cached files give way; a group that only the host can see is the root of what is mounted here."""
    groups = f"3:cpu,memory:{path}\n0::/elsewhere\n" if version == 1 else f"0::{path}\n"
    assert free_memory(machine(tmp_path, groups, x=(version, str(4 * GB), 3 * GB, GB))) == 2 * GB


@pytest.mark.parametrize("version", [1, 2])
def test_every_group_above_counts(tmp_path: Path, version: int) -> None:
    line = "5:memory:/a/b\n" if version == 1 else "0::/a/b\n"
    groups = {
        "x__a__b": (version, NONE[version], GB, 0),
        "x__a": (version, str(6 * GB), 3 * GB, 0),
        "x": (version, str(9 * GB), GB, 0),
        "x__other": (version, "1", 0, 0),
    }
    assert free_memory(machine(tmp_path, line, **groups)) == 3 * GB


def test_no_limit_is_the_machines(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path / "a", "")) == 10 * GB
    assert free_memory(machine(tmp_path / "b", "4:memory:/\n", x=(1, NONE[1], GB, 0))) == 10 * GB
    assert free_memory(machine(tmp_path / "c", "0::/\n", x=(2, "5", 2 * GB, 0))) == 0  # over it already
    assert free_memory(tmp_path / "no-proc") > 0


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_cores_are_those_of_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cores(tmp_path) == 8
    root = machine(tmp_path / "v2", "0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for text, expected in (("max 100000", 8), ("250000 100000", 3), ("1000 100000", 1)):
        (root / "sys/fs/cgroup/cpu.max").write_text(text)
        assert cores(root) == expected
    root = machine(tmp_path / "v1", "2:cpu,cpuacct:/\n")
    (root / "sys/fs/cgroup/cpu").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").write_text("50000")
    for text, expected in (("-1", 8), ("100000", 2)):
        (root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text(text)
        assert cores(root) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_elsewhere_cores_are_those_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert cores(tmp_path) == 5
