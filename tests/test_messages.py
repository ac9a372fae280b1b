"""Messages: fragments, control frames between them, UTF-8 and the size limit (RFC 6455 5.4, 5.6, 8.1)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Stream, bounded, cuts, junk, streams
from wire import (
    BINARY, CLOSE, CONTINUATION, MASK, PING, PONG, RSV1, TEXT, at, by_octets, client_frame, client_header, deflated,
    fragments, inflated, pump, pump_in_place, server_frames, whole,
)

from wsthread.exceptions import InvalidPayload, MessageTooBig, ProtocolError, RateExceeded
from wsthread.wire.deflate import Agreement, Deflate, Deflater, Inflater
from wsthread.wire.frames import Opcode
from wsthread.wire.messages import MessageReader, PreparedMessage, encode_compressed, encode_message, to_octets

Events = list[tuple[int, "str | bytes"]]


def read(chunks: Iterable[bytes], **options: Any) -> tuple[Events, Exception | None]:
    """Return what a new reader makes of the bytes: opcodes and payloads, and the error that ended it."""
    reader = MessageReader(**options)
    messages, error = pump(reader.feed, reader.next_message, chunks)
    return [(message.opcode, message.payload) for message in messages], error


# Putting together

PING_A, PONG_B = client_frame(PING, b"a"), client_frame(PONG, b"b")
CASES: list[tuple[str, bytes, Events]] = [
    ("text", client_frame(TEXT, b"Hello"), [(TEXT, "Hello")]),
    ("binary", client_frame(BINARY, b"\x00\xff"), [(BINARY, b"\x00\xff")]),
    ("empty text", client_frame(TEXT), [(TEXT, "")]),
    ("empty binary", client_frame(BINARY), [(BINARY, b"")]),
    ("control frames", PING_A + PONG_B + client_frame(CLOSE, b"\x03\xe8"),
     [(PING, b"a"), (PONG, b"b"), (CLOSE, b"\x03\xe8")]),
    ("several", client_frame(TEXT, b"a") + client_frame(BINARY, b"b") + client_frame(TEXT, b"c"),
     [(TEXT, "a"), (BINARY, b"b"), (TEXT, "c")]),
    ("two fragments", fragments(TEXT, b"Hel", b"lo"), [(TEXT, "Hello")]),
    ("binary fragments", fragments(BINARY, b"\xff", b"", b"\x00"), [(BINARY, b"\xff\x00")]),
    ("empty fragments", fragments(TEXT, b"", b"", b""), [(TEXT, "")]),
    ("empty last fragment", fragments(TEXT, b"abc", b""), [(TEXT, "abc")]),
    ("many fragments", fragments(BINARY, *(b"x" for _ in range(300))), [(BINARY, b"x" * 300)]),
    ("fragmented twice", fragments(TEXT, b"a", b"b") + fragments(BINARY, b"c", b"d"), [(TEXT, "ab"), (BINARY, b"cd")]),
    ("control frames between fragments",
     client_frame(TEXT, b"x", fin=False) + PING_A + client_frame(CONTINUATION, b"y", fin=False) + PONG_B + PING_A
     + client_frame(CONTINUATION, b"z") + PONG_B,
     [(PING, b"a"), (PONG, b"b"), (PING, b"a"), (TEXT, "xyz"), (PONG, b"b")]),
    ("Close between fragments", client_frame(BINARY, b"x", fin=False) + client_frame(CLOSE), [(CLOSE, b"")]),
    ("a code point in two fragments", fragments(TEXT, b"\xc3", b"\xa9"), [(TEXT, "\xe9")]),
    ("a code point in four fragments", fragments(TEXT, b"\xf0", b"\x9f", b"\x98", b"\x80"), [(TEXT, "\U0001f600")]),
    ("a ping in a code point",
     client_frame(TEXT, b"\xe2", fin=False) + PING_A + client_frame(CONTINUATION, b"\x82\xac"),
     [(PING, b"a"), (TEXT, "\u20ac")]),
    ("line ends stay", fragments(TEXT, b"a\r", b"\nb\rc\n"), [(TEXT, "a\r\nb\rc\n")]),
    ("BOM and NUL stay", fragments(TEXT, b"\xef\xbb\xbf", b"\x00"), [(TEXT, "\ufeff\x00")]),
    ("large", client_frame(BINARY, bytes(70000)) + client_frame(TEXT, b"a" * 70000),
     [(BINARY, bytes(70000)), (TEXT, "a" * 70000)]),
]


@pytest.mark.parametrize(("name", "data", "events"), CASES, ids=[row[0] for row in CASES])
def test_messages(name: str, data: bytes, events: Events) -> None:
    """The same messages come out whole, in octets and with more behind them."""
    for chunks in whole(data), by_octets(data):
        found, error = read(chunks)
        assert (found, error) == (events, None)
        assert [type(payload) for _, payload in found] == [type(payload) for _, payload in events]
    assert read([data + PING_A[:-1]]) == (events, None)
    assert read([data + PING_A]) == ([*events, (PING, b"a")], None)


def test_message_opcodes_are_enums() -> None:
    """Every opcode is an Opcode, of fragmented messages too."""
    reader = MessageReader()
    reader.feed(client_frame(PING) + client_frame(TEXT) + fragments(BINARY, b"", b""))
    for expected in Opcode.PING, Opcode.TEXT, Opcode.BINARY:
        message = reader.next_message()
        assert message is not None and message.opcode is expected


def test_unmasked_direction() -> None:
    """A reader for what a server sends takes unmasked frames only."""
    assert read([client_frame(TEXT, b"a", mask=None)], masked=False) == ([(TEXT, "a")], None)
    assert type(read([client_frame(TEXT, b"a")], masked=False)[1]) is ProtocolError


ORDER = [
    ("continuation first", client_frame(CONTINUATION, b"x"), []),
    ("open continuation first", client_frame(CONTINUATION, fin=False), []),
    ("continuation after a message", client_frame(TEXT, b"a") + client_frame(CONTINUATION), [(TEXT, "a")]),
    ("continuation after fragments", fragments(TEXT, b"a", b"b") + client_frame(CONTINUATION), [(TEXT, "ab")]),
    ("text in a text", client_frame(TEXT, b"a", fin=False) + client_frame(TEXT, b"b"), []),
    ("binary in a text", client_frame(TEXT, b"a", fin=False) + client_frame(BINARY, b"b", fin=False), []),
    ("text in an empty binary", client_frame(BINARY, b"", fin=False) + client_frame(TEXT, b"b"), []),
    ("RSV1 without an extension", client_frame(TEXT, b"a", rsv=RSV1), []),
]


@pytest.mark.parametrize(("name", "data", "events"), ORDER, ids=[row[0] for row in ORDER])
def test_order(name: str, data: bytes, events: Events) -> None:
    """Fragments of two messages never mix (RFC 6455 5.4)."""
    for chunks in whole(data), by_octets(data), whole(data + PING_A):
        found, error = read(chunks)
        assert (found, type(error)) == (events, ProtocolError)


# UTF-8

def length_of_valid_start(octets: bytes) -> int:
    """Return how many octets may begin well-formed UTF-8: table 3-7 of the Unicode Standard, as a machine."""
    continuation = (0x80, 0xBF)
    after: dict[int, list[tuple[int, int]]] = {first: [] for first in range(0x80)}
    after |= {first: [continuation] for first in range(0xC2, 0xE0)}
    after |= {first: [continuation, continuation] for first in range(0xE1, 0xF0)}
    after |= {0xE0: [(0xA0, 0xBF), continuation], 0xED: [(0x80, 0x9F), continuation]}
    after |= {first: [continuation] * 3 for first in range(0xF1, 0xF4)}
    after |= {0xF0: [(0x90, 0xBF), continuation, continuation], 0xF4: [(0x80, 0x8F), continuation, continuation]}
    due: list[tuple[int, int]] = []
    for i, octet in enumerate(octets):
        if due:
            low, high = due[0]
            if not low <= octet <= high:
                return i
            due = due[1:]
        elif octet in after:
            due = after[octet]
        else:
            return i
    return len(octets)


EDGES = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)


@pytest.mark.parametrize("first", range(256))
def test_utf8_octet_by_octet(first: int) -> None:
    """The octet that cannot be UTF-8 is refused when it comes: no octet late, and not one too early."""
    header = client_header(TEXT, 100, mask=bytes(4))
    tails = itertools.chain(
        ((second, 0x80, 0x80) for second in EDGES),
        ((second, third, 0x80) for second in (0x80, 0x90, 0xA0) for third in (0x7F, 0xBF, 0xC0)),
        ((second, 0xBF, fourth) for second in (0x80, 0x90) for fourth in (0x7F, 0xBF, 0xC0)),
    )
    for tail in tails:
        octets = bytes([first, *tail])
        valid = length_of_valid_start(octets)
        reader = MessageReader()
        assert pump(reader.feed, reader.next_message, [header, *by_octets(octets[:valid])]) == ([], None)
        if valid < len(octets):
            _, error = pump(reader.feed, reader.next_message, [octets[valid:valid + 1]])
            assert type(error) is InvalidPayload


@pytest.mark.parametrize("octets", [b"\xed\xa0", b"\xed\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf"])
def test_surrogate(octets: bytes) -> None:
    """Half a surrogate is enough, which CPython's incremental decoder alone would wait for more of."""
    header = client_header(TEXT, 100, mask=bytes(4))
    for chunks in [header, octets], [header, octets[:1], octets[1:2]], by_octets(fragments(TEXT, octets, b"")):
        assert type(read(chunks)[1]) is InvalidPayload
    assert read([header, octets[:1]]) == ([], None)


INVALID = [
    ("after valid text", "68656c6c6f20ff"), ("lone continuation", "80"), ("overlong slash", "c0af"),
    ("surrogate", "eda080"), ("above U+10FFFF", "f4908080"), ("five octets", "f888808080"),
    ("cut short by ASCII", "e28261"),
]


@pytest.mark.parametrize("octets", [bytes.fromhex(row[1]) for row in INVALID], ids=[row[0] for row in INVALID])
def test_invalid_text(octets: bytes) -> None:
    """Text that is not UTF-8 is refused in one frame, in fragments, in octets; the same octets are fine as binary."""
    in_ones = [octets[i:i + 1] for i in range(len(octets))]
    for data in client_frame(TEXT, octets), fragments(TEXT, octets, b""), fragments(TEXT, *in_ones, b"more"):
        for chunks in whole(data), by_octets(data), whole(data + PING_A):
            found, error = read(chunks)
            assert (found, type(error)) == ([], InvalidPayload)
    assert read([client_frame(BINARY, octets), fragments(BINARY, *in_ones)]) == ([(BINARY, octets)] * 2, None)


@pytest.mark.parametrize("octets", [b"\xc3", b"ab\xe2\x82", b"\xf0\x9f\x98"])
def test_incomplete_text(octets: bytes) -> None:
    """A code point that is not complete is wrong at the end of the message, not before."""
    assert read(by_octets(client_frame(TEXT, octets, fin=False))) == ([], None)
    for data in client_frame(TEXT, octets), fragments(TEXT, octets, b""), fragments(TEXT, b"", octets):
        for chunks in whole(data), by_octets(data):
            found, error = read(chunks)
            assert (found, type(error)) == ([], InvalidPayload)


def test_text_does_not_go_on_in_the_next_message() -> None:
    """Each message starts afresh: what one left incomplete is no part of the next."""
    data = fragments(TEXT, b"a", b"\xc3\xa9") + fragments(TEXT, b"\xa9", b"")
    found, error = read([data])
    assert (found, type(error)) == ([(TEXT, "a\xe9")], InvalidPayload)


# The limit

LIMITS = [
    ("exact", client_frame(BINARY, bytes(10)), True),
    ("one more", client_frame(BINARY, bytes(11)), False),
    ("octets count, not characters", client_frame(TEXT, "\xe9".encode() * 5), True),
    ("octets count, one more", client_frame(TEXT, "\xe9".encode() * 5 + b"a"), False),
    ("fragments, exact", fragments(BINARY, bytes(4), bytes(6), b""), True),
    ("fragments, one more", fragments(BINARY, bytes(4), bytes(6), bytes(1)), False),
    ("text fragments, exact", fragments(TEXT, b"\xc3", b"\xa9", b"12345678"), True),
    ("text fragments, one more", fragments(TEXT, b"\xc3", b"\xa9", b"123456789"), False),
    ("small fragments, exact", fragments(BINARY, *(b"x" for _ in range(10))), True),
    ("small fragments, one more", fragments(BINARY, *(b"x" for _ in range(11))), False),
    ("large after empty fragments", fragments(BINARY, b"", b"", bytes(11)), False),
    ("each message has its own", fragments(BINARY, bytes(9), b"x") + fragments(BINARY, bytes(9), b"x"), True),
    ("control frames do not count",
     client_frame(BINARY, bytes(5), fin=False) + client_frame(PING, bytes(125)) + client_frame(CONTINUATION, bytes(5)),
     True),
]


@pytest.mark.parametrize(("name", "data", "allowed"), LIMITS, ids=[row[0] for row in LIMITS])
def test_max_size(name: str, data: bytes, allowed: bool) -> None:
    """The limit holds over the whole message, in octets; without it everything passes."""
    for chunks in whole(data), by_octets(data):
        _, error = read(chunks, max_size=10)
        assert type(error) is (type(None) if allowed else MessageTooBig)
    assert read([data])[1] is None


def test_too_big_before_its_end() -> None:
    """What exceeds the limit is refused before its last fragment, and a frame by its header alone."""
    assert type(read([client_header(BINARY, 11)], max_size=10)[1]) is MessageTooBig
    data = client_frame(BINARY, bytes(6), fin=False) + client_frame(CONTINUATION, bytes(9), fin=False)
    assert type(read([data], max_size=10)[1]) is MessageTooBig
    assert read([data[:-5]], max_size=10) == ([], None)
    assert type(read([data[:-4]], max_size=10)[1]) is MessageTooBig


def test_endless_empty_fragments() -> None:
    """Fragments without payload are no error and reach no limit."""
    data = client_frame(BINARY, b"x", fin=False) + client_frame(CONTINUATION, fin=False) * 2000
    assert read([data], max_size=1) == ([], None)
    assert read([data + client_frame(CONTINUATION)], max_size=1) == ([(BINARY, b"x")], None)


# Compressed messages

def read_compressed(chunks: Iterable[bytes], **options: Any) -> tuple[Events, Exception | None]:
    """Read as :func:`read` does, with permessage-deflate in force."""
    return read(chunks, inflater=Inflater(15, context_takeover=False), **options)


def compressed(opcode: int, *payloads: bytes) -> bytes:
    """Return a compressed message in fragments: RSV1 is on the first frame only (RFC 7692 6.1)."""
    last = len(payloads) - 1
    return b"".join(
        client_frame(CONTINUATION if i else opcode, payload, fin=i == last, rsv=0 if i else RSV1)
        for i, payload in enumerate(payloads))


HELLO = deflated(b"Hello " * 50)
COMPRESSED: list[tuple[str, bytes, Events]] = [
    ("text", compressed(TEXT, HELLO), [(TEXT, "Hello " * 50)]),
    ("binary", compressed(BINARY, HELLO), [(BINARY, b"Hello " * 50)]),
    ("RFC 7692 7.2.3.1", compressed(TEXT, bytes.fromhex("f248cdc9c90700")), [(TEXT, "Hello")]),
    ("in two fragments", compressed(TEXT, bytes.fromhex("f248cd"), bytes.fromhex("c9c90700")), [(TEXT, "Hello")]),
    ("in octets, each a fragment", compressed(TEXT, *by_octets(HELLO)), [(TEXT, "Hello " * 50)]),
    ("empty", compressed(TEXT, b"\x00") + compressed(BINARY, b"", b"\x00"), [(TEXT, ""), (BINARY, b"")]),
    ("a ping between", compressed(TEXT, HELLO, b"")[:-6] + PING_A + client_frame(CONTINUATION),
     [(PING, b"a"), (TEXT, "Hello " * 50)]),
    ("plain ones around", client_frame(TEXT, b"a") + compressed(TEXT, HELLO) + fragments(BINARY, b"b", b"c"),
     [(TEXT, "a"), (TEXT, "Hello " * 50), (BINARY, b"bc")]),
    ("a code point across fragments", compressed(TEXT, *by_octets(deflated("\u20ac\U0001f600".encode()))),
     [(TEXT, "\u20ac\U0001f600")]),
]


@pytest.mark.parametrize(("name", "data", "events"), COMPRESSED, ids=[row[0] for row in COMPRESSED])
def test_compressed(name: str, data: bytes, events: Events) -> None:
    """A message with RSV1 is inflated as it arrives (RFC 7692 6.2)."""
    for chunks in whole(data), by_octets(data):
        assert read_compressed(chunks) == (events, None)
    assert read_compressed([data + PING_A]) == ([*events, (PING, b"a")], None)


@pytest.mark.parametrize(("data", "error"), [
    (compressed(TEXT, b"\xff\xff\xff"), ProtocolError),
    (compressed(TEXT, deflated(b"ok \xff")), InvalidPayload),
    (compressed(TEXT, deflated(b"\xc3")), InvalidPayload),
    (client_frame(TEXT, HELLO[:5], fin=False, rsv=RSV1) + client_frame(CONTINUATION, HELLO[5:], rsv=RSV1),
     ProtocolError),
    (compressed(TEXT, HELLO, b"")[:-6] + compressed(TEXT, HELLO), ProtocolError),
])
def test_compressed_wrongly(data: bytes, error: type[ProtocolError]) -> None:
    """No DEFLATE data, no UTF-8 in it, RSV1 where it does not belong."""
    for chunks in whole(data), by_octets(data), whole(data + PING_A):
        found, raised = read_compressed(chunks)
        assert (found, type(raised)) == ([], error)


RANDOM_OCTETS = random.Random(1).randbytes(4000)


@pytest.mark.parametrize(("octets", "limit", "allowed"), [
    (bytes(4000), 4000, True),
    (bytes(4000), 3999, False),
    (RANDOM_OCTETS, 4000, True),  # Compressed it is longer than the limit.
    (RANDOM_OCTETS, 3999, False),
    (b"", 0, True),
    (b"x", 0, False),
])
def test_compressed_max_size(octets: bytes, limit: int, allowed: bool) -> None:
    """The limit holds for what was inflated, in one frame and in several."""
    payload = deflated(octets)
    for data in compressed(BINARY, payload), compressed(BINARY, payload[:1], payload[1:], b""):
        for chunks in whole(data), by_octets(data):
            found, error = read_compressed(chunks, max_size=limit)
            assert (found, type(error)) == (([(BINARY, octets)], type(None)) if allowed else ([], MessageTooBig))
    assert read_compressed([compressed(BINARY, payload)]) == ([(BINARY, octets)], None)


def test_compressed_nothing_without_end() -> None:
    """Octets that inflate to nothing have a limit too, however they are framed."""
    nothing = b"\x00\x00\x00\xff\xff" * 1000
    for data in compressed(BINARY, nothing, b""), compressed(BINARY, *(nothing[:100] for _ in range(50))):
        for chunks in whole(data), by_octets(data):
            assert type(read_compressed(chunks, max_size=10)[1]) is MessageTooBig
        assert read_compressed([data + client_frame(PING)])[1] is None


def test_limit_of_plain_frames_comes_back() -> None:
    """After a compressed message a plain one is refused by its header again."""
    data = compressed(BINARY, deflated(b"x")[:1], deflated(b"x")[1:])
    found, error = read_compressed([data + client_header(BINARY, 11)], max_size=10)
    assert (found, type(error)) == ([(BINARY, b"x")], MessageTooBig)


@bounded
@given(streams(), junk, cuts)
def test_junk_compressed(stream: Stream, data: bytes, places: list[int]) -> None:
    """Compression in force changes nothing for plain messages, and only ProtocolError leaves the reader."""
    found, error = read_compressed(at(stream.data + data, places), max_size=2000)
    assert found[:len(stream.events)] == stream.events
    assert error is None or isinstance(error, ProtocolError)


# Taking apart

@pytest.mark.parametrize(("payload", "opcode", "octets"), [
    ("", Opcode.TEXT, b""),
    ("a\xe9\u20ac\U0001f600", Opcode.TEXT, b"a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"),
    (b"", Opcode.BINARY, b""),
    (b"\x00\xff", Opcode.BINARY, b"\x00\xff"),
    (bytearray(b"ab"), Opcode.BINARY, b"ab"),
    (memoryview(b"abcd")[1:3], Opcode.BINARY, b"bc"),
    (memoryview(b"abcd")[::2], Opcode.BINARY, b"ac"),
])
def test_to_octets(payload: Any, opcode: Opcode, octets: bytes) -> None:
    """A str is TEXT in UTF-8, bytes-like is BINARY; the octets are bytes that nobody else can change."""
    found = to_octets(payload)
    assert found == (opcode, octets)
    assert found[0] is opcode and type(found[1]) is bytes
    assert server_frames(encode_message(payload)) == [(opcode, octets, True, 0)]


@pytest.mark.parametrize("payload", [None, 1, 1.5, ["a"], {"type": "chat"}, object()])
def test_to_octets_of_anything_else(payload: Any) -> None:
    """A wrong type is named, before anything is sent."""
    for function in to_octets, encode_message:
        with pytest.raises(TypeError, match=type(payload).__name__):
            function(payload)


def test_lone_surrogate() -> None:
    """UTF-8 cannot carry it."""
    with pytest.raises(UnicodeEncodeError):
        encode_message("a\ud800")


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_encode_message(size: int) -> None:
    """A message is one frame of any size."""
    assert server_frames(encode_message("a" * size)) == [(TEXT, b"a" * size, True, 0)]
    assert server_frames(encode_message(bytes(size))) == [(BINARY, bytes(size), True, 0)]


def agreed(**options: Any) -> Agreement:
    """Return what comes of a bare offer of permessage-deflate."""
    agreement = Deflate(**options).negotiate([("permessage-deflate", [])])
    assert agreement is not None
    return agreement


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
@pytest.mark.parametrize("octets", [b"a", b"Hello " * 50, RANDOM_OCTETS, bytes(100000)])
def test_encode_compressed(opcode: Opcode, octets: bytes) -> None:
    """A compressed message is one frame with RSV1 (RFC 7692 6.1)."""
    frame, = server_frames(encode_compressed(opcode, octets, Deflater(6, 15, context_takeover=False)))
    assert (frame.opcode, frame.fin, frame.rsv) == (opcode, True, RSV1)
    assert inflated(frame.payload) == octets


@pytest.mark.parametrize(("payload", "opcode", "octets"), [
    ("Hello " * 50, TEXT, b"Hello " * 50), (bytearray(300), BINARY, bytes(300)),
])
def test_prepared_message(payload: Any, opcode: int, octets: bytes) -> None:
    """It is encoded once for each way, and each way says the same."""
    message = PreparedMessage(payload)
    plain = message.encode()
    assert server_frames(plain) == [(opcode, octets, True, 0)]
    frames = []
    for options in {}, {"level": 1}, {"server_max_window_bits": 9}:
        agreement = agreed(**options)
        frame, = server_frames(message.encode(agreement.compression))
        assert frame[::2] == (opcode, True) and frame.rsv == RSV1
        assert inflated(frame.payload, agreement.server_max_window_bits) == octets
        frames.append(message.encode(agreement.compression))
        assert message.encode(agreed(threshold=0, **options).compression) is frames[-1]
    assert len({id(one) for one in [plain, *frames]}) == 4


def test_prepared_anything_else() -> None:
    """A wrong type is refused at once, not at the first peer."""
    with pytest.raises(TypeError, match="dict"):
        PreparedMessage({})  # type: ignore[arg-type]


# Properties

@bounded
@given(st.lists(st.one_of(st.text(), st.binary()), max_size=5), cuts)
def test_round_trip(payloads: list[str | bytes], places: list[int]) -> None:
    """What a server encodes, a client's reader reads."""
    data = b"".join(encode_message(payload) for payload in payloads)
    expected: Events = [(TEXT if isinstance(payload, str) else BINARY, payload) for payload in payloads]
    assert read(at(data, places), masked=False) == (expected, None)


@bounded
@given(streams(), cuts)
def test_streams(stream: Stream, places: list[int]) -> None:
    """Any fragments with any control frames between them give the same messages, however they arrive."""
    for chunks in whole(stream.data), by_octets(stream.data), at(stream.data, places):
        assert read(chunks) == (stream.events, None)


@bounded
@given(junk, cuts)
def test_junk(data: bytes, places: list[int]) -> None:
    """Only ProtocolError leaves the reader, and how the bytes arrive changes nothing."""
    found, error = read(whole(data))
    assert error is None or isinstance(error, ProtocolError)
    for chunks in by_octets(data), at(data, places):
        others, other = read(chunks)
        assert (others, repr(other)) == (found, repr(error))


@bounded
@given(junk, cuts, st.integers(0, 20))
def test_junk_with_a_limit(data: bytes, places: list[int], limit: int) -> None:
    """The same with a limit, except that text both wrong and too big is refused for what shows first."""
    found, error = read(whole(data), max_size=limit)
    assert error is None or isinstance(error, ProtocolError)
    assert all(len(payload) <= limit for opcode, payload in found if opcode < CLOSE)
    others, other = read(at(data, places), max_size=limit)
    assert others == found and isinstance(other, type(None) if error is None else ProtocolError)


def test_masks_change_within_a_message() -> None:
    """Each frame has its own masking key (RFC 6455 5.3)."""
    keys = [MASK, bytes(4), b"\xff\x00\xaa\x55"]
    data = b"".join(
        client_frame(CONTINUATION if i else BINARY, b"abcdefg", fin=i == 2, mask=key) for i, key in enumerate(keys))
    for chunks in whole(data), by_octets(data):
        assert read(chunks) == ([(BINARY, b"abcdefg" * 3)], None)


def test_has_input() -> None:
    """It tells whether bytes are left."""
    reader = MessageReader()
    reader.feed(client_frame(Opcode.TEXT, b"a") * 2)
    for left in True, False:
        assert reader.next_message() == (Opcode.TEXT, "a")
        assert reader.has_input is left


# In place

SIZES = [4095, 4096, 4097, 70_000, 1 << 20]


def read_in_place(chunks: Iterable[bytes], **options: Any) -> tuple[list[Any], Exception | None]:
    reader = MessageReader(**options)
    return pump_in_place(reader, reader.feed, reader.next_message, chunks)


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start:start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1000, 1 << 12, 1 << 18])
def test_large_frames_in_place(size: int, step: int) -> None:
    """Where the octets are put changes nothing, not their masking either."""
    octets = bytes(i * 7 & 0xFF for i in range(size))
    text = "\u20ac" * (size // 3)
    data = client_frame(BINARY, octets) + client_frame(TEXT, text.encode()) + PING_A
    assert read_in_place(pieces(data, step)) == ([(BINARY, octets), (TEXT, text), (PING, b"a")], None)


def test_large_fragments_in_place() -> None:
    octets = bytes(range(256)) * 40
    data = b"".join([
        client_frame(BINARY, octets, fin=False), PING_A, client_frame(CONTINUATION, octets, fin=False),
        client_frame(CONTINUATION, octets)])
    for step in 999, 4096, 5000:
        assert read_in_place(pieces(data, step)) == ([(PING, b"a"), (BINARY, octets * 3)], None)


def test_room_is_made_for_what_may_come_only() -> None:
    """Neither for more than the limit, nor for much more than what came already, nor for little."""

    def room(announced: int, came: int, **options: Any) -> int | None:
        reader = MessageReader(**options)
        reader.feed(client_header(BINARY, announced) + bytes(came))
        assert reader.next_message() is None
        found = reader.room()
        assert found is reader.room()
        return None if found is None else len(found)

    assert room(100_000, 10_000) == 90_000
    assert room(100_000, 10_000, max_size=100_000) == 90_000
    assert room(1 << 40, 10_000) is None
    assert room(100_000, 1000) is None  # A peer that stalls here should not cost us 100 times what it sent.
    assert room(5000, 1000) is None
    assert room(10, 10 - 1) is None
    assert MessageReader().room() is None


def test_room_within_the_limit_of_the_message() -> None:
    """The limit is that of the message; a frame that exceeds it is refused as its octets come."""
    reader = MessageReader(max_size=10_000)
    reader.feed(client_frame(BINARY, bytes(5000), fin=False) + client_header(CONTINUATION, 6000, True) + bytes(1000))
    assert reader.next_message() is None
    assert reader.room() is None
    reader.feed(bytes(5000))
    with pytest.raises(MessageTooBig):
        reader.next_message()


def test_compressed_frames_are_not_received_in_place() -> None:
    reader = MessageReader(inflater=Inflater(15, context_takeover=False))
    data = client_frame(BINARY, deflated(random.Random(1).randbytes(20_000)), rsv=RSV1)
    reader.feed(data[:2000])
    assert reader.next_message() is None
    assert reader.room() is None


@pytest.mark.parametrize("at", [4000, 30_000, 69_999])
def test_text_is_checked_in_place_as_it_comes(at: int) -> None:
    octets = bytearray(b"a" * 70_000)
    octets[at] = 0xFF
    data = client_frame(TEXT, bytes(octets))
    seen = len(data) - len(octets) + at + 1
    events, error = read_in_place(pieces(data[:seen], 1500))
    assert (events, type(error)) == ([], InvalidPayload)


def test_text_that_ends_within_a_code_point_in_place() -> None:
    data = client_frame(TEXT, b"a" * 69_998 + b"\xe2\x82")
    events, error = read_in_place(pieces(data, 1500))
    assert (events, type(error)) == ([], InvalidPayload)


def test_empty_frames_are_counted() -> None:
    """So many may come until the count is set to 0 again."""
    reader = MessageReader(max_empty_frames=3)
    reader.feed(client_frame(PING) * 2 + client_frame(TEXT, b"", fin=False) + client_frame(TEXT, b"", fin=True))
    reader.empty_frames = 0
    reader.feed(client_frame(PING) * 3)
    assert [reader.next_message() for _ in range(2)] == [(PING, b"")] * 2


def test_too_many_empty_frames() -> None:
    reader = MessageReader(max_empty_frames=2)
    reader.feed(client_frame(PING) * 3)
    assert reader.next_message() is not None
    assert reader.next_message() is not None
    with pytest.raises(RateExceeded, match="more than 2 control frames and empty fragments"):
        reader.next_message()
    assert reader.frames == 3


def test_what_is_held_of_a_message() -> None:
    reader = MessageReader(max_size=1 << 20)
    assert (reader.held, reader.is_within_message) == (0, False)
    reader.feed(client_frame(TEXT, b"part", fin=False))
    assert reader.next_message() is None
    assert (reader.held, reader.is_within_message) == (4, True)
    reader.feed(client_frame(CONTINUATION, bytes(1 << 16))[:10_000])
    assert reader.next_message() is None
    assert reader.room() is not None
    assert reader.held == 4 + (1 << 16)


@pytest.mark.parametrize("begun", [True, False])
def test_compressed_messages_that_nobody_gets(begun: bool) -> None:
    """They are skipped, cost nothing, and may even be wrong; what comes between them and behind them is seen."""
    reader = MessageReader(max_size=100, inflater=Inflater(15, False))
    first = client_frame(TEXT, deflated("é".encode() * 20)[:5], fin=False, rsv=RSV1)
    bomb = client_frame(BINARY, deflated(bytes(1 << 20)), rsv=RSV1)
    if begun:
        reader.feed(first)
        assert reader.next_message() is None
        before = reader.inflated
    reader.inflates = False
    if not begun:
        reader.feed(first)
        before = 0
    reader.feed(client_frame(PING) + client_frame(CONTINUATION, b"junk") + bomb * 3 + client_frame(BINARY, b"plain"))
    assert [reader.next_message() for _ in range(3)] == [(PING, b""), (BINARY, b"plain"), None]
    assert (reader.inflated, reader.is_within_message) == (before, False)


def test_what_is_inflated_is_counted() -> None:
    reader = MessageReader(inflater=Inflater(15, False))
    reader.feed(client_frame(BINARY, deflated(bytes(1000)), rsv=RSV1) * 2 + client_frame(BINARY, b"plain"))
    assert [message is not None for message in (reader.next_message() for _ in range(4))] == [True, True, True, False]
    assert reader.inflated == 2000
