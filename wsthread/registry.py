"""The open connections of one manager. Any thread may call anything here; nothing waits."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """A set that gives out snapshots, in the order of arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards _members.
        self._members: dict[T, None] = {}

    def add(self, member: T) -> None:
        """Add a member."""
        with self._lock:
            self._members[member] = None

    def remove(self, member: T) -> None:
        """Remove a member; nothing happens when it is none."""
        with self._lock:
            self._members.pop(member, None)

    def snapshot(self) -> tuple[T, ...]:
        """Return the members of this moment."""
        with self._lock:
            return tuple(self._members)

    def __len__(self) -> int:
        with self._lock:
            return len(self._members)
