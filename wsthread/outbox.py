"""Bytes on their way to one peer, in order, as far as the kernel has not taken them.

Not locked: the connection's send lock guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

Send: TypeAlias = "Callable[[bytes | memoryview, int], int]"


class Entry:
    """Bytes that wait.

    Attributes:
        data: what has not left yet.
        messages: how many messages these are.
        droppable: whether it may be given up while none of it has left: a whole message of a broadcast.
        done: whether all of it has left.
    """

    __slots__ = ("data", "messages", "droppable", "done")

    def __init__(self, data: bytes | memoryview, messages: int, droppable: bool) -> None:
        self.data = data
        self.messages = messages
        self.droppable = droppable
        self.done = False


class Outbox:
    """A queue of bytes.

    Attributes:
        size: bytes waiting.
        sent: bytes that left since the beginning.
        messages: messages that left since the beginning.
    """

    __slots__ = ("_entries", "size", "sent", "messages")

    def __init__(self) -> None:
        self._entries: deque[Entry] | None = None  # Most connections never need it, and an empty one takes 760 bytes.
        self.size = 0
        self.sent = 0
        self.messages = 0

    def write(
        self, data: bytes, send: Send, messages: int = 0, droppable: bool = False, flags: int = 0,
    ) -> Entry | None:
        """Send bytes behind all that waits; return what became of them: None when all have left.

        Args:
            data: the bytes.
            send: as :meth:`flush` wants it.
            messages: see :class:`Entry`.
            droppable: likewise.
            flags: for ``send``.
        """
        taken = 0
        if not self._entries:
            taken = send(data, flags)
            self.sent += taken
            if taken == len(data):
                self.messages += messages
                return None
        entry = Entry(memoryview(data)[taken:] if taken else data, messages, droppable and not taken)
        if self._entries is None:
            self._entries = deque()
        self._entries.append(entry)
        self.size += len(data) - taken
        return entry

    def flush(self, send: Send) -> None:
        """Send what waits, as far as that goes without waiting.

        Args:
            send: ``send(data, flags)`` sends what can be sent without waiting and returns how much that was.
        """
        entries = self._entries
        while entries:
            entry = entries[0]
            taken = send(entry.data, 0)
            self.size -= taken
            self.sent += taken
            if taken < len(entry.data):
                if taken:
                    entry.data = memoryview(entry.data)[taken:]
                    entry.droppable = False
                return
            entry.done = True
            self.messages += entry.messages
            entries.popleft()
        self._entries = None

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
