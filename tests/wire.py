"""Frames as they are on the wire, written and read without the package, so that they can judge it (RFC 6455 5.2).

Plain ``struct`` and XOR, and nothing is checked: a test says what is wrong with its frames.
"""

from __future__ import annotations

import itertools
import operator
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
RSV1, RSV2, RSV3 = 4, 2, 1
MASK = b"\x01\x02\x03\x04"
# What is longer is fed in larger steps, for speed; its first and last octets still come one by one.
_BY_OCTETS = 2048

Event = TypeVar("Event")


class ServerFrame(NamedTuple):
    """A frame of the server."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0


def xor(payload: bytes, key: bytes) -> bytes:
    """Mask or unmask as RFC 6455 5.3 spells it, octet by octet."""
    return bytes(map(operator.xor, payload, itertools.cycle(key)))


def client_header(
    opcode: int,
    length: int,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length_form: int | None = None,
) -> bytes:
    """Return a frame up to its payload; see :func:`client_frame`."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask_bit = 0 if mask is None else 0x80
    if length_form is None:
        length_form = 7 if length < 126 else 16 if length < 65536 else 64
    if length_form == 7:
        header = struct.pack("!BB", first, mask_bit | length)
    elif length_form == 16:
        header = struct.pack("!BBH", first, mask_bit | 126, length)
    else:
        header = struct.pack("!BBQ", first, mask_bit | 127, length)
    return header + (mask or b"")


def client_frame(
    opcode: int,
    payload: bytes = b"",
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length_form: int | None = None,
) -> bytes:
    """Return a frame as a client sends it.

    Args:
        opcode: 0 to 15.
        payload: its octets, not masked yet.
        fin: whether it is the last fragment.
        rsv: the reserved bits, a sum of RSV1, RSV2 and RSV3.
        mask: the masking key; None sends the frame unmasked, which a client must not.
        length_form: 7, 16 or 64, the bits to write the length with; None for the fewest that hold it.
    """
    masked = payload if mask is None else xor(payload, mask)
    return client_header(opcode, len(payload), fin, rsv, mask, length_form) + masked


def client_close(code: int, reason: bytes = b"") -> bytes:
    """Return a client's Close frame."""
    return client_frame(CLOSE, close_payload(code, reason))


def close_payload(code: int, reason: bytes = b"") -> bytes:
    """Return the payload of a Close frame (RFC 6455 5.5.1)."""
    return struct.pack("!H", code) + reason


def fragments(opcode: int, *payloads: bytes) -> bytes:
    """Return a client's message in as many frames as there are payloads."""
    last = len(payloads) - 1
    return b"".join(
        client_frame(CONTINUATION if i else opcode, payload, fin=i == last) for i, payload in enumerate(payloads))


def deflated(octets: bytes, window_bits: int = 15) -> bytes:
    """Return the compressed payload of a message: DEFLATE without its last four octets (RFC 7692 7.2.1)."""
    compressor = zlib.compressobj(wbits=-window_bits)
    return (compressor.compress(octets) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(octets: bytes, window_bits: int = 15) -> bytes:
    """Return what a compressed payload holds (RFC 7692 7.2.2)."""
    return zlib.decompressobj(wbits=-window_bits).decompress(octets + b"\x00\x00\xff\xff")


def server_frames(data: bytes) -> list[ServerFrame]:
    """Read what a server sent; it has to be whole frames, unmasked, their lengths in the shortest form."""
    found = []
    while data:
        first, length = data[0], data[1]
        assert length < 0x80, "a server must not mask (RFC 6455 5.1)"
        at = 2
        if length == 126:
            length, at = struct.unpack("!H", data[2:4])[0], 4
            assert length > 125
        elif length == 127:
            length, at = struct.unpack("!Q", data[2:10])[0], 10
            assert 0xFFFF < length < 1 << 63
        assert len(data) >= at + length, "the last frame is not complete"
        found.append(ServerFrame(first & 0x0F, data[at:at + length], first >= 0x80, first >> 4 & 7))
        data = data[at + length:]
    return found


def whole(data: bytes) -> Iterable[bytes]:
    """Cut nowhere."""
    return [data]


def by_octets(data: bytes) -> Iterator[bytes]:
    """Cut after each octet."""
    step = 1 if len(data) <= _BY_OCTETS else 997
    head, tail = data[:20], data[max(20, len(data) - 20):]
    body = data[len(head):len(data) - len(tail)]
    for part, size in (head, 1), (body, step), (tail, 1):
        for i in range(0, len(part), size):
            yield part[i:i + size]


def at(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut anywhere: each cut is a number that stands for a place in the data, whatever its size."""
    marks = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[start:end] for start, end in zip([0, *marks], [*marks, len(data)])]


def pump(
    feed: Callable[[bytes], None], take: Callable[[], Event | None], chunks: Iterable[bytes],
) -> tuple[list[Event], Exception | None]:
    """Feed chunks and take events after each; return the events and the error that ended it."""
    events: list[Event] = []
    try:
        for chunk in chunks:
            feed(chunk)
            while (event := take()) is not None:
                events.append(event)
    except Exception as error:
        return events, error
    return events, None


class HasRoom(Protocol):
    """What has a place for some of the bytes to come: a MessageReader or a Protocol."""

    def room(self) -> memoryview | None:
        """Return the place."""

    def filled(self, count: int) -> None:
        """Note how many bytes were put there."""


def give(receiver: HasRoom, feed: Callable[[bytes], None], data: bytes) -> bytes:
    """Put bytes where the receiver wants them, as a connection does, and return what is left for the next time."""
    room = receiver.room()
    if room is None:
        feed(data)
        return b""
    part = data[:len(room)]
    room[:len(part)] = part
    receiver.filled(len(part))
    return data[len(part):]


def pump_in_place(
    receiver: HasRoom, feed: Callable[[bytes], None], take: Callable[[], Event | None], chunks: Iterable[bytes],
) -> tuple[list[Event], Exception | None]:
    """The same as :func:`pump` with :func:`give`."""
    events: list[Event] = []
    try:
        for chunk in chunks:
            while chunk:
                chunk = give(receiver, feed, chunk)
                while (event := take()) is not None:
                    events.append(event)
    except Exception as error:
        return events, error
    return events, None
