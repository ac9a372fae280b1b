"""One thread per manager for what no connection's thread can do, since that one blocks in its read.

It writes what waits in an outbox as soon as the kernel takes more, and looks at the deadlines once per tick. It
never waits for a peer and never runs application code. It starts with the first connection.
"""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("wsthread")


class Housekeeper:
    """A thread that flushes sockets and checks deadlines. Any thread may call its methods.

    Args:
        check: called about every ``tick`` with the monotonic time.
        tick: seconds.
    """

    def __init__(self, check: Callable[[float], None], tick: float) -> None:
        self._check = check
        self._tick = tick
        self._lock = threading.Lock()  # Guards _selector's registrations and _started.
        self._started = False
        self._selector = selectors.DefaultSelector()

    def start(self) -> None:
        """Start the thread unless it runs.

        Raises:
            RuntimeError: the system starts no more threads.
        """
        with self._lock:
            if not self._started:
                threading.Thread(target=self._run, name="wsthread-housekeeper", daemon=True).start()
                self._started = True

    def watch(self, fd: int, flush: Callable[[], None]) -> None:
        """Call ``flush`` whenever the file descriptor takes bytes, until :meth:`unwatch`."""
        with self._lock:
            if fd not in self._selector.get_map():
                self._selector.register(fd, selectors.EVENT_WRITE, flush)

    def unwatch(self, fd: int) -> None:
        """Stop watching; call it before the file descriptor is closed."""
        with self._lock:
            if fd in self._selector.get_map():
                self._selector.unregister(fd)

    def _run(self) -> None:
        next_check = time.monotonic() + self._tick
        while True:
            events = self._selector.select(max(0.0, next_check - time.monotonic()))
            for key, _ in events:
                key.data()
            now = time.monotonic()
            if now >= next_check:
                next_check = now + self._tick
                try:
                    self._check(now)
                except Exception:  # The thread has to live on; the bug has to be seen.
                    logger.exception("error while checking deadlines")
