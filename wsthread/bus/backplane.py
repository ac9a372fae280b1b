"""The contract between a manager and what carries its messages to other processes.

A *backplane* is a manager's own. It gives each entry that is published to the managers of the same name in all other
processes, once, and those of one publisher in the order of their numbers. A *publisher* is a process: it has a random
id and numbers its entries 1, 2, 3... A child of a fork is another publisher.

What a backplane may not do:

* wait for another process or for a server in :meth:`Backplane.publish`;
* lose an entry without a :class:`Gap`;
* give an entry back to the process that has published it;
* let its thread end by an exception, whatever a peer sends or a listener raises.

:class:`Backplane` tells how to write one for another system, such as NATS or PostgreSQL.
"""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple, Protocol


class Entry(NamedTuple):
    """What another process has published.

    Attributes:
        publisher: the process, 16 hexadecimal digits.
        number: 1 for its first entry, and so on.
        kind: what to do with it, one letter of :mod:`wsthread.entries`.
        header: values that JSON knows; their meaning depends on the kind.
        payload: bytes, empty for most kinds.
    """

    publisher: str
    number: int
    kind: str
    header: dict[str, Any]
    payload: bytes


class Gap(NamedTuple):
    """Entries of other processes that this process has missed, for good.

    Attributes:
        publisher: whose they were; None when that is not known.
        missing: how many; None when that is not known.
        reason: what happened, in words.
    """

    publisher: str | None
    missing: int | None
    reason: str


class Health(NamedTuple):
    """How a backplane does.

    Attributes:
        healthy: whether what is published leaves, and what others publish comes.
        since: when that became so, in seconds since the epoch.
        lag: seconds between the publishing of the last entry that came and its coming; None when that is not known.
        queued: entries that wait to leave.
        published: entries since the start.
        received: likewise, of other processes.
        dropped: entries that came twice, or that nobody can read, and were not delivered.
        resent: entries that were sent again, because it was not known that they had arrived.
        gaps: how many entries are known to be missing, as far as their number is known.
        peers: the other processes, as far as they are known; None when a backplane does not know them.
        error: why it is not healthy, in words; None when it is.
    """

    healthy: bool
    since: float
    lag: float | None = None
    queued: int = 0
    published: int = 0
    received: int = 0
    dropped: int = 0
    resent: int = 0
    gaps: int = 0
    peers: int | None = None
    error: str | None = None


class Listener(Protocol):
    """What a manager does with what comes. The backplane's thread calls it, one call after the other.

    It never waits and raises nothing on purpose; the backplane's thread survives it if it does.
    """

    def begin(self, publisher: str, number: int) -> None:
        """From now on the entries of a publisher come, from the one behind this number on.

        It is called before the first :meth:`deliver` or :meth:`remember` for that publisher, and again when its
        numbers begin anew.
        """

    def remember(self, entry: Entry) -> None:
        """An entry from before the start, for the history only. It comes before anything is delivered."""

    def recall(self) -> bytes:
        """Return what this process remembers from before, for :meth:`restore` in another one. Any thread may call it.

        A backplane without a memory of its own asks one process, the one that has been there for longest.
        """

    def restore(self, memory: bytes) -> None:
        """Take over what another process remembers, which is to have got what came before :meth:`begin` here.

        It is called after :meth:`begin`, instead of :meth:`remember`, before :meth:`Backplane.start` returns.

        Raises:
            Exception: any, when nobody can read it.
        """

    def deliver(self, entry: Entry) -> None:
        """An entry has come."""

    def note_gap(self, gap: Gap) -> None:
        """Entries were missed. It is called before the next entry of that publisher is delivered."""

    def note_gone(self, publisher: str) -> None:
        """A process has ended, or is taken to have: nothing more of it will come."""


class BackplaneUnavailable(Exception):
    """A backplane cannot be had in this process. Its text says why, as the end of a sentence."""


class NotNeeded(BackplaneUnavailable):
    """There are no other processes, as far as anybody can tell: nobody has to be warned."""


class Backplane:
    """Base of the backplanes: one manager's way to the other processes. Any thread may call anything here.

    To write one, override what raises NotImplementedError. One thread of yours reads what comes and calls the listener;
    if writing may wait, another one writes what :meth:`publish` has put into a bounded queue.

    Attributes:
        publisher: the id of this process, new after a fork.
        knows_ends: whether :meth:`Listener.note_gone` is called as soon as a process ends. If not, the manager
            publishes a sign of life now and then as long as it has something that others would have to forget.
    """

    knows_ends = False

    def __init__(self) -> None:
        self.publisher = new_publisher()

    def start(self, name: str, listener: Listener, history: int = 0) -> None:
        """Begin to listen. It is called once per process, before its first connection opens or it publishes.

        What others publish after it has returned is delivered. It may wait a second for other processes, not for a
        server that does not answer: then the backplane is unhealthy and goes on trying.

        Args:
            name: managers of the same name are one room.
            listener: the manager's.
            history: how many entries from before the start to remember, if there are any to be had.

        Raises:
            BackplaneUnavailable: there cannot be a backplane in this process.
        """
        raise NotImplementedError

    def publish(self, kind: str, header: dict[str, Any], payload: bytes = b"") -> int:
        """Give an entry to all other processes, without waiting; return its number.

        Raises:
            BackplaneFull: too many wait already, or it is too large. It was not taken and has no number.
        """
        raise NotImplementedError

    def health(self) -> Health:
        """Return how it does."""
        raise NotImplementedError

    def close(self, timeout: float) -> None:
        """Publish what waits, as far as that is possible in so many seconds, and end the threads."""
        raise NotImplementedError

    def reset_after_fork(self) -> None:
        """Be as before :meth:`start`, with another publisher's id. Only the forking thread runs.

        It is called whether this one has started or not. Close the child's copies of descriptors; take no lock that a
        thread of the parent may have held.
        """
        raise NotImplementedError


def new_publisher() -> str:
    """Return an id for a process that publishes."""
    return uuid.uuid4().hex[:16]
