"""The processes that the parent of this one has started after it: after a reload, the workers that take over.

Linux tells; elsewhere there are none, as far as anybody knows.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def younger_siblings() -> set[int]:
    """Return the ids of those that run. Any thread may call it."""
    parent, own = os.getppid(), _began(os.getpid())
    try:
        children = (_PROC / f"{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return set()
    return {int(child) for child in children if _began(int(child)) > own}


def _began(process: int) -> int:
    """Return when a process began, in ticks since the system did; -1 when it has ended."""
    try:
        state, *fields = (_PROC / f"{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if state in "ZX" else int(fields[18])
