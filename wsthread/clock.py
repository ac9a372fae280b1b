"""The time: seconds on the monotonic clock, which tests may move forward.

Everybody asks ``clock.now()``. As long as no test has moved it, that is :func:`time.monotonic` itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: ``now()`` returns the time in seconds. Any thread may call it.
now: Callable[[], float] = time.monotonic

_moved = 0.0  # Seconds, of all calls of advance(). Only the thread of a test writes it.


def advance(seconds: float) -> None:
    """Let the clock go forward. Whoever asks afterwards believes that so many seconds have passed."""
    global now, _moved
    _moved = total = _moved + seconds
    now = lambda: time.monotonic() + total  # noqa: E731  # A new function, because callers may hold the old one.
