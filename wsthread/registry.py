"""The connections of one manager and their groups. Any thread may call anything here.

A member is *admitted* when its handshake is accepted, *added* when it is open, and forgotten by *remove*, which takes
it out of its groups too. So no group holds a member that is gone, in whatever order several threads call. Only
:meth:`Registry.wait_gone` waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

from .locks import taking

T = TypeVar("T", bound=Hashable)


class Registry(Generic[T]):
    """Members by id, and groups of them. Snapshots are in the order of arrival.

    A member may tell something when it joins a group; that is forgotten when it leaves.

    Args:
        note_change: called as ``note_change(group, id, told)`` when a member has told something, and with None when
            that is forgotten, in the order of these events. It is called with the lock held, so it waits for nothing.
    """

    def __init__(self, note_change: Callable[[str, str, Any], None] | None = None) -> None:
        self._note_change = note_change
        self._lock = threading.Lock()  # Guards everything below.
        self._going = threading.Condition(self._lock)  # Notified when someone is dismissed or waits.
        self._admitted = 0
        self._waiting = 0  # How many of the admitted wait in wait_gone() themselves.
        self._addresses: dict[str, int] = {}
        self._members: dict[str, T] = {}
        self._groups: dict[str, dict[T, None]] = {}
        self._joined: dict[T, set[str]] = {}
        self._told: dict[str, dict[str, Any]] = {}  # By group, by id. Few members tell anything.

    def admit(self, address: str | None, limit: int | None, limit_per_address: int | None) -> str | None:
        """Count one more, and one more from its address.

        Args:
            address: names the client; None when it is unknown, and counts for no address then.
            limit: how many may be admitted at a time; None for no limit.
            limit_per_address: likewise, of one address.

        Returns:
            The name of the option that forbids it, if one does.
        """
        with taking(self._lock):
            if limit is not None and self._admitted >= limit:
                return "max_connections"
            if address is not None and limit_per_address is not None:
                count = self._addresses.get(address, 0)
                if count >= limit_per_address:
                    return "max_connections_per_address"
                self._addresses[address] = count + 1
            self._admitted += 1
            return None

    def dismiss(self, address: str | None) -> None:
        """Count one less, and one less from an address if it was known."""
        with taking(self._lock):
            self._admitted -= 1
            if address is not None:
                left = self._addresses.get(address, 0) - 1
                if left > 0:
                    self._addresses[address] = left
                else:
                    self._addresses.pop(address, None)
            self._going.notify_all()

    @property
    def admitted(self) -> int:
        """How many were admitted and not dismissed."""
        with taking(self._lock):
            return self._admitted

    def wait_gone(self, own: bool, timeout: float) -> bool:
        """Wait until all who were admitted are dismissed, but for those whose threads wait here themselves.

        Args:
            own: whether the calling thread is of one of them.
            timeout: seconds it may take at most.

        Returns:
            Whether that is so.
        """
        with taking(self._lock):
            self._waiting += own
            self._going.notify_all()
            try:
                return self._going.wait_for(lambda: self._admitted <= self._waiting, timeout)
            finally:
                self._waiting -= own

    def add(self, key: str, member: T) -> None:
        """Add a member."""
        with taking(self._lock):
            self._members[key] = member

    def remove(self, key: str) -> None:
        """Forget a member and its groups; nothing happens when it is none."""
        with taking(self._lock):
            member = self._members.pop(key, None)
            if member is not None:
                for group in self._joined.pop(member, ()):
                    self._leave(key, member, group)

    def get(self, key: str) -> T | None:
        """Return the member with this id, or None."""
        with taking(self._lock):
            return self._members.get(key)

    def join(self, key: str, group: str, told: Any = None) -> bool:
        """Put a member into a group; False when it is no member.

        Args:
            key: its id.
            group: the group.
            told: what it tells; None for nothing, or for nothing new.
        """
        with taking(self._lock):
            member = self._members.get(key)
            if member is None:
                return False
            self._groups.setdefault(group, {})[member] = None
            self._joined.setdefault(member, set()).add(group)
            if told is not None:
                self._told.setdefault(group, {})[key] = told
                self._note(group, key, told)
            return True

    def leave(self, key: str, group: str) -> None:
        """Take a member out of a group; nothing happens when it is not in it."""
        with taking(self._lock):
            member = self._members.get(key)
            if member is not None and group in self._joined.get(member, ()):
                self._joined[member].discard(group)
                self._leave(key, member, group)

    def _leave(self, key: str, member: T, group: str) -> None:
        members = self._groups[group]
        del members[member]
        if not members:
            del self._groups[group]
        told = self._told.get(group, {})
        if told.pop(key, None) is not None:
            if not told:
                del self._told[group]
            self._note(group, key, None)

    def _note(self, group: str, key: str, told: Any) -> None:
        if self._note_change is not None:
            self._note_change(group, key, told)

    def told(self, group: str | None = None) -> list[tuple[str, Any]]:
        """Return what members have told, each with its group; None for all groups."""
        with taking(self._lock):
            groups = self._told if group is None else {group: self._told.get(group, {})}
            return [(name, one) for name, told in groups.items() for one in told.values()]

    def groups(self, key: str) -> frozenset[str]:
        """Return the groups a member is in."""
        with taking(self._lock):
            member = self._members.get(key)
            return frozenset() if member is None else frozenset(self._joined.get(member, ()))

    def snapshot(self, groups: Iterable[str] | None = None) -> tuple[T, ...]:
        """Return the members of this moment, or those in at least one of the groups, each once."""
        chosen = None if groups is None else list(groups)
        with taking(self._lock):
            if chosen is None:
                return tuple(self._members.values())
            return tuple({member: None for group in chosen for member in self._groups.get(group, ())})

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self._members)
