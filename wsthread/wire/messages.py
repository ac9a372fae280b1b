"""Messages (RFC 6455 5.4, 5.6): frames put together and taken apart.

The :class:`MessageReader` joins fragments, passes control frames through between them, checks UTF-8 while
fragments arrive and holds the size limit over the whole message, while inflating. What it keeps of an unfinished
message is never larger than the limit, however small the fragments are and however well it was compressed.

Pure: bytes in, values out. An object belongs to one thread at a time.
"""

from __future__ import annotations

import codecs
import io
from typing import NamedTuple, TypeAlias

from ..exceptions import InvalidPayload, MessageTooBig, ProtocolError, RateExceeded
from ..speedups import encode_message as encode_short_message
from .deflate import Deflater, Inflater, compress_alone
from .frames import FrameParser, Opcode, encode_header

Payload: TypeAlias = "str | bytes | bytearray | memoryview"

# Plain names: looking a member up in its enum costs as much as a function call.
_CONTINUATION, _TEXT, _BINARY, _CLOSE = Opcode.CONTINUATION, Opcode.TEXT, Opcode.BINARY, Opcode.CLOSE

# The rest of a frame is received in place when it is worth that, and when enough has come before: memory is taken for
# all of it at once.
_LEAST_ROOM, _ROOM_FACTOR = 4096, 16

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Message(NamedTuple):
    """A whole message, or a control frame. The payload of TEXT is a str, every other payload is bytes."""

    opcode: Opcode
    payload: str | bytes


class _Collector:
    """The bytes of a message that does not come in one piece."""

    def __init__(self) -> None:
        self._octets = io.BytesIO()  # Unlike a bytearray it gives its content away without a copy.

    def add(self, octets: bytes, final: bool) -> None:
        self.check(octets, final)
        self._octets.write(octets)

    def make_room(self, size: int) -> memoryview:
        """Count the next bytes of the message in and return where they have to be put, and then checked."""
        start = self._octets.tell()
        self._octets.seek(start + size - 1)
        self._octets.write(b"\0")
        return self._octets.getbuffer()[start:]

    def check(self, octets: bytes | memoryview, final: bool) -> None:
        """Check bytes of the message, in their order."""

    def value(self) -> str | bytes:
        return self._octets.getvalue()


class _TextCollector(_Collector):
    """The same for text; refuses a byte as soon as it cannot be UTF-8 (RFC 6455 8.1)."""

    def __init__(self) -> None:
        super().__init__()
        self._decoder = _new_utf8_decoder("strict")  # Only checks: text takes more memory than its bytes.

    def check(self, octets: bytes | memoryview, final: bool) -> None:
        try:
            self._decoder.decode(octets, final)
        except UnicodeDecodeError as error:
            raise InvalidPayload("text is not UTF-8") from error
        # CPython's decoder waits for the third byte of a surrogate, which no third byte can make valid.
        pending, _ = self._decoder.getstate()
        if pending[:1] == b"\xed" and pending[1:2] >= b"\xa0":
            raise InvalidPayload("text is not UTF-8")

    def value(self) -> str | bytes:
        return self._octets.getvalue().decode()


class MessageReader:
    """Bytes in, messages and control frames out, in wire order.

    Args:
        max_size: the largest message in bytes, after inflating; None for no limit.
        masked: whether the sender has to mask (a client has to, RFC 6455 5.1).
        inflater: inflates messages that have RSV1 set (RFC 7692 6.2); None when that was not negotiated.
        max_empty_frames: how many empty frames may come until :attr:`empty_frames` is set to 0 again; None for any
            number.

    Attributes:
        ready: whole messages that :meth:`feed` found, the next one last. Whoever pops one has done what
            :meth:`next_message` does. It is always the same list.
        empty_frames: control frames, and fragments without payload. They carry nothing and cost as much as others.
        inflated: bytes that compressed messages have become so far.
        inflates: whether compressed messages count. Otherwise they are skipped, and only their frames are checked.
    """

    __slots__ = (
        "_frames", "_max_size", "_inflater", "_opcode", "_compressed", "_received", "_size", "_collector", "_filled",
        "_room", "_max_empty_frames", "ready", "empty_frames", "inflated", "inflates",
    )

    def __init__(
        self, *, max_size: int | None = None, masked: bool = True, inflater: Inflater | None = None,
        max_empty_frames: int | None = None,
    ) -> None:
        self._frames = FrameParser(max_size=max_size, masked=masked, rsv1_allowed=inflater is not None)
        self._max_size = max_size
        self._max_empty_frames = max_empty_frames
        self.empty_frames = 0
        self.inflated = 0
        self.inflates = True
        self._inflater = inflater
        # The message under way: its opcode (None: there is none), whether it is compressed, its bytes on the wire and
        # after inflating, and what holds them.
        self._opcode: Opcode | None = None
        self._compressed = False
        self._received = 0
        self._size = 0
        self._collector: _Collector | None = None
        self._room: memoryview | None = None  # For the rest of the frame under way, ...
        self._filled = 0  # ... as far as it came and was not looked at.
        self.ready: list[Message] = []

    def feed(self, data: bytes) -> None:
        """Take more bytes from the wire. Between two messages it fills :attr:`ready`, if that is empty."""
        self._frames.feed(data)
        if self._opcode is None and not self.ready:
            self._frames.read_whole_messages(Message, self.ready)

    @property
    def frames(self) -> int:
        """How many frames began so far, of those that were handed over or belong to the message under way."""
        return self._frames.frames - len(self.ready)

    @property
    def held(self) -> int:
        """Bytes that are held of a message that is not complete, about. Any thread may look."""
        if self._collector is None:
            return 0
        return self._size + (self._frames.missing if self._room is not None else 0)

    @property
    def is_within_message(self) -> bool:
        """Whether a message or a frame has begun and is not complete."""
        return self._opcode is not None or bool(self._frames.rest)

    @property
    def has_input(self) -> bool:
        """Whether bytes are left that may hold another message."""
        return bool(self.ready or self._frames.rest)

    def room(self) -> memoryview | None:
        """Return where the bytes that come next have to be put, to be told of by :meth:`filled`; None: feed them.

        It is for the rest of a large frame, and saves two copies of it. Only when :meth:`next_message` returned None.
        """
        if self._room is None and self._collector is not None:
            missing = self._frames.missing
            if _LEAST_ROOM <= missing <= _ROOM_FACTOR * self._size and not self._compressed:
                if self._max_size is None or self._size + missing <= self._max_size:
                    self._room = self._collector.make_room(missing)
        return self._room

    def filled(self, count: int) -> None:
        """Note that the first ``count`` bytes of the :meth:`room` came from the wire."""
        self._filled = count

    def next_message(self) -> Message | None:
        """Return the next message or control frame, or None until more bytes are fed.

        Raises:
            ProtocolError: the bytes break RFC 6455 or RFC 7692; InvalidPayload and MessageTooBig say how.
        """
        if self._opcode is None:
            ready = self.ready
            if not ready:
                self._frames.read_whole_messages(Message, ready)
            if ready:
                return ready.pop()
        elif self._filled:
            message = self._collect_filled()
            if message is not None:
                return message
        while True:
            frame = self._frames.next_frame()
            if frame is None:
                return None
            opcode, payload, fin, rsv1 = frame
            if opcode >= _CLOSE:
                self._count_empty_frame()
                return Message(opcode, payload)
            if not fin and not payload:
                self._count_empty_frame()
            if opcode is _CONTINUATION:
                if self._opcode is None:
                    raise ProtocolError("continuation frame without a message to continue")
            elif self._opcode is not None:
                raise ProtocolError("new message before the last one was finished")
            elif fin and not rsv1:
                return Message(opcode, _decode(payload) if opcode is _TEXT else payload)
            else:
                self._start(opcode, rsv1)
            message = self._collect(payload, fin)
            if message is not None:
                return message

    def _count_empty_frame(self) -> None:
        self.empty_frames += 1
        if self._max_empty_frames is not None and self.empty_frames > self._max_empty_frames:
            raise RateExceeded(f"more than {self._max_empty_frames} control frames and empty fragments in a second")

    def _start(self, opcode: Opcode, compressed: bool) -> None:
        self._opcode = opcode
        self._compressed = compressed
        self._received = self._size = 0
        self._collector = _TextCollector() if opcode is Opcode.TEXT else _Collector()
        self._frames.max_size = None if compressed else self._max_size

    def _collect(self, payload: bytes, fin: bool) -> Message | None:
        assert self._opcode is not None and self._collector is not None
        limit = self._max_size
        if self._compressed:
            if not self.inflates:
                self._skip(fin)
                return None
            assert self._inflater is not None
            self._received += len(payload)
            if limit is not None and self._received > _max_compressed_size(limit):
                raise MessageTooBig(f"compressed message of more than {_max_compressed_size(limit)} bytes")
            payload = self._inflater.inflate(payload, fin, None if limit is None else limit - self._size)
            self.inflated += len(payload)
        self._size += len(payload)
        if limit is not None and self._size > limit:
            raise MessageTooBig(f"message of more than {limit} bytes")
        self._collector.add(payload, fin)
        return self._finish() if fin else None

    def _skip(self, fin: bool) -> None:
        if fin:
            self._opcode = self._collector = None
            self._frames.max_size = self._max_size

    def _collect_filled(self) -> Message | None:
        assert self._room is not None and self._collector is not None
        with self._room as room, room[:self._filled] as octets:
            final = self._frames.fill(octets)
            self._collector.check(octets, final)
            self._size += self._filled
            self._room = room[self._filled:] if self._frames.missing else None
            self._filled = 0
        return self._finish() if final else None

    def _finish(self) -> Message:
        assert self._opcode is not None and self._collector is not None
        message = Message(self._opcode, self._collector.value())
        self._opcode = self._collector = None
        self._frames.max_size = self._max_size
        return message


def _max_compressed_size(max_size: int) -> int:
    # Data that does not compress grows by some bytes per block and per fragment; more is not worth reading.
    return 8 * max_size + 1024


def _decode(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise InvalidPayload("text is not UTF-8") from error


def to_octets(payload: Payload) -> tuple[Opcode, bytes]:
    """Return the opcode and the bytes to send: str is TEXT, bytes-like is BINARY.

    Raises:
        TypeError: the payload is neither; a programming error, nothing is sent.
        UnicodeEncodeError: the str holds a lone surrogate, which UTF-8 cannot carry.
    """
    if isinstance(payload, str):
        return _TEXT, payload.encode()
    if isinstance(payload, bytes):
        return _BINARY, payload
    if isinstance(payload, (bytearray, memoryview)):
        return _BINARY, bytes(payload)
    raise TypeError(f"a message is a str or bytes-like, not {type(payload).__name__}")


def encode_message(payload: Payload) -> bytes:
    """Return a message as one unmasked frame, as a server sends it."""
    frame = encode_short_message(payload)
    if frame is not None:
        return frame
    opcode, octets = to_octets(payload)
    return encode_header(opcode, len(octets)) + octets


def encode_compressed(opcode: Opcode, octets: bytes, deflater: Deflater) -> bytes:
    """Return a message that is not empty as one unmasked, compressed frame (RFC 7692 6.1)."""
    compressed = deflater.deflate(octets)
    return encode_header(opcode, len(compressed), rsv1=True) + compressed


class PreparedMessage:
    """A message for many peers, encoded once for each way in which they want it. Any thread may use it.

    Args:
        payload: a str goes as text; bytes, bytearray or memoryview go as binary.
    """

    __slots__ = ("_opcode", "_octets", "_frames")

    def __init__(self, payload: Payload) -> None:
        self._opcode, self._octets = to_octets(payload)
        self._frames: dict[int, bytes] = {}  # Two threads may both encode; the result is the same.

    @classmethod
    def of(cls, opcode: Opcode, octets: bytes) -> PreparedMessage:
        """Return the message of an opcode and the bytes of its payload."""
        message = cls(octets)
        message._opcode = opcode
        return message

    @property
    def content(self) -> tuple[Opcode, bytes]:
        """The opcode and the bytes of the payload."""
        return self._opcode, self._octets

    def behind(self, head: bytes) -> PreparedMessage:
        """Return the same message with more bytes, which are ASCII, before its own."""
        return PreparedMessage.of(self._opcode, head + self._octets)

    def encode(self, compression: int = 0) -> bytes:
        """Return the frame for peers.

        Args:
            compression: how it is compressed, see :attr:`wsthread.wire.deflate.Agreement.compression`; 0 for not.
        """
        frame = self._frames.get(compression)
        if frame is None:
            octets = self._octets if compression == 0 else compress_alone(self._octets, compression)
            frame = encode_header(self._opcode, len(octets), rsv1=compression != 0) + octets
            self._frames[compression] = frame
        return frame

    def __len__(self) -> int:
        """Return the bytes of the payload."""
        return len(self._octets)
