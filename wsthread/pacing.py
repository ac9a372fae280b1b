"""Turns for peers that send small or well compressed messages faster than they can be handled.

Such a peer keeps the thread of its connection busy without a pause. Python passes its lock on every 5 ms, so beside
eight of them everybody else waits 40 ms each time: other connections, pages, broadcasts. So these threads take turns,
in the whole process: each waits until those before it are likely to be done, and for as long again, which is the time
that the others get. One such peer alone is not slowed down, nor is anybody whose messages do not pile up, or are large
on the wire.

A turn costs the processor time of its thread, but no more than the library may have spent on what came. So what the
application computes does not count, and it may use as many processors as it likes.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

# Seconds that the library spends at most on a frame, and on a byte that was inflated, its reply included.
_PER_FRAME = 2e-5
_PER_INFLATED_BYTE = 8e-9
_LONG = 0.01  # Seconds of such work, after which a turn may end although more has come.
_LEAST = 0.001  # Seconds of a turn that was too short to wait for the next one.
LONGEST = 0.5  # Seconds that anybody waits.
_SHARE = 2.0  # All turns together get one part of the time in so many.

# When those who have a turn are likely to be done, and the thread that has the last one. Threads may overwrite each
# other's values, which does no harm.
_free_at = 0.0
_last = 0


class Counts(Protocol):
    """What one connection has got so far."""

    @property
    def frames(self) -> int:
        """How many frames."""

    @property
    def inflated(self) -> int:
        """How many bytes by inflating."""


class Turn:
    """The turn of one thread: what it handles of what came.

    Args:
        counts: of its connection.
    """

    __slots__ = ("_counts", "_limit_before", "_cpu_before")

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._limit_before = _cost_limit(counts)
        self._cpu_before = time.thread_time()

    @property
    def is_over(self) -> bool:
        """Whether others have their turn now, although more has come."""
        return _cost_limit(self._counts) - self._limit_before > _LONG and self.cost() > _LEAST

    def cost(self) -> float:
        """Return how many seconds it took; the thread whose turn it is calls it."""
        return min(time.thread_time() - self._cpu_before, _cost_limit(self._counts) - self._limit_before)


def _cost_limit(counts: Counts) -> float:
    """Return how many seconds the library has spent at most on all that a connection got."""
    return counts.frames * _PER_FRAME + counts.inflated * _PER_INFLATED_BYTE


def wait_for_turn(cost: float, limit: float) -> None:
    """Wait until it is the calling thread's turn.

    Args:
        cost: seconds that it is likely to take, which is what the last one took.
        limit: seconds to wait at most.
    """
    global _free_at, _last
    if cost < _LEAST:
        return
    now, own = time.monotonic(), threading.get_ident()
    begin = now if _last == own else max(now, _free_at)  # When the last turn was its own too, nobody else wants one.
    _last = own
    _free_at = min(begin + cost * _SHARE, now + LONGEST)
    if begin > now:
        time.sleep(max(0.0, min(begin - now, limit)))
