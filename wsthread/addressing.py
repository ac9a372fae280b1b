"""Whom a call is about: ``to`` and ``exclude`` of broadcasts, as group names, connections, or several of either."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

from .connection import Connection
from .entries import Addressed
from .registry import Registry

#: Group names, connections, or several of either.
Addressees: TypeAlias = "str | Connection | Iterable[str | Connection]"


class Chosen(NamedTuple):
    """Members that were chosen.

    Attributes:
        members: each once.
        gone: how many connections were named that are no members: not let in yet, closing or closed, or another
            manager's.
    """

    members: tuple[Connection, ...]
    gone: int


def choose(registry: Registry[Connection], to: Addressees | None, exclude: Addressees) -> Chosen:
    """Return the members that a call is about.

    Args:
        registry: all members.
        to: those to take; None for all.
        exclude: those to leave out.

    Raises:
        TypeError: something that is neither a group's name nor a connection, such as a connection's id.
    """
    gone = 0
    if to is None:
        members = registry.snapshot()
    else:
        groups, named = _split(registry, "to", to)
        members = registry.snapshot(groups)
        if named:
            present = {conn: None for conn in named if registry.get(conn.id) is conn}
            gone = len(named) - len(present)
            members = tuple({**dict.fromkeys(members), **present})
    groups, named = _split(registry, "exclude", exclude)
    if groups or named:
        left_out = {*registry.snapshot(groups), *named}
        members = tuple(conn for conn in members if conn not in left_out)
    return Chosen(members, gone)


def fixed(addressees: Any) -> Any:
    """Return addressees that can be gone through more than once, and under a lock, whatever a caller has given."""
    if addressees is None or type(addressees) is tuple:  # The usual ones.
        return addressees
    if isinstance(addressees, (str, bytes, bytearray, memoryview, Connection)):
        return addressees
    return tuple(addressees) if isinstance(addressees, Iterable) else addressees


def elsewhere(to: Addressees | None, exclude: Addressees) -> Addressed:
    """Return whom a call is about in other processes: groups travel, connections are of this process."""
    return Addressed(None if to is None else _groups(to), _groups(exclude))


def connections_in(addressees: Addressees | None) -> tuple[Connection, ...]:
    """Return the connections among addressees."""
    if isinstance(addressees, Connection):
        return (addressees,)
    if addressees is None or isinstance(addressees, str):
        return ()
    return tuple([one for one in addressees if isinstance(one, Connection)])


def _groups(addressees: Addressees) -> frozenset[str]:
    if isinstance(addressees, (str, Connection)):
        addressees = (addressees,)
    return frozenset([one for one in addressees if isinstance(one, str)])


def _split(registry: Registry[Connection], name: str, value: Addressees) -> tuple[set[str], set[Connection]]:
    """Tell groups from connections."""
    groups: set[str] = set()
    connections: set[Connection] = set()
    if isinstance(value, (str, Connection)):
        value = (value,)
    elif isinstance(value, (bytes, bytearray, memoryview)) or not isinstance(value, Iterable):
        raise _refusal(name, value)
    for one in value:
        if isinstance(one, str):
            # A group may be called like a connection, but a mistake is likelier, and would have no effect.
            if registry.get(one) is not None and not registry.snapshot([one]):
                raise TypeError(f"{name} takes connections, not their ids: manager.get({one!r}) returns this one")
            groups.add(one)
        elif isinstance(one, Connection):
            connections.add(one)
        else:
            raise _refusal(name, one)
    return groups, connections


def _refusal(name: str, value: object) -> TypeError:
    return TypeError(
        f"{name} takes group names, connections, or several of either, not {value!r}; a group's name is a str")
