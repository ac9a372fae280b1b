"""Bytes that wait for one peer, in order, because the kernel did not take them.

Not locked: the connection's send lock guards it.
"""

from __future__ import annotations

from collections import deque


class Entry:
    """Bytes that wait.

    Attributes:
        data: what has not left yet.
        messages: how many messages these are.
        droppable: whether it may be given up: a whole message of a broadcast of which nothing has left.
        done: whether all of it has left.
    """

    __slots__ = ("data", "messages", "droppable", "done")

    def __init__(self, data: bytes | memoryview, messages: int = 0, droppable: bool = False) -> None:
        self.data = data
        self.messages = messages
        self.droppable = droppable
        self.done = False


class Outbox:
    """A queue of bytes.

    Attributes:
        size: bytes waiting.
    """

    __slots__ = ("_entries", "size")

    def __init__(self) -> None:
        self._entries: deque[Entry] | None = None  # Most connections never need it, and an empty one takes 760 bytes.
        self.size = 0

    def add(self, entry: Entry) -> None:
        """Put something, which may not be empty, behind all that waits."""
        if self._entries is None:
            self._entries = deque()
        self._entries.append(entry)
        self.size += len(entry.data)

    @property
    def first(self) -> bytes | memoryview:
        """What has to leave next; only when something waits."""
        assert self._entries
        return self._entries[0].data

    def remove(self, count: int) -> int:
        """Note that so many bytes of the :attr:`first` have left; return how many messages were completed by that."""
        assert self._entries
        entry = self._entries[0]
        self.size -= count
        if count < len(entry.data):
            if count:
                entry.data = memoryview(entry.data)[count:]
                entry.droppable = False
            return 0
        entry.done = True
        self._entries.popleft()
        if not self._entries:
            self._entries = None
        return entry.messages

    def drop(self, limit: int) -> int:
        """Give up the oldest droppable entries until no more than ``limit`` bytes wait; return how many they were."""
        dropped = at = 0
        entries = self._entries
        while entries and self.size > limit and at < len(entries):
            if entries[at].droppable:
                self.size -= len(entries[at].data)
                del entries[at]
                dropped += 1
            else:
                at += 1
        return dropped

    def clear(self) -> None:
        """Give up everything."""
        self._entries = None
        self.size = 0
