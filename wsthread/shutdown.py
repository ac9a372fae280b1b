"""Stopping a manager: refuse new connections, close those there are, wait for their ends, cut the rest.

Any thread may call anything here, again and again; the first beginning counts.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

from . import clock
from .connection import Connection
from .locks import taking
from .logs import tell_aside
from .wire.protocol import Close

_LAST_WAIT = 0.5  # Seconds for the threads of connections that had to be cut.


class Shutdown:
    """The end of one manager. Times are seconds on the clock.

    Attributes:
        close: what the connections are told; None as long as there is no shutdown. Written once.
    """

    def __init__(self) -> None:
        self.close: Close | None = None
        self._lock = threading.Lock()  # Guards the beginning, and the two below.
        self._since = 0.0
        self._to_close: deque[tuple[float, Connection]] = deque()  # When to close which, the next one first.

    def begin(self, close: Close, spread: float, connections: Callable[[], Iterable[Connection]]) -> float:
        """Start to close connections.

        Args:
            close: what they are told.
            spread: seconds over which their Closes are spread.
            connections: returns those there are. It is called when newer ones see :attr:`close`.

        Returns:
            When it began, perhaps some time ago.
        """
        with taking(self._lock):
            if self.close is not None:
                return self._since
            self._since = now = clock.now()
            self.close = close  # Whoever arrives from now on is told by tell(), so nobody is missed.
            chosen = list(connections())
            self._to_close.extend((now + spread * number / len(chosen), conn) for number, conn in enumerate(chosen))
        self.go_on(now)
        if chosen:
            tell_aside(
                logging.INFO, "shutdown: closing %d connections with %d over %g s", len(chosen), close.code, spread)
        return now

    def go_on(self, now: float) -> None:
        """Close those whose time has come."""
        while (conn := self._next_due(now)) is not None:
            self.tell(conn)

    def tell(self, conn: Connection) -> None:
        """Close one connection, if there is a shutdown."""
        if self.close is not None:
            conn.close(*self.close)

    def _next_due(self, now: float) -> Connection | None:
        with taking(self._lock):
            return self._to_close.popleft()[1] if self._to_close and self._to_close[0][0] <= now else None


def wait_ended(wait: Callable[[float], bool], others: Callable[[], Iterable[Connection]], timeout: float) -> bool:
    """Wait for the ends of connections; cut those for which there is no time.

    Args:
        wait: ``wait(seconds)`` waits until all have ended and tells whether they have.
        others: returns those that have not ended, but for the one in whose thread this is called.
        timeout: seconds.
    """
    if wait(timeout):
        return True
    for conn in others():
        conn.terminate("no time is left for the closing handshake")
    return wait(_LAST_WAIT)
