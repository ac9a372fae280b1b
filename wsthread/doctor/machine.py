"""The limits of the system, for the process that serves or for this one: descriptors, threads, memory.

On Linux they are read from /proc and from the control group; elsewhere only that of descriptors is known.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from .findings import Finding, Hop, fault

#: What a worker keeps free for HTTP, and needs for itself.
_OTHERS = 128
#: Bytes that an idle connection takes, its thread included, with some room for the application's own.
_BYTES_EACH = 64 << 10
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def judge_machine(
    connections: int, pid: int | None = None, *, proc: Path = _PROC, cgroups: Path = _CGROUPS,
) -> list[Finding]:
    """Return which limits are too low for a number of connections per worker.

    Args:
        connections: how many one worker is to hold.
        pid: of a process of the server; None for the limits of this process, which may be others.
        proc: where /proc is.
        cgroups: where the control groups are.

    Raises:
        OSError: there is no such process, or it is somebody else's.
    """
    return [*_judge_descriptors(connections, pid, proc), *_judge_group(connections, pid, proc, cgroups)]


def _judge_descriptors(connections: int, pid: int | None, proc: Path) -> Iterator[Finding]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if pid is None else _limit_of(pid, "Max open files", proc)
    whose = "this shell" if pid is None else f"process {pid}"
    if limit is not None and limit != resource.RLIM_INFINITY and limit < connections + _OTHERS:
        yield fault(
            "open-files", Hop.MACHINE, f"The limit for open files of {whose} is {limit}, so a worker holds about "
            f"{max(limit - _OTHERS, 0)} WebSockets and not {connections}; more get 503.",
            f"systemd: LimitNOFILE={connections + 1024}; a shell: ulimit -n {connections + 1024}")


def _limit_of(pid: int, name: str, proc: Path) -> int | None:
    for line in (proc / str(pid) / "limits").read_text().splitlines():
        if line.startswith(name):
            soft = line[len(name):].split()[0]
            return int(soft) if soft.isdecimal() else None
    return None


def _judge_group(connections: int, pid: int | None, proc: Path, cgroups: Path) -> Iterator[Finding]:
    process = proc / ("self" if pid is None else str(pid))
    most = _lowest(process, cgroups, "pids", "pids.max", "pids.max")
    if most is not None and most < connections + _OTHERS:
        yield fault(
            "threads-limit", Hop.MACHINE, f"The control group may have {most} threads (pids.max), and each WebSocket "
            f"has one, so {connections} are too many; more get 503.",
            f"systemd: TasksMax={connections + 1024}; docker run --pids-limit {connections + 1024}; Kubernetes: the "
            "kubelet's podPidsLimit")
    size = _lowest(process, cgroups, "memory", "memory.max", "memory.limit_in_bytes")
    if size is not None and size < connections * _BYTES_EACH:
        yield fault(
            "memory-limit", Hop.MACHINE, f"The control group may have {size >> 20} MiB (memory.max); {connections} "
            f"idle WebSockets take up to {connections * _BYTES_EACH >> 20} MiB beside the application.",
            "Raise the limit of memory (systemd: MemoryMax, docker run --memory, Kubernetes: resources.limits.memory), "
            "or lower max_connections.")


def _lowest(process: Path, cgroups: Path, controller: str, name: str, old_name: str) -> int | None:
    """Return the lowest limit of the groups of a process and of those around them; None without one.

    Args:
        process: its directory in /proc.
        cgroups: where the control groups are.
        controller: such as ``pids``.
        name: of the file with the limit, in version 2.
        old_name: that of version 1, where each controller has a tree of its own.
    """
    found = []
    for line in (process / "cgroup").read_text().splitlines() if (process / "cgroup").exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        group = root / path.lstrip("/")
        for directory in [group, *group.parents]:  # Within a container the lower ones may not be there.
            text = _read(directory / (old_name if controllers else name))
            if text.isdecimal():
                found.append(int(text))
            if directory == root:
                break
    return min(found, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
