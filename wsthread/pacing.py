"""Turns of peers that send small messages faster than they can be handled.

Such a peer keeps the thread of its connection busy without a pause. Python passes its lock on every 5 ms, so beside
eight of them everybody else waits 40 ms each time: other connections, pages, broadcasts. So these threads take turns,
in the whole process: each waits until those before it are likely to be done, and for as long again, which is the time
that the others get. One such peer alone is not slowed down, nor is anybody whose messages do not pile up, or are large.

What a turn cost is the processor time of the thread, and no more than ``DEAREST`` for each frame: an application that
computes for long may do so on as many processors as it likes.
"""

from __future__ import annotations

import threading
import time

DEAREST = 2e-5  # Seconds.
LONGEST = 0.5  # Seconds that anybody waits.
_SHARE = 2.0  # One part in so many of the time is for all of them.

# When those who have a turn are likely to be done, and the thread that has the last one. Threads may overwrite each
# other's; that is no harm.
_free_at = 0.0
_last = 0


class Turn:
    """The turn of one thread: what it handles between two reads.

    Args:
        frames: how many its connection has got so far, and so at the end.
    """

    __slots__ = ("_frames", "_spent")

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._spent = time.thread_time()

    def cost(self, frames: int) -> float:
        """Return how many seconds it took; the thread whose turn it is calls it."""
        return min(time.thread_time() - self._spent, (frames - self._frames) * DEAREST)


def wait_for_turn(cost: float, limit: float) -> None:
    """Wait until it is the calling thread's turn.

    Args:
        cost: seconds that it is likely to take, which is what the last one took.
        limit: seconds to wait at most.
    """
    global _free_at, _last
    now, own = time.monotonic(), threading.get_ident()
    begin = now if _last == own else max(now, _free_at)  # When the last turn was its own too, nobody else wants one.
    _last = own
    _free_at = min(begin + cost * _SHARE, now + LONGEST)
    if begin > now:
        time.sleep(max(0.0, min(begin - now, limit)))
