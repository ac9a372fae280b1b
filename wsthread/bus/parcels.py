"""What the processes of one host send each other, as bytes of a stream: parcels, one behind the other.

::

    length of all that follows   4 bytes
    kind                         1 byte
    length of the header         4 bytes
    header                       JSON
    payload                      the rest

Pure.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

_HEAD = struct.Struct("!IBI")
_LENGTH = 4
_MOST = 1 << 30  # Bytes. More is no parcel of ours.
MOST_PAYLOAD = _MOST // 2  #: Bytes.


class Kind(IntEnum):
    """What a parcel is about; ``name`` is a manager's, and ``publisher`` and ``number`` are those of an entry."""

    HELLO = 1  #: The first one: the ``id`` of the sender's process, and ``names``: name -> [publisher, number].
    NAME = 2  #: A manager has started: ``name``, ``publisher``, ``number``.
    END = 3  #: A manager has ended: ``name``, ``publisher``.
    ENTRY = 4  #: An entry: ``name``, ``publisher``, ``number``, ``kind``, ``header``.
    GAP = 5  #: Entries were left out: ``name``, ``publisher``, ``missing``.


class Parcel(NamedTuple):
    """What was sent."""

    kind: Kind
    header: dict[str, Any]
    payload: bytes


class Unreadable(ValueError):
    """Bytes that are no parcel. What comes behind them cannot be read either."""


def pack(kind: Kind, header: dict[str, Any], payload: bytes = b"") -> bytes:
    """Return a parcel's bytes."""
    head = json.dumps(header, separators=(",", ":")).encode()
    return _HEAD.pack(_HEAD.size - _LENGTH + len(head) + len(payload), kind, len(head)) + head + payload


class Unpacker:
    """The parcels of one stream."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Parcel]:
        """Take bytes; yield the parcels that are complete.

        Raises:
            Unreadable: no more parcels will come of this stream.
        """
        self._data += data
        start = 0
        try:
            while len(self._data) - start >= _HEAD.size:
                length, kind, head_length = _HEAD.unpack_from(self._data, start)
                if length > _MOST or head_length > length - (_HEAD.size - _LENGTH):
                    raise Unreadable(f"there is no parcel of {length} bytes with a header of {head_length}")
                end = start + _LENGTH + length
                if end > len(self._data):
                    break
                middle = start + _HEAD.size + head_length
                parcel = _parcel(kind, bytes(self._data[start + _HEAD.size:middle]), bytes(self._data[middle:end]))
                start = end
                yield parcel
        finally:
            del self._data[:start]


def _parcel(kind: int, head: bytes, payload: bytes) -> Parcel:
    try:
        header = json.loads(head)
        if isinstance(header, dict):
            return Parcel(Kind(kind), header, payload)
    except (ValueError, RecursionError) as error:
        raise Unreadable(str(error)) from error
    raise Unreadable("a header is an object")
