"""Bytes that wait for one peer, in order, because the kernel did not take them.

Not locked: the connection's send lock guards it.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

ENTRY_COST = 150  # Bytes of memory that an entry takes besides its data.
_JOINED = 1 << 16  # Bytes of several entries that leave together.
_CONTROL_JOINED = 4096  # Bytes of control frames in one entry.


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

    Nothing here takes longer than the number of entries, and the number of entries is bounded by what they cost.

    Attributes:
        size: bytes waiting.
        cost: bytes of memory that they take, about: that is what bounds compare.
    """

    __slots__ = ("_entries", "size", "cost")

    def __init__(self) -> None:
        self._entries: deque[Entry] | None = None  # Most connections never need it, and an empty one takes 760 bytes.
        self.size = 0
        self.cost = 0

    def add(self, entry: Entry) -> None:
        """Put something, which may not be empty, behind all that waits."""
        if self._entries is None:
            self._entries = deque()
        self._entries.append(entry)
        self.size += len(entry.data)
        self.cost += len(entry.data) + ENTRY_COST

    def add_control(self, data: bytes) -> None:
        """The same for control frames, of which many share an entry: a peer may make us send as many as it likes."""
        last = self._entries[-1] if self._entries else None
        if last is None or last.messages or len(last.data) + len(data) > _CONTROL_JOINED:
            self.add(Entry(data))
            return
        last.data = b"".join((last.data, data))
        self.size += len(data)
        self.cost += len(data)

    @property
    def first(self) -> bytes | memoryview:
        """What has to leave next, of one entry or of several small ones; only when something waits."""
        assert self._entries
        data = self._entries[0].data
        if len(self._entries) == 1 or len(data) >= _JOINED:
            return data
        parts, size = [], 0
        for entry in self._entries:
            if size + len(entry.data) > _JOINED:
                break
            parts.append(entry.data)
            size += len(entry.data)
        return b"".join(parts)

    def remove(self, count: int) -> int:
        """Note that so many bytes of the :attr:`first` have left; return how many messages were completed by that."""
        assert self._entries
        self.size -= count
        self.cost -= count
        messages = 0
        while count:
            entry = self._entries[0]
            if count < len(entry.data):
                entry.data = memoryview(entry.data)[count:]
                entry.droppable = False
                break
            count -= len(entry.data)
            messages += entry.messages
            entry.done = True
            self._entries.popleft()
            self.cost -= ENTRY_COST
        if not self._entries:
            self._entries = None
        return messages

    def drop(self, limit: int) -> int:
        """Give up the oldest droppable entries until the rest costs no more than ``limit``; return how many they were.
        """
        if self.cost <= limit or self._entries is None:
            return 0
        kept: list[Entry] = []
        dropped = passed = 0
        for entry in self._entries:
            if self.cost <= limit:
                break
            passed += 1
            if entry.droppable:
                self.size -= len(entry.data)
                self.cost -= len(entry.data) + ENTRY_COST
                dropped += 1
            else:
                kept.append(entry)
        self._entries = deque([*kept, *islice(self._entries, passed, None)]) or None
        return dropped

    def clear(self) -> None:
        """Give up everything."""
        self._entries = None
        self.size = self.cost = 0
