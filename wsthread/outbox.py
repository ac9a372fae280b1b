"""Bytes on their way to one peer, in order, as far as the kernel has not taken them.

Not locked: the connection's send lock guards it. Positions count the bytes ever put in, so a sender that must
know when its bytes left compares its position with :attr:`Outbox.sent`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Outbox:
    """A queue of bytes.

    Attributes:
        size: bytes waiting.
        sent: bytes that left, since the beginning.
    """

    __slots__ = ("_chunks", "size", "sent")

    def __init__(self) -> None:
        self._chunks: deque[bytes | memoryview] = deque()
        self.size = 0
        self.sent = 0

    def put(self, data: bytes) -> int:
        """Append bytes and return their end position: they left when :attr:`sent` has reached it."""
        self._chunks.append(data)
        self.size += len(data)
        return self.sent + self.size

    def flush(self, send: Callable[[bytes | memoryview], int]) -> None:
        """Hand over what ``send`` takes; it returns how much that was and never waits."""
        chunks = self._chunks
        while chunks:
            chunk = chunks[0]
            taken = send(chunk)
            self.size -= taken
            self.sent += taken
            if taken < len(chunk):
                if taken:
                    chunks[0] = memoryview(chunk)[taken:]
                return
            chunks.popleft()

    def clear(self) -> None:
        """Forget what is waiting."""
        self._chunks.clear()
        self.size = 0
