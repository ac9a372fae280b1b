"""Messages (RFC 6455 5.4, 5.6): frames put together and taken apart.

The :class:`MessageReader` joins fragments, passes control frames through between them, checks UTF-8 while
fragments arrive and holds the size limit over the whole message. What it keeps of an unfinished message is
never larger than the limit, however small the fragments are.

Pure: bytes in, values out. An object belongs to one thread at a time.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from .exceptions import InvalidPayload, MessageTooBig, ProtocolError
from .frames import FrameParser, Opcode, encode_header

Payload: TypeAlias = "str | bytes | bytearray | memoryview"

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Message(NamedTuple):
    """A whole message, or a control frame. The payload of TEXT is a str, every other payload is bytes."""

    opcode: Opcode
    payload: str | bytes


class _TextCollector:
    """Text of a fragmented message; refuses an octet as soon as it cannot be UTF-8 (RFC 6455 8.1)."""

    def __init__(self) -> None:
        self._decode = _new_utf8_decoder("strict").decode
        self._text = io.StringIO()

    def add(self, octets: bytes, final: bool) -> None:
        try:
            self._text.write(self._decode(octets, final))
        except UnicodeDecodeError as error:
            raise InvalidPayload("text is not UTF-8") from error

    def value(self) -> str:
        return self._text.getvalue()


class _BytesCollector:
    """Octets of a fragmented binary message."""

    def __init__(self) -> None:
        self._octets = bytearray()

    def add(self, octets: bytes, final: bool) -> None:
        self._octets += octets

    def value(self) -> bytes:
        return bytes(self._octets)


class MessageReader:
    """Bytes in, messages and control frames out, in wire order.

    Args:
        max_size: the largest message in bytes, None for no limit.
        masked: whether the sender has to mask (a client has to, RFC 6455 5.1).
    """

    __slots__ = ("_frames", "_max_size", "_opcode", "_size", "_collector", "feed")

    def __init__(self, *, max_size: int | None = None, masked: bool = True) -> None:
        self._frames = FrameParser(max_size=max_size, masked=masked)
        self._max_size = max_size
        # The message under way: its opcode (None: there is none), its octets so far and what holds them.
        self._opcode: Opcode | None = None
        self._size = 0
        self._collector: _TextCollector | _BytesCollector | None = None
        self.feed: Callable[[bytes], None] = self._frames.feed

    def next_message(self) -> Message | None:
        """Return the next message or control frame, or None until more bytes are fed.

        Raises:
            ProtocolError: the bytes break RFC 6455; InvalidPayload and MessageTooBig say how.
        """
        while True:
            frame = self._frames.next_frame()
            if frame is None:
                return None
            opcode, payload, fin, _ = frame
            if opcode >= Opcode.CLOSE:
                return Message(opcode, payload)
            if opcode is Opcode.CONTINUATION:
                if self._opcode is None:
                    raise ProtocolError("continuation frame without a message to continue")
            elif self._opcode is not None:
                raise ProtocolError("new message before the last one was finished")
            elif fin:
                return Message(opcode, _decode(payload) if opcode is Opcode.TEXT else payload)
            else:
                self._opcode = opcode
                self._collector = _TextCollector() if opcode is Opcode.TEXT else _BytesCollector()
            message = self._collect(payload, fin)
            if message is not None:
                return message

    def _collect(self, payload: bytes, fin: bool) -> Message | None:
        assert self._opcode is not None and self._collector is not None
        self._size += len(payload)
        if self._max_size is not None and self._size > self._max_size:
            raise MessageTooBig(f"message of more than {self._max_size} octets")
        self._collector.add(payload, fin)
        if not fin:
            return None
        message = Message(self._opcode, self._collector.value())
        self._opcode, self._collector, self._size = None, None, 0
        return message


def _decode(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise InvalidPayload("text is not UTF-8") from error


def to_octets(payload: Payload) -> tuple[Opcode, bytes]:
    """Return the opcode and the octets to send: str is TEXT, bytes-like is BINARY.

    Raises:
        TypeError: the payload is neither; a programming error, nothing is sent.
        UnicodeEncodeError: the str holds a lone surrogate, which UTF-8 cannot carry.
    """
    if isinstance(payload, str):
        return Opcode.TEXT, payload.encode()
    if isinstance(payload, bytes):
        return Opcode.BINARY, payload
    if isinstance(payload, (bytearray, memoryview)):
        return Opcode.BINARY, bytes(payload)
    raise TypeError(f"a message is a str or bytes-like, not {type(payload).__name__}")


def encode_message(payload: Payload) -> bytes:
    """Return a message as one unmasked frame, as a server sends it."""
    opcode, octets = to_octets(payload)
    return encode_header(opcode, len(octets)) + octets
