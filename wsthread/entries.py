"""What managers of the same name tell each other: the kinds of entries, and what their headers mean.

============  ===========================================================================  ================
kind          header                                                                       payload
============  ===========================================================================  ================
``MESSAGE``   ``to``: groups, None for all connections; ``not``: groups that do not get    the message
              it; ``text``: whether it is text and not binary
``CLOSE``     ``to`` and ``not`` likewise; ``code``; ``reason``                            --
``NOTICE``    --                                                                           any JSON
``PRESENCE``  ``reset``: whether it begins anew; ``in``: lists of group, id, time, info;   --
              ``out``: lists of group, id
``ALIVE``     ``count``: how many ``in`` would have if it were sent anew                   --
``ASK``       ``of``: who is asked to begin anew, None for all                             --
============  ===========================================================================  ================

:mod:`wsthread.exchange` does what they say; :class:`wsthread.Publisher` publishes the first three as well. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from .bus.backplane import Entry
from .wire.messages import Payload
from .wire.protocol import Close, check_close

MESSAGE, CLOSE, NOTICE, PRESENCE, ALIVE, ASK = "m", "c", "n", "p", "a", "q"

Groups = frozenset[str]


class Outgoing(NamedTuple):
    """What to publish: the arguments of :meth:`wsthread.bus.backplane.Backplane.publish`."""

    kind: str
    header: dict[str, Any]
    payload: bytes = b""


class Addressed(NamedTuple):
    """Whom an entry is about, among the members of each process.

    Attributes:
        to: the groups; None for all connections.
        exclude: groups that it is not about.
    """

    to: Groups | None
    exclude: Groups = frozenset()

    def __bool__(self) -> bool:
        return self.to is None or bool(self.to)

    def header(self) -> dict[str, Any]:
        """Return the header that says so."""
        header: dict[str, Any] = {"to": None if self.to is None else sorted(self.to)}
        return {**header, "not": sorted(self.exclude)} if self.exclude else header


def named(groups: str | Iterable[str] | None) -> Groups | None:
    """Return the groups that a caller names, who has no connections to name; None for all connections.

    Raises:
        TypeError: something that is no group's name.
    """
    if groups is None:
        return None
    chosen = [groups] if isinstance(groups, str) else list(groups)
    for one in chosen:
        if not isinstance(one, str):
            raise TypeError(f"to takes group names, not {one!r}")
    return frozenset(chosen)


def message(payload: Payload, addressed: Addressed) -> Outgoing:
    """Return the entry for a message."""
    header = {**addressed.header(), "text": isinstance(payload, str)}
    return Outgoing(MESSAGE, header, payload.encode() if isinstance(payload, str) else bytes(payload))


def close(close: Close, addressed: Addressed) -> Outgoing:
    """Return the entry that closes connections."""
    return Outgoing(CLOSE, {**addressed.header(), "code": close.code, "reason": close.reason})


def notice(data: Any) -> Outgoing:
    """Return the entry for what an application tells its processes.

    Raises:
        TypeError: the data has no JSON.
        ValueError: likewise.
    """
    return Outgoing(NOTICE, {}, to_json(data).encode())


def to_json(data: Any) -> str:
    """Return JSON as RFC 8259 has it.

    Raises:
        TypeError: the data has no JSON.
        ValueError: likewise: it holds a NaN, an infinity or itself, or is nested too deeply.
    """
    try:
        return json.dumps(data, allow_nan=False, separators=(",", ":"))
    except RecursionError as error:
        raise ValueError("the data is nested too deeply for JSON") from error


# Entries that came. They may be of another version, or none of ours at all.


class Malformed(ValueError):
    """An entry that nobody can read."""


def addressed(entry: Entry) -> Addressed:
    """Return whom an entry is about.

    Raises:
        Malformed: its header does not say so.
    """
    to, exclude = entry.header.get("to"), entry.header.get("not", [])
    if not (to is None or _are_groups(to)) or not _are_groups(exclude):
        raise Malformed(f"groups are lists of names, not {to!r} and {exclude!r}")
    return Addressed(None if to is None else frozenset(to), frozenset(exclude))


def payload_of(entry: Entry) -> str | bytes:
    """Return the message of an entry.

    Raises:
        Malformed: it is to be text and is not UTF-8.
    """
    if entry.header.get("text") is not True:
        return entry.payload
    try:
        return entry.payload.decode()
    except UnicodeDecodeError as error:
        raise Malformed(str(error)) from error


def close_of(entry: Entry) -> Close:
    """Return the Close of an entry.

    Raises:
        Malformed: no Close can say that.
    """
    try:
        return check_close(entry.header.get("code"), entry.header.get("reason"))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise Malformed(str(error)) from error


def data_of(entry: Entry) -> Any:
    """Return what an application has told its processes.

    Raises:
        Malformed: it is no JSON.
    """
    try:
        return json.loads(entry.payload)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error


def _are_groups(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
