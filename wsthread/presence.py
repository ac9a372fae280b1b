"""Who is in which group, in all processes: what an application has told about its connections with ``join(info=...)``.

Each process owns what it tells of its own connections, so two never disagree. The others hold a copy, which they get as
changes, or as a whole when they ask for it; they forget it when its process ends, or is silent for too long.

No I/O. Any thread may call anything here.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from .bus.backplane import Entry
from .entries import PRESENCE, Malformed, Outgoing, to_json
from .locks import taking

_AT_ONCE = 500  # Members that one entry tells of.


class Member(NamedTuple):
    """A connection of any process in a group.

    Attributes:
        id: the connection's.
        info: what ``join`` was given.
        since: when it joined, in seconds since the epoch, by the clock of its host.
    """

    id: str
    info: Any
    since: float


def member_now(id: str, info: Any) -> Member:
    """Return a member that joins at this moment. Its info is what JSON makes of it, as it will be in other processes.

    Raises:
        TypeError: the info has no JSON.
        ValueError: likewise.
    """
    return Member(id, json.loads(to_json(info)), time.time())


class Change(NamedTuple):
    """A connection of this process has joined a group, has told something else about itself, or has left.

    Attributes:
        group: the group.
        id: the connection's.
        member: what it is there now; None when it has left.
    """

    group: str
    id: str
    member: Member | None


class Presence:
    """The members of other processes, by the process, by the group, by the id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards all below.
        self._members: dict[str, dict[str, dict[str, Member]]] = {}
        self._heard_at: dict[str, float] = {}  # The last entry of each process that has members.

    def members(self, group: str) -> list[Member]:
        """Return those in a group."""
        with taking(self._lock):
            return [one for groups in self._members.values() for one in groups.get(group, {}).values()]

    def apply(self, entry: Entry, now: float) -> set[str]:
        """Do what an entry says; return the groups that have changed.

        Raises:
            Malformed: nobody can read it.
        """
        come, left = _parse(entry)
        with taking(self._lock):
            before = self._members.pop(entry.publisher, {}) if entry.header.get("reset") is True else {}
            groups = self._members.setdefault(entry.publisher, {})
            changed = {*before, *(group for group, _ in come), *(group for group, _ in left)}
            for group, member in come:
                groups.setdefault(group, {})[member.id] = member
            for group, id in left:
                members = groups.get(group, {})
                members.pop(id, None)
                if not members:
                    groups.pop(group, None)
            self._heard_at[entry.publisher] = now
            if not groups:
                self._forget(entry.publisher)
        return changed

    def forget(self, publisher: str) -> set[str]:
        """Forget a process; return the groups that have changed."""
        with taking(self._lock):
            return self._forget(publisher)

    def hear(self, publisher: str, count: int, now: float) -> bool:
        """Note a sign of life; return whether we know as many members as there should be."""
        with taking(self._lock):
            known = sum(len(members) for members in self._members.get(publisher, {}).values())
            if publisher in self._members:
                self._heard_at[publisher] = now
            return known == count

    def forget_silent(self, since: float) -> set[str]:
        """Forget the processes that were not heard since a time; return the groups that have changed."""
        with taking(self._lock):
            silent = [publisher for publisher, heard_at in self._heard_at.items() if heard_at < since]
            return {group for publisher in silent for group in self._forget(publisher)}

    def _forget(self, publisher: str) -> set[str]:
        self._heard_at.pop(publisher, None)
        return set(self._members.pop(publisher, {}))


def told(changes: Iterable[Change]) -> Outgoing:
    """Return the entry that tells of changes, in their order."""
    latest = {(one.group, one.id): one.member for one in changes}
    return Outgoing(PRESENCE, {
        "reset": False,
        "in": [_listed(group, member) for (group, _), member in latest.items() if member is not None],
        "out": [[group, id] for (group, id), member in latest.items() if member is None]})


def told_anew(members: Iterable[tuple[str, Member]]) -> list[Outgoing]:
    """Return the entries that tell of all members of this process, each with its group."""
    rows = [_listed(group, member) for group, member in members]
    pieces = [rows[start:start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)] or [[]]
    return [
        Outgoing(PRESENCE, {"reset": number == 0, "in": piece, "out": []}) for number, piece in enumerate(pieces)]


def _listed(group: str, member: Member) -> list[Any]:
    return [group, member.id, member.since, member.info]


def _parse(entry: Entry) -> tuple[list[tuple[str, Member]], list[tuple[str, str]]]:
    come, left = entry.header.get("in"), entry.header.get("out")
    match come, left:
        case list(), list():
            return [_come(row) for row in come], [_left(row) for row in left]
    raise Malformed(f"lists of members are lists, not {come!r} and {left!r}")


def _come(row: object) -> tuple[str, Member]:
    match row:
        case [str(group), str(id), int() | float() as since, info]:
            return group, Member(id, info, since)
    raise Malformed(f"a member looks different: {row!r}")


def _left(row: object) -> tuple[str, str]:
    match row:
        case [str(group), str(id)]:
            return group, id
    raise Malformed(f"who left looks different: {row!r}")
