"""Fuzzes what a peer can do to a connection: frames, messages, compression and the closing handshake.

An input is one octet of options, one that chooses the chunks, and what comes from the wire: raw bytes, or
instructions for :func:`build` that reach what mutations of compressed and masked bytes do not find.

Each input goes through the C extension and through Python, one of them whole and the other in chunks, which go where
the protocol wants them. What has to hold is in :func:`test_one_input`. Run it with ``make fuzz``, or on one input with
``python tests/fuzz/fuzz_parser.py FILE``.
"""

from __future__ import annotations

import functools
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

from runner import run  # noqa: E402
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, client_frame, client_header, give  # noqa: E402

with atheris.instrument_imports(include=["wsthread"]):
    from wsthread.exceptions import InvalidPayload, MessageTooBig, ProtocolError
    from wsthread.speedups import python_versions
    from wsthread.wire import frames, messages
    from wsthread.wire.deflate import Agreement, Deflate, Inflater, parse_extensions
    from wsthread.wire.frames import Opcode
    from wsthread.wire.messages import Message, MessageReader, PreparedMessage
    from wsthread.wire.protocol import Close, Protocol, parse_close

LIMITS = (None, 0, 1, 5, 125, 300, 1000, 70_000)
COMPRESSED, CLIENT_TAKEOVER, SERVER_TAKEOVER, SMALL_WINDOW, BUILT = 0x08, 0x10, 0x20, 0x40, 0x80
#: The most a parser may keep when it asks for more: a control frame without its last octet (RFC 6455 5.2, 5.5).
MAX_KEPT = 2 + 4 + 125 - 1
REPEATS = (1, 3, 50, 400)
#: Where the package uses what the C extension replaces: modules, and the names there and in wsthread.speedups.
USES = [
    (frames, "mask", "mask"), (frames, "mask_in_place", "mask_in_place"), (frames, "read_messages", "read_messages"),
    (messages, "encode_short_message", "encode_message"),
]
#: What it uses as it is installed. What has no extension is tested twice in Python.
INSTALLED = {name: getattr(module, name_there) for module, name_there, name in USES}
messages._LEAST_ROOM = 1  # Inputs are small.
ZERO_KEY, SOME_KEY = bytes(4), b"\x37\xfa\x21\x3d"


def test_one_input(data: bytes) -> None:
    """Check one input."""
    if len(data) < 2:
        return
    limit = LIMITS[data[0] & 7]
    agreement = make_agreement(data[0] & (COMPRESSED | CLIENT_TAKEOVER | SERVER_TAKEOVER | SMALL_WINDOW))
    stream = build(data[2:], agreement) if data[0] & BUILT else data[2:]

    in_c = bool(data[1] & 1)
    events, error = _receive(limit, agreement, [stream], in_c)
    again, other_error = _receive(limit, agreement, _chunks(stream, data[1]), not in_c)
    assert events == again, "the chunks or the extension change the events"
    assert (error is None) == (other_error is None), f"they change the ending: {error!r}, {other_error!r}"
    if limit is None and agreement is None:
        # Otherwise a message may break two rules, and which of them is seen first depends on what has come.
        assert type(error) is type(other_error), f"they change the error: {error!r}, {other_error!r}"
    if events:
        _check_round_trip(events, agreement, prepared=data[1] % 3)


def choose(in_c: bool) -> None:
    """Let the package use the extension, if it is there, or Python."""
    versions = INSTALLED if in_c else python_versions
    for module, name_there, name in USES:
        setattr(module, name_there, versions[name])


@functools.cache
def make_agreement(options: int) -> Agreement | None:
    if not options & COMPRESSED:
        return None
    bits = 9 if options & SMALL_WINDOW else 15
    deflate = Deflate(
        level=1, threshold=4, server_max_window_bits=bits, client_max_window_bits=bits,
        client_context_takeover=bool(options & CLIENT_TAKEOVER),
        server_context_takeover=bool(options & SERVER_TAKEOVER))
    agreement = deflate.negotiate(parse_extensions("permessage-deflate; client_max_window_bits"))
    assert agreement is not None
    return agreement


def _receive(
    limit: int | None, agreement: Agreement | None, chunks: Iterator[bytes] | list[bytes], in_c: bool,
) -> tuple[list[Message], ProtocolError | None]:
    """Return the events and what ended them; anything but a ProtocolError is a finding."""
    choose(in_c)
    protocol = Protocol(max_message_size=limit, agreement=agreement)
    events: list[Message] = []
    for chunk in chunks:
        while chunk:
            chunk = give(protocol, protocol.receive_data, chunk)
            try:
                while (event := protocol.next_event()) is not None:
                    events.append(event)
                    _check_event(event, limit, protocol)
            except ProtocolError as error:
                _check_error(error, limit, protocol)
                return events, error
            _check_kept(protocol, limit)
    return events, None


def _check_event(event: Message, limit: int | None, protocol: Protocol) -> None:
    opcode, payload = event
    assert isinstance(payload, str if opcode is Opcode.TEXT else bytes)
    if opcode >= Opcode.CLOSE:
        assert len(payload) <= 125
        assert (opcode is Opcode.CLOSE) == (protocol.close_received is not None), "an event after Close"
    else:
        assert opcode in (Opcode.TEXT, Opcode.BINARY)
        octets = payload.encode() if isinstance(payload, str) else payload
        assert limit is None or len(octets) <= limit, "a message over the limit"


def _check_error(error: ProtocolError, limit: int | None, protocol: Protocol) -> None:
    assert type(error) in (ProtocolError, InvalidPayload, MessageTooBig)
    assert limit is not None or not isinstance(error, MessageTooBig)
    assert protocol.next_event() is None, "an event after the end"
    protocol.receive_data(b"\x81\x80\x00\x00\x00\x00")
    assert protocol.next_event() is None, "an event after the end"
    assert protocol.send_close(Close(error.code, error.reason)), "an error that a Close cannot tell"


def _check_kept(protocol: Protocol, limit: int | None) -> None:
    reader = protocol._reader
    if not protocol.close_received:
        assert len(reader._frames.rest) - reader._frames._start <= MAX_KEPT, "the parser keeps payload"
    if limit is not None and reader._collector is not None:
        room = 0 if reader._room is None else len(reader._room)
        assert reader._collector._octets.tell() - room <= reader._size <= limit, "an unfinished message over the limit"
        assert reader._size + room <= limit, "room for a message over the limit"


def _chunks(stream: bytes, choice: int) -> Iterator[bytes]:
    """Cut a stream: octet by octet where it is short and the choice is, else into a few pseudo-random chunks."""
    start, most = 0, 1 if choice < 8 and len(stream) < 200 else 1 + len(stream) * (4 + choice % 8) // 16
    while start < len(stream):
        choice = (choice * 5 + 3) & 0xFF
        end = start + 1 + choice * most // 256
        yield stream[start:end]
        start = end


def _check_round_trip(events: list[Message], agreement: Agreement | None, prepared: int) -> None:
    """Send back what came, and read it as the client would: every third message or so as a prepared one."""
    sender = Protocol(agreement=agreement)
    inflater = None
    if agreement is not None:
        inflater = Inflater(agreement.server_max_window_bits, agreement.server_context_takeover)
    reader = MessageReader(masked=False, inflater=inflater)
    for i, event in enumerate(events):
        opcode, payload = event
        if opcode is Opcode.CLOSE:
            assert isinstance(payload, bytes)
            data = sender.send_close(parse_close(payload))
        elif opcode is Opcode.PING or opcode is Opcode.PONG:
            assert isinstance(payload, bytes)
            data = sender.send_ping(payload) if opcode is Opcode.PING else sender.send_pong(payload)
        elif i % 3 == prepared:
            data = sender.send_prepared(PreparedMessage(payload))
        else:
            data = sender.send_message(payload)
        reader.feed(data)
        assert reader.next_message() == event, "not what was sent"
        assert reader.next_message() is None, "more than was sent"


def build(plan: bytes, agreement: Agreement | None) -> bytes:
    """Make frames out of instructions, each three octets and a payload.

    The first octet is that of the frame, the second tells what to do to the payload, the third its size.
    """
    bits = 15 if agreement is None else agreement.client_max_window_bits
    compressor, stream, start = None, b"", 0
    while start + 3 <= len(plan) and len(stream) < 1 << 18:
        first, how, size = plan[start:start + 3]
        payload = plan[start + 3:start + 3 + size]
        start += 3 + size
        if how & 3:
            payload *= REPEATS[how >> 2 & 3]
            if compressor is None or how & 0x20:
                compressor = zlib.compressobj(how >> 6, zlib.DEFLATED, -bits)
            payload = compressor.compress(payload)
            if how & 3 == 3:  # A stream that ends within the message (RFC 7692 7.2.3.4).
                payload += compressor.flush() + b"\0"
                compressor = None
            else:  # A message that ends here, or a fragment of one.
                payload += compressor.flush(zlib.Z_SYNC_FLUSH)
                payload = payload[:-4] if how & 3 == 1 else payload
        opcode, fin, rsv = first & 0x0F, first >= 0x80, first >> 4 & 7
        if how & 0x10 and len(payload) < 200:
            stream += client_frame(opcode, payload, fin, rsv, SOME_KEY)
        elif how & 0x10:
            stream += client_header(opcode, len(payload) + (size << 24), fin, rsv, ZERO_KEY) + payload
        else:
            stream += client_header(opcode, len(payload), fin, rsv, ZERO_KEY) + payload
    return stream


def seeds() -> Iterator[bytes]:
    raw = [
        client_frame(TEXT, b"Hello"), client_frame(TEXT, b"Hello", mask=ZERO_KEY), client_frame(TEXT),
        client_frame(TEXT, b"Hel", fin=False) + client_frame(PING, b"!") + client_frame(CONTINUATION, b"lo"),
        client_frame(TEXT, "κόσμε".encode()), client_frame(TEXT, b"\xce\xba\xed\xa0\x80"),
        client_frame(BINARY, bytes(126)), client_frame(BINARY, bytes(300), length_form=64),
        client_frame(BINARY, bytes(4), fin=False) + client_frame(CONTINUATION, bytes(4)),
        client_frame(PING, bytes(125)), client_frame(PING, bytes(126)), client_frame(PONG), client_frame(CLOSE),
        client_frame(CLOSE, b"\x03\xe8bye"), client_frame(CLOSE, b"\x03"), client_frame(CLOSE, b"\x03\xed"),
        client_frame(CLOSE, b"\x03\xe8\xff"), client_frame(CONTINUATION, b"?"), client_frame(3), client_frame(11),
        client_frame(TEXT, fin=False) + client_frame(TEXT), client_frame(PING, fin=False),
        client_frame(TEXT, b"plain", mask=None), client_header(BINARY, 1 << 63), client_header(BINARY, (1 << 63) - 1),
        *(client_frame(TEXT, rsv=rsv) for rsv in range(8)),
        # RFC 7692 7.2.3.1 to 7.2.3.5, zero masking keys.
        client_frame(TEXT, bytes.fromhex("f248cdc9c90700"), rsv=4, mask=ZERO_KEY),
        client_frame(TEXT, bytes.fromhex("f248cd"), rsv=4, fin=False) + client_frame(0, bytes.fromhex("c9c90700")),
        client_frame(TEXT, bytes.fromhex("f248cdc9c90700"), rsv=4) + client_frame(TEXT, b"\xf2\0\x11\0\0", rsv=4),
        client_frame(TEXT, bytes.fromhex("000500faff48656c6c6f00"), rsv=4, mask=ZERO_KEY),
        client_frame(TEXT, bytes.fromhex("f348cdc9c9070000"), rsv=4, mask=ZERO_KEY),
        client_frame(TEXT, bytes.fromhex("f248050000 00ffffcac9c90700"), rsv=4, mask=ZERO_KEY),
        client_frame(BINARY, b"\x03\0" * 40 + b"\0", rsv=4, mask=ZERO_KEY),
    ]
    for stream in raw:
        for options in 0x00, 0x03, 0x04, 0x08, 0x1e, 0x3f, 0x7b:
            yield bytes((options, len(stream) & 0xFF)) + stream
    plans = [
        b"\xc1\x01\x05Hello", b"\xc2\x0d\x01a", b"\x42\x0a\x03abc\x00\x02\x03def\x89\x00\x01!\x80\x01\x01g",
        b"\xc1\x03\x05Hello\xc1\x01\x05Hello",
        b"\xc1\x01\x05Hello\x81\x00\x03abc\xc1\x01\x05Hello\x88\x00\x02\x03\xe8",
        b"\xc2\x09\x10" + bytes(range(16)), b"\x41\x32\x02\xce\xba\x80\x01\x02\xed\xa0", b"\xc2\x10\x05Hello",
    ]
    for plan in plans:
        for options in 0x88, 0x8f, 0xbf, 0xfe, 0x9c, 0x80:
            yield bytes((options, len(plan))) + plan


if __name__ == "__main__":
    run("parser", test_one_input, seeds(), max_length=600)
