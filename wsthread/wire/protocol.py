"""The state of one WebSocket as a server sees it (RFC 6455 5.5, 7): what came, what was sent, the closing handshake.

Two halves that share nothing but the fact that a Close was sent:

- the *receive half* turns bytes into events and belongs to the connection's thread;
- the *send half* turns calls into bytes; the caller serialises it (the connection's send lock does).

No lock, no I/O, no clock.

::

    OPEN ──send_close()──> CLOSING ──Close received──> closing handshake complete
      └──Close received──> CLOSING ──send_close()────> closing handshake complete
"""

from __future__ import annotations

from typing import NamedTuple

from ..exceptions import InvalidPayload, ProtocolError
from .deflate import NEVER, WATCHED, Agreement, Deflater, Inflater
from .frames import MAX_CONTROL_PAYLOAD, CloseCode, Frame, Opcode, encode_frame, encode_header, is_valid_close_code
from .messages import Message, MessageReader, Payload, PreparedMessage, encode_compressed, encode_message, to_octets

_CLOSE = Opcode.CLOSE  # Looking a member up in its enum costs as much as a function call.


class Close(NamedTuple):
    """The content of a Close frame; NO_STATUS_RCVD stands for an empty one (RFC 6455 7.1.5)."""

    code: int
    reason: str = ""


class Protocol:
    """One server-side WebSocket without its socket.

    Args:
        max_message_size: the largest message to accept in bytes, None for no limit.
        agreement: what was negotiated about compression, None for nothing.
        max_empty_frames: as for :class:`wsthread.wire.messages.MessageReader`.

    Attributes:
        ready: messages that :meth:`next_event` would return next, the next one last; to pop them is faster. What is not
            plain and whole only :meth:`next_event` returns. :meth:`release` puts another list in its place.
        compressed_from: bytes of the shortest message that is compressed; ``NEVER`` when none is.
        compression: how each of these is compressed, see :attr:`wsthread.wire.deflate.Agreement.compression`; 0 when
            none is, or when they share a window.
        inflates: whether messages of the peer may be compressed.
        keeps_window: whether a compressed message may refer to those before it, so that their order counts: they have
            to leave in the order of the calls of :meth:`send_message`.
        close_sent: what our Close frame said; None before it. Written by the send half.
        close_received: what the peer's Close frame said; None before it. Written by the receive half.
    """

    __slots__ = (
        "_reader", "_over", "_agreement", "_deflater", "close_sent", "close_received", "keeps_window",
        "compressed_from", "compression", "inflates", "ready",
    )

    def __init__(
        self, *, max_message_size: int | None = None, agreement: Agreement | None = None,
        max_empty_frames: int | None = None,
    ) -> None:
        inflater = None
        if agreement is not None:
            inflater = Inflater(agreement.client_max_window_bits, agreement.client_context_takeover, WATCHED)
        self._reader = MessageReader(max_size=max_message_size, inflater=inflater, max_empty_frames=max_empty_frames)
        self.ready = self._reader.ready
        self._over = False  # A Close or a violation came: there are no more events.
        self._agreement = agreement
        self.inflates = agreement is not None
        self.compressed_from = NEVER if agreement is None else agreement.compressed_from
        self.keeps_window = agreement is not None and agreement.server_context_takeover
        self.compression = 0 if agreement is None or self.keeps_window else agreement.compression
        self._deflater: Deflater | None = None  # Made for the first message that is long enough.
        self.close_sent: Close | None = None
        self.close_received: Close | None = None

    # Receive half

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the wire. What follows a Close or a violation is dropped (RFC 6455 5.5.1, 7.1.7)."""
        if not self._over:
            self._reader.feed(data)

    def renew_empty_frames(self) -> None:
        """Let as many empty frames come again as at the beginning. A thread that does not own this half may call it."""
        self._reader.empty_frames = 0

    @property
    def frames(self) -> int:
        """How many frames began so far."""
        return self._reader.frames

    @property
    def inflated(self) -> int:
        """How many bytes compressed messages have become so far."""
        return self._reader.inflated

    @property
    def held(self) -> int:
        """Bytes that are held of a message that is not complete."""
        return self._reader.held

    @property
    def is_within_message(self) -> bool:
        """Whether a message or a frame has begun and is not complete."""
        return self._reader.is_within_message

    def stop_inflating(self) -> None:
        """Skip compressed messages from now on: nobody will get them."""
        self._reader.inflates = False

    def fail(self) -> None:
        """Drop what comes from now on: the peer is not wanted any more."""
        self._over = True
        self.ready.clear()

    def room(self) -> memoryview | None:
        """Return where the bytes that come next have to be put, to be told of by :meth:`filled`.

        None: give them to :meth:`receive_data`. Only when :meth:`next_event` returned None.
        """
        return None if self._over else self._reader.room()

    def filled(self, count: int) -> None:
        """Note that the first ``count`` bytes of the :meth:`room` came from the wire."""
        self._reader.filled(count)

    def next_event(self) -> Message | None:
        """Return the next message or control frame, or None until more bytes come.

        Raises:
            ProtocolError: once, at the violation; then the events are over.
        """
        if self._over:
            return None
        try:
            message = self._reader.next_message()
        except ProtocolError:
            self._over = True
            raise
        if message is not None and message[0] is _CLOSE:
            self._over = True
            assert isinstance(message.payload, bytes)
            self.close_received = parse_close(message.payload)
        return message

    def release(self) -> None:
        """Give back what is held of messages: nothing will come any more."""
        self._over = True
        self._reader = MessageReader()
        self.ready = self._reader.ready
        self._deflater = None

    @property
    def has_input(self) -> bool:
        """Whether bytes are left that may hold another event."""
        return not self._over and self._reader.has_input

    # Send half

    def send_message(self, payload: Payload) -> bytes:
        """Return the bytes of a message. The caller has checked that no Close was sent (RFC 6455 5.5.1).

        Raises:
            TypeError: the payload is neither str nor bytes-like.
        """
        if self._agreement is None:
            return encode_message(payload)
        opcode, octets = to_octets(payload)
        if len(octets) < self.compressed_from:
            return encode_message(payload)
        if self._deflater is None:
            self._deflater = Deflater(
                self._agreement.deflate.level, self._agreement.server_max_window_bits,
                self._agreement.server_context_takeover)
        try:
            return encode_compressed(opcode, octets, self._deflater)
        except BaseException:  # Such as a MemoryError. The window has a message that the peer will not get.
            self._deflater = None
            raise

    def send_header(self, payload: bytes) -> bytes | None:
        """Return what goes before a payload that is sent as it is; None when it has to be compressed."""
        return None if len(payload) >= self.compressed_from else encode_header(Opcode.BINARY, len(payload))

    def send_prepared(self, message: PreparedMessage) -> bytes:
        """Return the bytes of a message that was made for many."""
        if self._agreement is None or len(message) < self.compressed_from:
            return message.encode()
        if self._deflater is not None:
            self._deflater.restart()  # Its window would lack this message.
        return message.encode(self._agreement.compression)

    def send_ping(self, payload: bytes) -> bytes:
        """Return the bytes of a Ping (RFC 6455 5.5.2)."""
        return _control(Opcode.PING, payload)

    def send_pong(self, payload: bytes) -> bytes:
        """Return the bytes of a Pong (RFC 6455 5.5.3)."""
        return _control(Opcode.PONG, payload)

    def send_close(self, close: Close) -> bytes:
        """Return the bytes of the Close frame; empty when it was sent already (RFC 6455 5.5.1).

        Raises:
            ValueError: a code that may not be sent, or a reason of more than 123 bytes of UTF-8.
        """
        if self.close_sent is not None:
            return b""
        data = _control(Opcode.CLOSE, encode_close(close))
        self.close_sent = close
        return data


def _control(opcode: Opcode, payload: bytes) -> bytes:
    if len(payload) > MAX_CONTROL_PAYLOAD:
        raise ValueError(f"a control frame carries at most {MAX_CONTROL_PAYLOAD} bytes, not {len(payload)}")
    return encode_frame(Frame(opcode, payload))


def parse_close(payload: bytes) -> Close:
    """Read the payload of a Close frame (RFC 6455 5.5.1, 7.4).

    Raises:
        ProtocolError: one byte, or a code that may not be on the wire.
        InvalidPayload: the reason is not UTF-8.
    """
    if not payload:
        return Close(CloseCode.NO_STATUS_RCVD)
    if len(payload) == 1:
        raise ProtocolError("Close frame with half a code")
    code = int.from_bytes(payload[:2], "big")
    if not is_valid_close_code(code):
        raise ProtocolError(f"Close frame with code {code}")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError as error:
        raise InvalidPayload("close reason is not UTF-8") from error


def check_close(code: int, reason: str) -> Close:
    """Return the Close that an application asks for.

    Raises:
        TypeError: the code is no int or the reason no str.
        ValueError: a code that may not be sent, or a reason of more than 123 bytes of UTF-8.
    """
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"a close code is an int, such as 1000, not {code!r}")
    if not isinstance(reason, str):
        raise TypeError(f"a close reason is a str, not {reason!r}")
    if not is_valid_close_code(code):
        raise ValueError(f"close code {code} may not be sent (RFC 6455 7.4)")
    close = Close(code, reason)
    encode_close(close)
    return close


def encode_close(close: Close) -> bytes:
    """Return the payload of a Close frame.

    Raises:
        ValueError: a code that may not be sent, or a reason of more than 123 bytes of UTF-8.
    """
    if close.code == CloseCode.NO_STATUS_RCVD and not close.reason:
        return b""
    if not is_valid_close_code(close.code):
        raise ValueError(f"close code {close.code} may not be sent (RFC 6455 7.4)")
    reason = close.reason.encode()
    if len(reason) > MAX_CONTROL_PAYLOAD - 2:
        raise ValueError(f"a close reason has at most {MAX_CONTROL_PAYLOAD - 2} bytes of UTF-8, not {len(reason)}")
    return close.code.to_bytes(2, "big") + reason
