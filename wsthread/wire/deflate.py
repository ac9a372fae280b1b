"""permessage-deflate (RFC 7692): the negotiation, and the payload of one message compressed or inflated.

It works on payload bytes and knows no frames. A :class:`Deflate` is what the server is willing to do, an
:class:`Agreement` what it and one client settled on; :class:`Deflater` and :class:`Inflater` act on that.

Without context takeover, the default, nothing is kept between two messages: an idle connection holds no zlib memory,
and a message compressed once may be sent to many peers. With context takeover the state moves on with each message,
so a Deflater must be used in wire order and by one thread at a time.

Some peers keep their window although they agreed not to, such as Safari 15.0 to 15.3: their second message refers to
the first. No header tells them from others, their messages do: a reference beyond the beginning of a message is an
error of zlib. So the first few messages are watched (:class:`_Watch`). A peer that refers back is understood from then
on, as if context takeover was agreed on, for about 40 KiB; for all others nothing is kept after the watch. While it
lasts it keeps what the peer sent so far, 32 KiB at most.

Pure: values in, values out.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from ..exceptions import MessageTooBig, ProtocolError

NAME = "permessage-deflate"
NEVER = (1 << 31) - 1  #: Bytes of a message that is too long for any threshold.
_TAIL = b"\x00\x00\xff\xff"  # Ends each message, never sent (RFC 7692 7.2.1).
_MAX_STREAMS = 16  # In one message; each costs a copy of the rest. Real senders have one or two.
_MAX_WINDOW_BITS = 15
#: Messages in which a peer that keeps its window shows it. Two of one application without three equal bytes are rare.
WATCHED = 8
# zlib deflates with a window of 512 bytes at least (RFC 7692 7.1.2.1 counts from 8); what it inflates may be less.
_MIN_DEFLATE_WINDOW_BITS = 9
_MIN_INFLATE_WINDOW_BITS = 8

#: One extension of a Sec-WebSocket-Extensions header: its name, then its parameters with None for a bare one.
Extension = tuple[str, list[tuple[str, "str | None"]]]


@dataclass(frozen=True)
class Deflate:
    """What the server does about permessage-deflate, when a client offers it.

    Args:
        level: effort from 1 (fast) to 9 (small). Default 6, zlib's own.
        threshold: bytes below which a message is sent plain. Default 1024.
        server_context_takeover: keep our compression window from message to message if the client allows it:
            smaller messages for about 260 KiB per connection (7.1.1.1). Default False.
        client_context_takeover: let the client keep its own, for about 40 KiB per connection (7.1.1.2). Default False.
        server_max_window_bits: our window, as a power of two, 9 to 15 (7.1.2.1). Default 15.
        client_max_window_bits: the client's window, 8 to 15, when it leaves us the choice (7.1.2.2). Default 15.

    Raises:
        ValueError: a value outside its range.
    """

    level: int = 6
    threshold: int = 1024
    server_context_takeover: bool = False
    client_context_takeover: bool = False
    server_max_window_bits: int = _MAX_WINDOW_BITS
    client_max_window_bits: int = _MAX_WINDOW_BITS

    def __post_init__(self) -> None:
        _check_range("level", self.level, 1, 9)
        _check_range("threshold", self.threshold, 0, None)
        _check_range("server_max_window_bits", self.server_max_window_bits, _MIN_DEFLATE_WINDOW_BITS, _MAX_WINDOW_BITS)
        _check_range("client_max_window_bits", self.client_max_window_bits, _MIN_INFLATE_WINDOW_BITS, _MAX_WINDOW_BITS)

    def negotiate(self, offers: Iterable[Extension]) -> Agreement | None:
        """Return what comes of a client's offers, or None; the first acceptable one counts (RFC 7692 5.1)."""
        for name, parameters in offers:
            if name == NAME:
                agreement = self._accept(parameters)
                if agreement is not None:
                    return agreement
        return None

    def _accept(self, parameters: list[tuple[str, str | None]]) -> Agreement | None:
        """Answer one offer; None declines what is malformed or cannot be kept (RFC 7692 7.1)."""
        offered = dict(parameters)
        if len(offered) != len(parameters):
            return None  # The same parameter twice.
        server_bits, client_bits = self.server_max_window_bits, _MAX_WINDOW_BITS
        client_bits_in_answer = False
        for name, value in parameters:
            bits = _parse_window_bits(value)
            if name in ("server_no_context_takeover", "client_no_context_takeover") and value is None:
                continue
            if name == "server_max_window_bits" and bits is not None:
                server_bits = min(server_bits, bits)
            elif name == "client_max_window_bits" and (value is None or bits is not None):
                client_bits = min(self.client_max_window_bits, bits or _MAX_WINDOW_BITS)
                client_bits_in_answer = value is not None or client_bits < _MAX_WINDOW_BITS
            else:
                return None
        if server_bits < _MIN_DEFLATE_WINDOW_BITS:
            return None
        return Agreement(
            self,
            server_context_takeover=self.server_context_takeover and "server_no_context_takeover" not in offered,
            client_context_takeover=self.client_context_takeover and "client_no_context_takeover" not in offered,
            server_max_window_bits=server_bits,
            client_max_window_bits=client_bits,
            extension=self._answer(offered, server_bits, client_bits if client_bits_in_answer else None),
        )

    def _answer(self, offered: dict[str, str | None], server_bits: int, client_bits: int | None) -> str:
        parts = [NAME]
        if not self.server_context_takeover or "server_no_context_takeover" in offered:
            parts.append("server_no_context_takeover")
        if not self.client_context_takeover or "client_no_context_takeover" in offered:
            parts.append("client_no_context_takeover")
        if server_bits < _MAX_WINDOW_BITS or "server_max_window_bits" in offered:
            parts.append(f"server_max_window_bits={server_bits}")
        if client_bits is not None:
            parts.append(f"client_max_window_bits={client_bits}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Agreement:
    """What server and client settled on.

    Attributes:
        deflate: the server's side of it: level and threshold.
        extension: the value for Sec-WebSocket-Extensions in the 101.
    """

    deflate: Deflate
    server_context_takeover: bool
    client_context_takeover: bool
    server_max_window_bits: int
    client_max_window_bits: int
    extension: str

    @property
    def compressed_from(self) -> int:
        """Bytes of the shortest message that is compressed, at most :data:`NEVER`; an empty one never is."""
        return min(max(self.deflate.threshold, 1), NEVER)

    @property
    def compression(self) -> int:
        """The way in which the server compresses a message alone, as a number: peers with the same get the same bytes.
        """
        return self.deflate.level << 4 | self.server_max_window_bits


def compress_alone(octets: bytes, compression: int) -> bytes:
    """Return the compressed payload of a message that is not empty, from an empty window.

    Args:
        octets: the message.
        compression: as of :attr:`Agreement.compression`.
    """
    return Deflater(compression >> 4, compression & 15, context_takeover=False).deflate(octets)


class Deflater:
    """Compresses the payloads of one direction of one connection (RFC 7692 7.2.1)."""

    __slots__ = ("_level", "_window_bits", "_context_takeover", "_compressor")

    def __init__(self, level: int, window_bits: int, context_takeover: bool) -> None:
        self._level = level
        self._window_bits = window_bits
        self._context_takeover = context_takeover
        self._compressor: zlib._Compress | None = None

    def deflate(self, octets: bytes) -> bytes:
        """Return the compressed payload of a message that is not empty."""
        compressor = self._compressor or zlib.compressobj(self._level, zlib.DEFLATED, -self._window_bits)
        if self._context_takeover:
            self._compressor = compressor
        data = compressor.compress(octets) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return data[:-len(_TAIL)]

    def restart(self) -> None:
        """Forget the window. The peer's still holds what came before, which does no harm (RFC 7692 7.2.3.3)."""
        self._compressor = None


class _Watch:
    """What is kept of a peer's messages as long as it is not clear whether it keeps its window.

    Args:
        messages: how many to watch.
        size: of the window, in bytes.
    """

    __slots__ = ("_left", "_size", "_before", "_compressed", "_inflated")

    def __init__(self, messages: int, size: int) -> None:
        self._left = messages
        self._size = size
        self._before = b""  # The messages before the one under way, as far as the window goes.
        self._compressed = bytearray()  # The message under way so far, ...
        self._inflated = bytearray()  # ... and what became of it, as far as the window goes.

    def note(self, compressed: bytes, inflated: bytearray, final: bool) -> bool:
        """Take the next piece of a message, which needed no window; tell whether to go on watching."""
        self._inflated += inflated
        del self._inflated[:-self._size]
        if not final:
            self._compressed += compressed
            return len(self._compressed) <= 2 * self._size  # A message of empty blocks would be kept for nothing.
        self._before = (self._before + self._inflated)[-self._size:]
        self._compressed, self._inflated = bytearray(), bytearray()
        self._left -= 1
        return self._left > 0

    def decompressor(self, window_bits: int) -> zlib._Decompress | None:
        """Return one that has the window and the message so far; None when that makes no difference."""
        if not self._before or len(self._inflated) == self._size:
            return None
        decompressor = zlib.decompressobj(-window_bits, self._before)
        decompressor.decompress(self._compressed)
        return decompressor


class Inflater:
    """Inflates the payloads of one direction of one connection, piece by piece (RFC 7692 7.2.2).

    Args:
        window_bits: the sender's window, as a power of two.
        context_takeover: whether it keeps it from message to message.
        watched: how many messages to watch, if it does not: it may keep it all the same.
    """

    __slots__ = ("_window_bits", "_context_takeover", "_decompressor", "_streams", "_watched", "_watch")

    def __init__(self, window_bits: int, context_takeover: bool, watched: int = 0) -> None:
        # zlib's own clients use 9 where 8 was agreed on, so never look through a smaller window.
        self._window_bits = max(window_bits, _MIN_DEFLATE_WINDOW_BITS)
        self._context_takeover = context_takeover
        self._decompressor: zlib._Decompress | None = None
        self._streams = 0  # That ended within the message under way.
        self._watched = 0 if context_takeover else watched
        self._watch: _Watch | None = None  # Made for the first message.

    def inflate(self, octets: bytes, final: bool, limit: int | None) -> bytes:
        """Inflate the next piece of a message.

        Args:
            octets: the piece.
            final: whether the message ends with it.
            limit: the bytes it may become; None for any number. No more than that is ever inflated.

        Raises:
            MessageTooBig: it becomes more.
            ProtocolError: it is no DEFLATE data.
        """
        if self._watched:
            self._watch = _Watch(self._watched, 1 << self._window_bits)
            self._watched = 0
        result = bytearray()
        rest = octets + _TAIL if final else octets
        while rest:
            decompressor = self._decompressor or zlib.decompressobj(-self._window_bits)
            self._decompressor = decompressor
            try:
                # One byte more than allowed shows that there is more; 0 would mean without limit.
                result += decompressor.decompress(rest, 0 if limit is None else limit - len(result) + 1)
            except zlib.error as error:
                self._look_back(error)
                continue
            if limit is not None and len(result) > limit:
                raise MessageTooBig("compressed message that inflates to more than the limit")
            rest = decompressor.unused_data
            if decompressor.eof:  # The sender finished its stream within the message (RFC 7692 7.2.3.4).
                self._decompressor = self._watch = None
                self._streams += 1
                if self._streams > _MAX_STREAMS:
                    raise ProtocolError(f"compressed message of more than {_MAX_STREAMS} DEFLATE streams")
        if self._watch is not None and not self._watch.note(octets, result, final):
            self._watch = None
        if final:
            self._streams = 0
            if not self._context_takeover:
                self._decompressor = None
        return bytes(result)

    def _look_back(self, error: zlib.error) -> None:
        """Go on with the window that the peer seems to have kept.

        Raises:
            ProtocolError: that cannot be what is wrong.
        """
        decompressor = None if self._watch is None else self._watch.decompressor(self._window_bits)
        if decompressor is None:
            raise ProtocolError(f"compressed message is not DEFLATE data: {error}") from error
        self._decompressor, self._watch, self._context_takeover = decompressor, None, True


def parse_extensions(value: str) -> list[Extension]:
    """Read a Sec-WebSocket-Extensions header (RFC 6455 9.1); whatever does not follow its grammar is never accepted."""
    extensions = []
    for part in _split_quoted(value, ","):
        name, *fields = (field.strip(" \t") for field in _split_quoted(part, ";"))
        parameters: list[tuple[str, str | None]] = []
        for field in fields:
            key, equals, text = field.partition("=")
            text = text.strip(" \t")
            if len(text) > 1 and text[0] == text[-1] == '"':
                text = text[1:-1]
            parameters.append((key.strip(" \t"), text if equals else None))
        if name:
            extensions.append((name, parameters))
    return extensions


@functools.lru_cache(maxsize=64)  # Browsers all send the same few; nobody's header is longer than some KiB.
def agree(deflate: Deflate, offers: str) -> Agreement | None:
    """Return what comes of a Sec-WebSocket-Extensions header, or None."""
    return deflate.negotiate(parse_extensions(offers))


def _split_quoted(value: str, separator: str) -> list[str]:
    parts: list[str] = []
    part: list[str] = []
    for number, text in enumerate(value.split('"')):
        if number:
            part.append('"')
        if number % 2:  # Within quotation marks.
            part.append(text)
            continue
        first, *rest = text.split(separator)
        part.append(first)
        for text in rest:
            parts.append("".join(part))
            part = [text]
    return [*parts, "".join(part)]


def _parse_window_bits(value: str | None) -> int | None:
    """Return 8 to 15, or None: no leading zeros, nothing else (RFC 7692 7.1.2.1)."""
    if value in ("8", "9", "10", "11", "12", "13", "14", "15"):
        return int(value)
    return None


def _check_range(name: str, value: int, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} is {value!r}, it must be {bounds}")
