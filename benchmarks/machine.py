"""What /proc tells: what processes use, who else uses the CPUs, and what machine and versions a result holds for."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["wsthread", "gunicorn", "Flask", "Werkzeug", "flask-sock", "websockets", "aiohttp", "picows"]
TICKS = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """What some processes use together.

    Attributes:
        rss: resident memory in KiB.
        peak: the most that it was since :func:`forget_peak`, in KiB.
        virtual: virtual memory in KiB.
        threads: how many.
        descriptors: open file descriptors.
    """

    rss: int
    peak: int
    virtual: int
    threads: int
    descriptors: int


class Times(NamedTuple):
    """CPU time in seconds: of one CPU, or of some processes.

    Attributes:
        user: in user space.
        system: in the kernel, at the request of processes.
        stolen: by the hypervisor; only a CPU has it.
    """

    user: float
    system: float
    stolen: float = 0.0


def tree(root: int) -> list[int]:
    """Return the ids of a process and of its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [root]
    for pid in found:  # It grows meanwhile.
        found += children.get(pid, [])
    return found


def usage(pids: Iterable[int]) -> Usage:
    """Return what processes use together; those that are gone use nothing."""
    sums = [0] * len(Usage._fields)
    for pid in pids:
        try:
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
            one = [int(status[name].split()[0]) for name in ("VmRSS", "VmHWM", "VmSize", "Threads")]
            one.append(len(os.listdir(f"/proc/{pid}/fd")))
        except (OSError, KeyError):
            continue
        sums = [total + part for total, part in zip(sums, one)]
    return Usage(*sums)


def forget_peak(pids: Iterable[int]) -> None:
    """Let the peaks of resident memory begin anew with what it is now."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def process_times(pids: Iterable[int]) -> Times:
    """Return the CPU time that processes have used."""
    found = [fields for pid in pids if (fields := _stat(pid))]
    return Times(sum(int(one[11]) for one in found) / TICKS, sum(int(one[12]) for one in found) / TICKS)


def cpu_clock(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used, in seconds, finer than :func:`process_times`: nanoseconds."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # As clock_getcpuclockid(3) numbers them.


def cpu_times(cpu: int | None) -> Times:
    """Return the CPU time that was used on a CPU; None: on all of them together."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == ("cpu" if cpu is None else f"cpu{cpu}"):
            user, nice, system, _, _, _, _, stolen = map(int, values[:8])
            return Times((user + nice) / TICKS, system / TICKS, stolen / TICKS)
    raise LookupError(f"there is no CPU {cpu}")


def add_cpu_options(parser: argparse.ArgumentParser) -> None:
    """Add the two CPUs of a benchmark that has one for the server and another one for the load."""
    cpus = sorted(os.sched_getaffinity(0))
    for what, cpu in (("server", cpus[0]), ("load", cpus[1 % len(cpus)])):
        parser.add_argument(f"--{what}-cpu", type=int, default=cpu, help=f"where the {what} runs (%(default)s)")


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Run what is started meanwhile on one CPU only; None: wherever the system likes.

    It is this thread that is pinned and its children that inherit it, so nothing of them ever runs elsewhere.
    """
    before = os.sched_getaffinity(0)
    try:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        yield
    finally:
        os.sched_setaffinity(0, before)


class Watch:
    """Finds out how much of a CPU, or of all, others use: those processes that are none of ours, and the hypervisor.

    What the kernel does in soft interrupts, network traffic above all, is part of the processes' system time on some
    kernels and on others not. The user part is exact everywhere, so the system part is counted only as far as it
    exceeds what ours may have used.
    """

    def __init__(self, cpu: int | None, pids: list[int]) -> None:
        self._cpu = cpu
        self._pids = pids
        self._before = self._now()

    def foreign(self, seconds: float) -> float:
        """Return the others' share, 1 for a whole CPU, since the construction, which was so many seconds ago."""
        used, ours = (
            Times(*(now - before for now, before in zip(*pair))) for pair in zip(self._now(), self._before))
        foreign = max(0.0, used.user - ours.user) + max(0.0, used.system - ours.system) + used.stolen
        return foreign / seconds

    def _now(self) -> tuple[Times, Times]:
        return cpu_times(self._cpu), process_times(self._pids)


def raise_descriptor_limit() -> int:
    """Raise this process' limit of file descriptors, which its children inherit, and return it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def thread_limit() -> int:
    """Return about how many threads can be started: the system's limits, less what runs."""
    limits = [int(Path(f"/proc/sys/kernel/{name}").read_text()) for name in ("pid_max", "threads-max")]
    limits.append(int(Path("/proc/sys/vm/max_map_count").read_text()) // 2)  # A stack and its guard page each.
    own = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if own != resource.RLIM_INFINITY:
        limits.append(own)
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    return min(limits) - running


def describe() -> list[str]:
    """Return lines that tell what a result holds for."""
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine())
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024 / 1024
    now = datetime.datetime.now(datetime.timezone.utc)
    load = os.getloadavg()[0]
    return [
        f"{now:%Y-%m-%d %H:%M} UTC; {os.cpu_count()} CPUs ({cpu}), {memory:.0f} GiB, Linux {platform.release()}, "
        f"load average {load:.1f} before",
        f"{platform.python_implementation()} {platform.python_version()}, "
        + ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))) + _commit(),
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """Return the last commit of the package, and whether it was changed since."""
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments, "--", "wsthread"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    if not shutil.which("git") or not (last := git("log", "-1", "--format=%h")):
        return ""
    return f" (wsthread at {last}{' and changes' if git('status', '--porcelain') else ''})"


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat from the state on; None when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
