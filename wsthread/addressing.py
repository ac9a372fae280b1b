"""Whom a call is about: ``to`` and ``exclude`` of broadcasts, as group names, connections, or several of either."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from .connection import Connection
from .registry import Registry

#: Group names, connections, or several of either.
Addressees: TypeAlias = "str | Connection | Iterable[str | Connection]"


class Chosen(NamedTuple):
    """Members that were chosen.

    Attributes:
        members: each once, in the order of arrival.
        gone: how many connections were named that are no members, because they are closing or closed.
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
        TypeError: something that is neither a group's name nor a connection.
    """
    gone = 0
    if to is None:
        members = registry.snapshot()
    else:
        groups, named = _split("to", to)
        members = registry.snapshot(groups)
        if named:
            present = {conn: None for conn in named if registry.get(conn.id) is conn}
            gone = len(named) - len(present)
            members = tuple({**dict.fromkeys(members), **present})
    groups, named = _split("exclude", exclude)
    if groups or named:
        left_out = {*registry.snapshot(groups), *named}
        members = tuple(conn for conn in members if conn not in left_out)
    return Chosen(members, gone)


def _split(name: str, value: Addressees) -> tuple[set[str], set[Connection]]:
    """Tell groups from connections."""
    groups: set[str] = set()
    connections: set[Connection] = set()
    if isinstance(value, (str, Connection)):
        value = (value,)
    elif isinstance(value, (bytes, bytearray, memoryview)) or not isinstance(value, Iterable):
        raise _refusal(name, value)
    for one in value:
        if isinstance(one, str):
            groups.add(one)
        elif isinstance(one, Connection):
            connections.add(one)
        else:
            raise _refusal(name, one)
    return groups, connections


def _refusal(name: str, value: object) -> TypeError:
    return TypeError(
        f"{name} takes group names, connections, or several of either, not {value!r}; a group's name is a str")
