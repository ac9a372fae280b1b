"""What a manager counts, for the operator. Any thread may call anything here."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from .locks import taking


class Totals(NamedTuple):
    """What went in and out of a connection, or of several."""

    messages_received: int = 0
    messages_sent: int = 0
    messages_dropped: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0

    @staticmethod
    def sum(several: Iterable[Totals]) -> Totals:
        """Return the sum of several."""
        return Totals(*map(sum, zip(Totals(), *several)))


class Counts(NamedTuple):
    """What was counted since the process began.

    Attributes:
        accepted: connections that were opened.
        slow: times that a peer became too slow for what is sent to it.
        greedy: connections that were cut because too much was held for them.
        refused: handshakes that were refused, by HTTP status.
        closed: connections that have ended, by close code.
        finished: what went in and out of those that have ended.
    """

    accepted: int
    slow: int
    greedy: int
    refused: dict[str, int]
    closed: dict[str, int]
    finished: Totals


class Counters:
    """The counters of one manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards everything below.
        self._accepted = 0
        self._slow = 0
        self._greedy = 0
        self._refused: Counter[str] = Counter()
        self._closed: Counter[int] = Counter()
        self._finished = Totals()

    def accept(self) -> None:
        """Count a connection that was opened."""
        with taking(self._lock):
            self._accepted += 1

    def refuse(self, status: str) -> None:
        """Count a handshake that was refused."""
        with taking(self._lock):
            self._refused[status] += 1

    def slow(self) -> None:
        """Count a peer that became too slow."""
        with taking(self._lock):
            self._slow += 1

    def greedy(self) -> None:
        """Count a connection that was cut because too much was held for it."""
        with taking(self._lock):
            self._greedy += 1

    def finish(self, code: int, totals: Totals) -> None:
        """Count a connection that has ended."""
        with taking(self._lock):
            self._closed[code] += 1
            self._finished = Totals.sum((self._finished, totals))

    def snapshot(self) -> Counts:
        """Return the counts of this moment."""
        with taking(self._lock):
            closed = {str(code): count for code, count in sorted(self._closed.items())}
            return Counts(self._accepted, self._slow, self._greedy, dict(self._refused), closed, self._finished)
