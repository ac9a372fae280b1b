"""Messages that came while the application works, in their order, until the connection's thread asks for them.

Pure. The receive lock (:mod:`wsthread.receiving`) guards it.
"""

from __future__ import annotations

from collections import deque

from .wire.messages import Message

_MESSAGE_COST = 200  # Bytes that a message takes besides its payload.


class Inbox:
    """Messages that wait for the application.

    Args:
        limit: bytes; with as many it is full. It may hold more by the message that was the last to fit.

    Attributes:
        size: bytes that the messages take, about.
    """

    __slots__ = ("size", "_limit", "_messages")

    def __init__(self, limit: int) -> None:
        self.size = 0
        self._limit = limit
        self._messages: deque[Message] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        """Whether no more messages may be added."""
        return self.size >= self._limit

    def add(self, message: Message) -> None:
        """Put a message behind the others."""
        self._messages.append(message)
        self.size += _cost(message)

    def take(self) -> Message:
        """Return the oldest message; only when there is one."""
        message = self._messages.popleft()
        self.size -= _cost(message)
        return message


def _cost(message: Message) -> int:
    payload = message.payload
    width = 1 if isinstance(payload, bytes) or payload.isascii() else 4  # Bytes of a character, at most.
    return width * len(payload) + _MESSAGE_COST
