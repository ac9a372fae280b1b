"""What an entry of a stream looks like, and how to read it.

Pure. An entry has these fields; the script of :mod:`wsthread.bus.redis_store` writes them:

====  ===========================================================================================================
v     1, the version of all this
p     the publisher, 16 hexadecimal digits
n     its number
b     the id of the entry before; an entry whose neighbour is another one tells that the stream was cut or changed
k     the kind, one character
t     when it was published, in milliseconds since the epoch
a     how old it was when it was sent, in milliseconds; absent when it was sent at once
f     1 when the publisher went on behind a hole
h     the header, a JSON object
d     the payload
====  ===========================================================================================================

Anybody may write into the stream. So what cannot be read raises :exc:`Unreadable`, and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

Id: TypeAlias = tuple[int, int]  #: Of an entry: milliseconds, and a number for those of the same one.

START: Id = (0, 0)  #: Before any entry.
_LAST_SEQUENCE = (1 << 64) - 1
_ID = re.compile(rb"(\d{1,20})-(\d{1,20})")
_PUBLISHER = re.compile(rb"[0-9a-f]{16}")
_NUMBER = re.compile(rb"\d{1,15}")


class Arrived(NamedTuple):
    """An entry as it stands in the stream.

    Attributes:
        id: its place.
        before: that of the entry before; None when nobody knows.
        publisher: who published it; empty when that cannot be read.
        number: likewise, 0.
        kind: one character.
        header: values that JSON knows.
        payload: bytes.
        age: seconds from its publishing to its sending, at least.
        wall: when it was published, in seconds since the epoch.
        is_forced: whether its publisher went on behind a hole.
        fault: why it cannot be delivered, in words; None when it can.
    """

    id: Id
    before: Id | None = None
    publisher: str = ""
    number: int = 0
    kind: str = ""
    header: dict[str, Any] = {}
    payload: bytes = b""
    age: float = 0.0
    wall: float = 0.0
    is_forced: bool = False
    fault: str | None = None


class Unreadable(ValueError):
    """What stands in a stream is no entry of ours."""


def parse_id(data: bytes) -> Id:
    """Return an id as Redis writes it.

    Raises:
        Unreadable: it is none.
    """
    found = _ID.fullmatch(data)
    if found is None:
        raise Unreadable(f"{data[:50]!r} is no id")
    return int(found[1]), int(found[2])


def format_id(id: Id) -> bytes:
    """Return an id as Redis reads it."""
    return b"%d-%d" % id


def id_before(id: Id) -> Id:
    """Return the greatest id that is less than one; that of :data:`START` is itself."""
    milliseconds, sequence = id
    if sequence:
        return milliseconds, sequence - 1
    return (milliseconds - 1, _LAST_SEQUENCE) if milliseconds else START


def encode_header(header: dict[str, Any]) -> bytes:
    """Return a header as JSON.

    Raises:
        TypeError: JSON has no such values.
        ValueError: likewise.
    """
    return json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()


def decode(id: bytes, fields: Sequence[bytes], max_size: int) -> Arrived:
    """Read an entry.

    Args:
        id: its place.
        fields: names and values in turn.
        max_size: bytes of header and payload together.

    Returns:
        What could be read: if not all, it has a fault.

    Raises:
        Unreadable: not even its place.
    """
    place = parse_id(id)
    named = dict(zip(fields[::2], fields[1::2]))
    before = named.get(b"b", b"")
    entry = Arrived(place, parse_id(before) if _ID.fullmatch(before) else None)
    publisher, number = named.get(b"p", b""), named.get(b"n", b"")
    if not _PUBLISHER.fullmatch(publisher) or not _NUMBER.fullmatch(number) or not int(number):
        return entry._replace(fault="it has no publisher and number")
    entry = entry._replace(
        publisher=publisher.decode(), number=int(number), is_forced=b"f" in named,
        age=_milliseconds(named.get(b"a")), wall=_milliseconds(named.get(b"t")))
    try:
        kind, header, payload = _read_content(named, max_size)
    except Unreadable as error:
        return entry._replace(fault=str(error))
    return entry._replace(kind=kind, header=header, payload=payload)


def _read_content(named: dict[bytes, bytes], max_size: int) -> tuple[str, dict[str, Any], bytes]:
    version, kind = named.get(b"v", b""), named.get(b"k", b"")
    text, payload = named.get(b"h", b"{}"), named.get(b"d", b"")
    if version != b"1":
        raise Unreadable(f"its version is {version[:20]!r}, this process knows 1")
    if len(kind) != 1 or not kind.isascii():
        raise Unreadable(f"its kind is {kind[:20]!r}")
    size = len(text) + len(payload)
    if size > max_size:
        raise Unreadable(f"it has {size} bytes, at most {max_size} are allowed")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("its header is no JSON") from None
    if not isinstance(header, dict):
        raise Unreadable("its header is no JSON object")
    return kind.decode(), header, payload


def _milliseconds(text: bytes | None) -> float:
    """Return seconds."""
    return int(text) / 1000 if text is not None and _NUMBER.fullmatch(text) else 0.0
