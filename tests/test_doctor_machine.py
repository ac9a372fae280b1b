"""The limits of the system."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from wsthread.doctor.machine import judge_machine


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    process = tmp_path / "proc" / "7"
    process.mkdir(parents=True)
    (process / "limits").write_text(
        "Limit                     Soft Limit           Hard Limit           Units\n"
        "Max processes             96365                96365                processes\n"
        "Max open files            1024                 524288               files\n")
    (process / "cgroup").write_text("0::/system.slice/chat.service\n")
    return process.parent


def names(connections: int, pid: int | None, proc: Path) -> list[str]:
    return [one.name for one in judge_machine(connections, pid, proc=proc, cgroups=proc.parent / "cgroup")]


def test_descriptors(proc: Path) -> None:
    assert names(800, 7, proc) == []
    assert names(1000, 7, proc) == ["open-files"]
    (proc / "7" / "limits").write_text("Max open files            unlimited            unlimited            files\n")
    assert names(1000, 7, proc) == []
    (proc / "7" / "limits").write_text("")
    assert names(1000, 7, proc) == []
    with pytest.raises(OSError):
        names(1, 8, proc)


@pytest.mark.parametrize(("group", "limits", "found"), [
    ("0::/system.slice/chat.service\n", {"system.slice/chat.service/pids.max": "500\n"}, ["threads-limit"]),
    ("0::/system.slice/chat.service\n", {"system.slice/pids.max": "500\n", "system.slice/chat.service/pids.max": "max"},
     ["threads-limit"]),
    ("0::/system.slice/chat.service\n", {"system.slice/chat.service/memory.max": str(32 << 20)}, ["memory-limit"]),
    ("8:pids:/a\n4:memory:/a\n0::/\n", {"pids/a/pids.max": "500"}, ["threads-limit"]),
    ("8:cpu,memory:/a\n", {"cpu,memory/memory.limit_in_bytes": str(32 << 20)}, ["memory-limit"]),
    ("0::/a\n", {"pids.max": "max", "memory.max": "max"}, []),
    ("", {}, []),
])
def test_groups(proc: Path, group: str, limits: dict[str, str], found: list[str]) -> None:
    """Of both versions; those around a group count, and within a container it may not be visible."""
    (proc / "7" / "cgroup").write_text(group)
    for name, text in limits.items():
        path = proc.parent / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert names(800, 7, proc) == found


def test_this_process(proc: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert names(limit, None, proc) == ["open-files"]
    assert names(1, None, proc) == []
    assert isinstance(judge_machine(1, os.getpid()), list)
