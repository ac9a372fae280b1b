"""Frames (RFC 6455 5): opcodes, close codes, the frame codec and masking.

A :class:`FrameParser` turns the bytes of one direction into frames. It never holds back payload: a data frame
that has not arrived whole is handed over in pieces, as if the sender had fragmented it there, which an
intermediary may do anyway (RFC 6455 5.4). So text can be checked as its bytes arrive, and what the parser
keeps between two reads is at most one control frame or one header.

Pure: bytes in, values out. An object belongs to one thread at a time.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, NamedTuple

from ..exceptions import MessageTooBig, ProtocolError
from ..speedups import mask, mask_in_place, read_messages


class _Number(IntEnum):
    """A number with a name, which is printed as the number by Python 3.10 as well."""

    __str__ = int.__repr__

    def __format__(self, format_spec: str) -> str:
        return int.__format__(self, format_spec)


class Opcode(_Number):
    """Frame opcodes (RFC 6455 5.2, 11.8)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(_Number):
    """Close codes (RFC 6455 7.4.1 and the IANA registry). 3000 to 4999 are free for applications."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RCVD = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


# The other three only describe an ending locally (RFC 6455 7.4.1).
SENDABLE_CLOSE_CODES = frozenset(CloseCode) - {
    CloseCode.NO_STATUS_RCVD, CloseCode.ABNORMAL_CLOSURE, CloseCode.TLS_HANDSHAKE,
}
MAX_CONTROL_PAYLOAD = 125
MAX_REASON = MAX_CONTROL_PAYLOAD - 2  # Bytes of a close reason, behind the code (RFC 6455 5.5.1).
FIN, RSV1, MASKED = 0x80, 0x40, 0x80
RESERVED_BITS = 0x70

# Plain names: looking a member up in its enum costs as much as a function call.
_CONTINUATION, _TEXT, _BINARY = Opcode.CONTINUATION, Opcode.TEXT, Opcode.BINARY
_OPCODES = {int(opcode): opcode for opcode in Opcode}
_CONTROL = 0x08  # The bit that tells control frames from data frames.
_LENGTH_16 = struct.Struct("!H")
_LENGTH_64 = struct.Struct("!Q")
# The headers of nearly all frames that a server sends, ready.
_SHORT_HEADERS = {opcode: tuple(bytes((FIN | opcode, length)) for length in range(126)) for opcode in Opcode}


def cut_reason(text: str) -> str:
    """Return as much of a text as a close reason has room for."""
    return text.encode()[:MAX_REASON].decode(errors="ignore")


class Frame(NamedTuple):
    """One frame, or one piece of a data frame."""

    opcode: Opcode
    payload: bytes
    fin: bool = True
    rsv1: bool = False


def is_valid_close_code(code: int) -> bool:
    """Tell whether a Close frame may carry this code (RFC 6455 7.4)."""
    return code in SENDABLE_CLOSE_CODES or 3000 <= code < 5000


def encode_header(opcode: Opcode, length: int, *, fin: bool = True, rsv1: bool = False, masked: bool = False) -> bytes:
    """Return a frame header without the masking key (RFC 6455 5.2)."""
    if length < 126 and fin and not rsv1 and not masked:
        return _SHORT_HEADERS[opcode][length]
    first = opcode | (FIN if fin else 0) | (RSV1 if rsv1 else 0)
    mask_bit = MASKED if masked else 0
    if length < 126:
        return bytes((first, mask_bit | length))
    if length < 1 << 16:
        return bytes((first, mask_bit | 126)) + _LENGTH_16.pack(length)
    return bytes((first, mask_bit | 127)) + _LENGTH_64.pack(length)


def encode_frame(frame: Frame, masking_key: bytes | None = None) -> bytes:
    """Return a whole frame; a server sends without a masking key, a client must give one (RFC 6455 5.1)."""
    opcode, payload, fin, rsv1 = frame
    header = encode_header(opcode, len(payload), fin=fin, rsv1=rsv1, masked=masking_key is not None)
    if masking_key is None:
        return header + payload
    return header + masking_key + mask(payload, masking_key)


class FrameParser:
    """Bytes in, frames out, for one direction of one connection.

    Args:
        max_size: the largest payload of a data frame in bytes; None for no limit. It does not hold for a frame with
            RSV1, whose size says little about what it carries. May be changed between two frames.
        masked: whether the sender has to mask, so True for the bytes a server receives (RFC 6455 5.1).
        rsv1_allowed: whether an extension gave RSV1 a meaning on data frames.

    Attributes:
        missing: bytes that the data frame under way still lacks; 0 when there is none.
        frames: how many frames began so far.
        rest: the bytes that are left; they begin at ``_start``. Empty as soon as all are used up.
    """

    __slots__ = ("max_size", "missing", "frames", "rest", "_start", "_masked", "_rsv1_allowed", "_fin", "_key")

    def __init__(self, *, max_size: int | None = None, masked: bool = True, rsv1_allowed: bool = False) -> None:
        self.rest = b""
        self._start = 0
        self.max_size = max_size
        self._masked = MASKED if masked else 0
        self._rsv1_allowed = rsv1_allowed
        self.missing = 0
        self.frames = 0
        # The data frame under way: its FIN bit, its masking key turned to the next byte.
        self._fin = False
        self._key = b""

    def feed(self, data: bytes) -> None:
        """Take more bytes from the wire."""
        self.rest = self.rest[self._start:] + data if self.rest else data
        self._start = 0

    def next_frame(self) -> Frame | None:
        """Return the next frame or piece of a data frame, or None until more bytes are fed.

        Raises:
            ProtocolError: the bytes break RFC 6455 5.2, 5.5; nothing can be parsed after it.
            MessageTooBig: a data frame announces more than ``max_size`` bytes.
        """
        if self.missing:
            return self._next_piece()
        buffer, start = self.rest, self._start
        size = len(buffer)
        if size - start < 2:
            return None
        first, second = buffer[start], buffer[start + 1]
        if first & (RESERVED_BITS | _CONTROL) or first & 0x0F > 2 or second & MASKED != self._masked:
            self._check_header(first, second)
        length = second & 0x7F
        payload_at = start + 2
        if length >= 126:
            packed = _LENGTH_16 if length == 126 else _LENGTH_64
            payload_at += packed.size
            if size < payload_at:
                return None
            length, = packed.unpack_from(buffer, start + 2)
            if length >> 63:
                raise ProtocolError("most significant bit of a 64-bit length is set")
        max_size = self.max_size
        if max_size is not None and length > max_size and not first & (RSV1 | _CONTROL):
            raise MessageTooBig(f"frame of {length} bytes, the limit is {max_size}")
        key = b""
        if self._masked:
            key = buffer[payload_at:payload_at + 4]
            payload_at += 4
        end = payload_at + length
        if end > size:
            return self._start_piece(first, key, payload_at, length)
        self._consume(end)
        self.frames += 1
        payload = buffer[payload_at:end]
        return Frame(_OPCODES[first & 0x0F], mask(payload, key) if key else payload, first >= FIN, first & RSV1 != 0)

    def read_whole_messages(self, message_type: type[tuple[Opcode, str | bytes]], into: list[Any]) -> None:
        """Put the next messages into an empty list, as far as they are whole, valid and plain, the next one last.

        Those are some at most. Whatever comes next then is for :meth:`next_frame`. Only between two messages.
        """
        rest = self.rest
        if self.missing or not self._masked or not rest:
            return
        messages, end = read_messages(rest, self._start, self.max_size, message_type, _TEXT, _BINARY)
        if messages:
            messages.reverse()
            is_all, frames = end == len(rest), self.frames + len(messages)
            into += messages  # Whatever may lack memory comes before the rest, so that nothing is lost.
            self.frames = frames
            if is_all:
                self.rest, self._start = b"", 0
            else:
                self._start = end

    def fill(self, octets: memoryview) -> bool:
        """Unmask the next bytes of the data frame under way where they are; tell whether they end a message.

        For bytes that did not go through :meth:`feed`, at most ``missing``. Only when :attr:`rest` is empty.
        """
        if self._key:
            mask_in_place(octets, self._key)
            self._turn_key(len(octets))
        self.missing -= len(octets)
        return self._fin and not self.missing

    def _consume(self, end: int) -> None:
        """Go on behind the last frame. A buffer that is used up is given back: the next may take long to come."""
        if end == len(self.rest):
            self.rest, self._start = b"", 0
        else:
            self._start = end

    def _check_header(self, first: int, second: int) -> None:
        if first & 0x0F not in _OPCODES:
            raise ProtocolError(f"reserved opcode {first & 0x0F}")
        control = first & _CONTROL
        allowed = RSV1 if self._rsv1_allowed and not control and first & 0x0F else 0
        if first & RESERVED_BITS & ~allowed:
            raise ProtocolError("reserved bit set that no extension explains")
        if second & MASKED != self._masked:
            raise ProtocolError("frame is not masked" if self._masked else "frame is masked")
        if control and not first & FIN:
            raise ProtocolError("fragmented control frame")
        if control and second & 0x7F > MAX_CONTROL_PAYLOAD:
            raise ProtocolError("control frame of more than 125 bytes")

    def _start_piece(self, first: int, key: bytes, payload_at: int, length: int) -> Frame | None:
        # A control frame is waited for: it is small. So is a masking key that is not complete.
        if first & _CONTROL or payload_at > len(self.rest):
            return None
        payload = self.rest[payload_at:]
        self._consume(len(self.rest))
        self.frames += 1
        self.missing = length - len(payload)
        self._fin = first & FIN != 0
        self._key = key
        return Frame(_OPCODES[first & 0x0F], self._unmask_piece(payload), False, first & RSV1 != 0)

    def _next_piece(self) -> Frame | None:
        payload = self.rest[self._start:self._start + self.missing]
        if not payload:
            return None
        self._consume(self._start + len(payload))
        self.missing -= len(payload)
        return Frame(_CONTINUATION, self._unmask_piece(payload), self._fin and not self.missing)

    def _unmask_piece(self, payload: bytes) -> bytes:
        if not self._key:
            return payload
        result = mask(payload, self._key)
        self._turn_key(len(payload))
        return result

    def _turn_key(self, octets: int) -> None:
        turn = octets % 4
        self._key = self._key[turn:] + self._key[:turn]
