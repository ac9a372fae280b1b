"""Frames: codes, masking, the header codec and the parser (RFC 6455 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import bounded, cuts, junk, masking_keys, payloads
from wire import (
    BINARY, CLOSE, CONTINUATION, MASK, PING, PONG, RSV1, RSV2, RSV3, TEXT, at, by_octets, client_frame, client_header,
    pump, server_frames, whole,
)

from wsthread.exceptions import MessageTooBig, ProtocolError
from wsthread.wire.frames import (
    SENDABLE_CLOSE_CODES, CloseCode, Frame, FrameParser, Opcode, cut_reason, encode_frame, encode_header,
    is_valid_close_code,
)
from wsthread.wire.messages import Message


def parse(chunks: Iterable[bytes], **options: Any) -> tuple[list[Frame], Exception | None]:
    """Return what a new parser makes of the bytes."""
    parser = FrameParser(**options)
    return pump(parser.feed, parser.next_frame, chunks)


def joined(frames: Iterable[Frame]) -> list[Frame]:
    """Undo pieces, and fragmentation with them: append each continuation to what it follows."""
    result: list[Frame] = []
    for frame in frames:
        if frame.opcode is Opcode.CONTINUATION and result and not result[-1].fin:
            before = result.pop()
            frame = Frame(before.opcode, before.payload + frame.payload, frame.fin, before.rsv1)
        result.append(frame)
    return result


# Codes

def test_opcodes() -> None:
    """RFC 6455 11.8."""
    assert {one.name: one.value for one in Opcode} == {
        "CONTINUATION": 0, "TEXT": 1, "BINARY": 2, "CLOSE": 8, "PING": 9, "PONG": 10}


def test_close_codes() -> None:
    """RFC 6455 7.4 and the IANA registry, over all that two octets can say and a little more."""
    sendable = {1000, 1001, 1002, 1003, *range(1007, 1015)}
    assert set(CloseCode) == sendable | {1005, 1006, 1015}
    assert SENDABLE_CLOSE_CODES == sendable
    assert {code for code in range(-1, 70000) if is_valid_close_code(code)} == sendable | set(range(3000, 5000))


# Encoding

LENGTHS = [
    (0, "00"), (1, "01"), (125, "7d"), (126, "7e007e"), (127, "7e007f"), (65535, "7effff"),
    (65536, "7f0000000000010000"), (2 ** 63 - 1, "7f7fffffffffffffff"), (2 ** 63, "7f8000000000000000"),
]


@pytest.mark.parametrize(("length", "octets"), LENGTHS)
def test_encode_header_length(length: int, octets: str) -> None:
    """The length has its shortest form (RFC 6455 5.2); the mask bit is the highest of its first octet."""
    expected = bytes.fromhex(octets)
    assert encode_header(Opcode.BINARY, length) == b"\x82" + expected
    assert encode_header(Opcode.BINARY, length, masked=True) == b"\x82" + bytes([expected[0] | 0x80]) + expected[1:]


@pytest.mark.parametrize(("opcode", "flags", "first"), [
    (Opcode.CONTINUATION, {"fin": False}, 0x00),
    (Opcode.CONTINUATION, {}, 0x80),
    (Opcode.TEXT, {}, 0x81),
    (Opcode.TEXT, {"rsv1": True}, 0xC1),
    (Opcode.TEXT, {"fin": False, "rsv1": True}, 0x41),
    (Opcode.BINARY, {"fin": False}, 0x02),
    (Opcode.CLOSE, {}, 0x88),
    (Opcode.PING, {}, 0x89),
    (Opcode.PONG, {}, 0x8A),
])
def test_encode_header_first_octet(opcode: Opcode, flags: dict[str, bool], first: int) -> None:
    """FIN, RSV1 and the opcode (RFC 6455 5.2)."""
    assert encode_header(opcode, 0, **flags) == bytes([first, 0])


RFC_EXAMPLES = [
    ("unmasked text", "810548656c6c6f", Frame(Opcode.TEXT, b"Hello"), None),
    ("masked text", "818537fa213d7f9f4d5158", Frame(Opcode.TEXT, b"Hello"), "37fa213d"),
    ("first fragment", "010348656c", Frame(Opcode.TEXT, b"Hel", fin=False), None),
    ("last fragment", "80026c6f", Frame(Opcode.CONTINUATION, b"lo"), None),
    ("unmasked ping", "890548656c6c6f", Frame(Opcode.PING, b"Hello"), None),
    ("masked pong", "8a8537fa213d7f9f4d5158", Frame(Opcode.PONG, b"Hello"), "37fa213d"),
    ("256 octets", "827e0100" + "00" * 256, Frame(Opcode.BINARY, bytes(256)), None),
    ("64 KiB", "827f0000000000010000" + "00" * 65536, Frame(Opcode.BINARY, bytes(65536)), None),
]


@pytest.mark.parametrize(("name", "wire", "frame", "key"), RFC_EXAMPLES, ids=[row[0] for row in RFC_EXAMPLES])
def test_rfc_examples(name: str, wire: str, frame: Frame, key: str | None) -> None:
    """The examples of RFC 6455 5.7, there and back."""
    masking_key = None if key is None else bytes.fromhex(key)
    assert encode_frame(frame, masking_key) == bytes.fromhex(wire)
    assert parse([bytes.fromhex(wire)], masked=key is not None) == ([frame], None)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_encode_frame(size: int) -> None:
    """Both directions agree with an independent codec."""
    payload = bytes(i % 251 for i in range(size))
    for opcode, fin, rsv1 in (Opcode.BINARY, True, False), (Opcode.TEXT, False, True), (Opcode.PONG, True, False):
        frame = Frame(opcode, payload, fin, rsv1)
        assert server_frames(encode_frame(frame)) == [(opcode, payload, fin, RSV1 if rsv1 else 0)]
        assert encode_frame(frame, MASK) == client_frame(opcode, payload, fin, RSV1 if rsv1 else 0)


# Parsing

SIZES = [
    *((size, 7) for size in (0, 1, 2, 3, 4, 5, 124, 125)),
    *((size, 16) for size in (0, 1, 125, 126, 127, 1023, 1024, 65535)),
    *((size, 64) for size in (0, 1, 125, 126, 65535, 65536, 65537)),
]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("size", "length_form"), SIZES)
def test_parse_sizes(size: int, length_form: int, masked: bool) -> None:
    """A frame of any size in any form of length, whole, in octets and with octets of the next one behind it."""
    payload = bytes(i % 251 for i in range(size))
    data = client_frame(BINARY, payload, mask=MASK if masked else None, length_form=length_form)
    frame = Frame(Opcode.BINARY, payload)
    assert parse(whole(data), masked=masked) == ([frame], None)
    frames, error = parse(by_octets(data), masked=masked)
    assert (joined(frames), error) == ([frame], None)
    assert parse([data + data[:1]], masked=masked) == ([frame], None)
    assert parse([data + data], masked=masked) == ([frame, frame], None)


@pytest.mark.parametrize(("opcode", "fin"), [
    (TEXT, True), (TEXT, False), (BINARY, True), (BINARY, False), (CONTINUATION, True), (CONTINUATION, False),
    (CLOSE, True), (PING, True), (PONG, True),
])
def test_parse_opcodes(opcode: int, fin: bool) -> None:
    """Each opcode passes; what order they may have is not the parser's business."""
    frame = Frame(Opcode(opcode), b"abc", fin)
    assert parse([client_frame(opcode, b"abc", fin)]) == ([frame], None)
    assert type(frame.opcode) is Opcode


def test_pieces() -> None:
    """A data frame is handed over as it arrives, as fragments; FIN is on the last piece only."""
    data = client_frame(TEXT, b"abcdefghij")
    frames, _ = parse([data[:6], data[6:7], data[7:9], b"", data[9:15], data[15:]])
    assert frames == [
        Frame(Opcode.TEXT, b"", False),
        Frame(Opcode.CONTINUATION, b"a", False),
        Frame(Opcode.CONTINUATION, b"bc", False),
        Frame(Opcode.CONTINUATION, b"defghi", False),
        Frame(Opcode.CONTINUATION, b"j", True),
    ]


def test_pieces_of_a_fragment() -> None:
    """The pieces of a frame without FIN all go without it, and RSV1 is on the first piece only."""
    data = client_frame(BINARY, b"abcd", fin=False, rsv=RSV1) + client_frame(CONTINUATION, b"ef")
    frames, _ = parse([data[:8], data[8:]], rsv1_allowed=True)
    assert frames == [
        Frame(Opcode.BINARY, b"ab", False, True),
        Frame(Opcode.CONTINUATION, b"cd", False),
        Frame(Opcode.CONTINUATION, b"ef", True),
    ]


def test_control_frames_come_whole() -> None:
    """A control frame is waited for, between fragments as well."""
    ping = client_frame(PING, b"p" * 125)
    data = client_frame(TEXT, b"a", fin=False) + ping + client_frame(CONTINUATION, b"b")
    for chunks in whole(data), by_octets(data):
        frames, error = parse(chunks)
        assert error is None
        assert [frame for frame in frames if frame.opcode is Opcode.PING] == [Frame(Opcode.PING, b"p" * 125)]
        assert b"".join(frame.payload for frame in frames if frame.opcode is not Opcode.PING) == b"ab"


@pytest.mark.parametrize("length_form", [7, 16, 64])
def test_incomplete_header(length_form: int) -> None:
    """No part of a header makes a frame."""
    header = client_header(BINARY, 9, length_form=length_form)
    assert parse(by_octets(header[:-1])) == ([], None)
    assert parse([header]) == ([Frame(Opcode.BINARY, b"", False)], None)


def test_nothing() -> None:
    """No bytes, no frame; and empty chunks do no harm."""
    assert FrameParser().next_frame() is None
    assert parse([b"", b""]) == ([], None)
    assert parse([b"", client_frame(PING), b""]) == ([Frame(Opcode.PING, b"")], None)


SERVER: dict[str, Any] = {}
CLIENT: dict[str, Any] = {"masked": False}
EXTENDED: dict[str, Any] = {"rsv1_allowed": True}
# What it is, the parser's options, the bytes, and after how many of them the error is due.
ERRORS = [
    *((f"reserved opcode {i}", SERVER, client_frame(i, b"x"), 2) for i in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    *((f"reserved bits {i:03b}", SERVER, client_frame(TEXT, b"x", rsv=i), 2) for i in range(1, 8)),
    *((f"extension, bits {i:03b}", EXTENDED, client_frame(TEXT, b"x", rsv=i), 2) for i in (1, 2, 3, 5, 6, 7)),
    *((f"extension, RSV1 on opcode {i}", EXTENDED, client_frame(i, b"", rsv=RSV1), 2) for i in (0, 8, 9, 10)),
    ("extension, RSV1 on a last fragment", EXTENDED, client_frame(CONTINUATION, b"x", fin=False, rsv=RSV1), 2),
    ("not masked", SERVER, client_frame(TEXT, b"x", mask=None), 2),
    ("empty, not masked", SERVER, client_frame(TEXT, mask=None), 2),
    ("control not masked", SERVER, client_frame(PING, mask=None), 2),
    ("masked by a server", CLIENT, client_frame(TEXT, b"x"), 2),
    *((f"control {i} fragmented", SERVER, client_frame(i, b"x", fin=False), 2) for i in (8, 9, 10)),
    *((f"control {i} of 126 octets", SERVER, client_frame(i, bytes(126)), 2) for i in (8, 9, 10)),
    ("control of 65536 octets", SERVER, client_frame(PING, bytes(65536)), 2),
    ("control in long form", SERVER, client_frame(PING, b"x", length_form=16), 2),
    ("length of 2**63", SERVER, client_header(BINARY, 2 ** 63), 10),
    ("length of 2**64 - 1", SERVER, client_header(TEXT, 2 ** 64 - 1), 10),
    ("length of 2**63, limited", {"max_size": 10}, client_header(BINARY, 2 ** 63), 10),
]


@pytest.mark.parametrize(("name", "options", "data", "due"), ERRORS, ids=[row[0] for row in ERRORS])
def test_errors(name: str, options: dict[str, Any], data: bytes, due: int) -> None:
    """A violation is found whole, in octets, with more behind it, after good frames, and no octet late."""
    good = client_frame(PING, mask=None if options is CLIENT else MASK)
    for chunks in whole(data), by_octets(data), whole(data + bytes(9)), whole(data[:due]):
        frames, error = parse(chunks, **options)
        assert (frames, type(error)) == ([], ProtocolError)
        assert str(error) == getattr(error, "reason") != ""
    frames, error = parse([good + data], **options)
    assert (frames, type(error)) == ([Frame(Opcode.PING, b"")], ProtocolError)
    assert parse(by_octets(data[:due - 1]), **options) == ([], None)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_rsv1_allowed(opcode: int) -> None:
    """An extension may use RSV1 on the first frame of a message; frames without it pass too."""
    for rsv in (RSV1, 0):
        assert parse([client_frame(opcode, b"x", rsv=rsv)], rsv1_allowed=True) == (
            [Frame(Opcode(opcode), b"x", True, rsv == RSV1)], None)
    assert RSV1 | RSV2 | RSV3 == 7


@pytest.mark.parametrize("limit", [0, 1, 125, 126, 65535, 65536])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CONTINUATION])
def test_max_size(opcode: int, limit: int) -> None:
    """The limit itself passes, one more is refused by the header alone."""
    payload = bytes(limit)
    for chunks in whole(client_frame(opcode, payload)), by_octets(client_frame(opcode, payload)):
        frames, error = parse(chunks, max_size=limit)
        assert (joined(frames), error) == ([Frame(Opcode(opcode), payload)], None)
    header = client_header(opcode, limit + 1, mask=None)  # Without the key, which is not needed for it either.
    masked = bytes([header[0], header[1] | 0x80]) + header[2:]
    for chunks in whole(masked), by_octets(masked), whole(client_frame(opcode, bytes(limit + 1))):
        frames, error = parse(chunks, max_size=limit)
        assert (frames, type(error)) == ([], MessageTooBig)
    assert parse(by_octets(masked[:-1]), max_size=limit) == ([], None)


def test_max_size_is_not_for_control_frames() -> None:
    """They have a limit of their own (RFC 6455 5.5)."""
    data = client_frame(PING, bytes(125))
    assert parse([data], max_size=1) == ([Frame(Opcode.PING, bytes(125))], None)


def test_max_size_is_not_for_compressed_frames() -> None:
    """Their size says little about what they carry; a frame without RSV1 has the limit all the same."""
    data = client_frame(BINARY, bytes(9), rsv=RSV1)
    assert parse([data], max_size=1, rsv1_allowed=True) == ([Frame(Opcode.BINARY, bytes(9), True, True)], None)
    assert type(parse([client_frame(BINARY, bytes(9))], max_size=1, rsv1_allowed=True)[1]) is MessageTooBig


def test_max_size_may_change() -> None:
    """Between two frames the limit may be changed; it holds from the next header on."""
    parser = FrameParser(max_size=1)
    parser.feed(client_frame(BINARY, b"ab"))
    parser.max_size = 2
    assert parser.next_frame() == Frame(Opcode.BINARY, b"ab")
    parser.max_size = 1
    parser.feed(client_frame(BINARY, b"ab"))
    with pytest.raises(MessageTooBig):
        parser.next_frame()


def test_no_max_size() -> None:
    """Without a limit the largest frame there can be is begun."""
    assert parse([client_header(BINARY, 2 ** 63 - 1)]) == ([Frame(Opcode.BINARY, b"", False)], None)


CONTROL = [Opcode.CLOSE, Opcode.PING, Opcode.PONG]
frames_of_any_kind = st.lists(max_size=6, elements=st.one_of(
    st.builds(Frame, st.sampled_from([Opcode.TEXT, Opcode.BINARY]), payloads, st.booleans(), st.booleans()),
    st.builds(Frame, st.just(Opcode.CONTINUATION), payloads, st.booleans(), st.just(False)),
    st.builds(Frame, st.sampled_from(CONTROL), st.binary(max_size=125), st.just(True), st.just(False)),
))


@bounded
@given(frames_of_any_kind, st.lists(masking_keys, min_size=6, max_size=6), cuts, st.booleans())
def test_round_trip(frames: list[Frame], keys: list[bytes], places: list[int], masked: bool) -> None:
    """What is encoded is parsed, however the bytes arrive."""
    data = b"".join(encode_frame(frame, key if masked else None) for frame, key in zip(frames, keys))
    assert parse(whole(data), masked=masked, rsv1_allowed=True) == (frames, None)
    for chunks in by_octets(data), at(data, places):
        parsed, error = parse(chunks, masked=masked, rsv1_allowed=True)
        assert (joined(parsed), error) == (joined(frames), None)


@bounded
@given(junk, cuts, st.booleans(), st.booleans())
def test_junk(data: bytes, places: list[int], masked: bool, rsv1_allowed: bool) -> None:
    """Only ProtocolError leaves the parser, and how the bytes arrive changes nothing."""
    options = {"masked": masked, "rsv1_allowed": rsv1_allowed}
    frames, error = parse(whole(data), **options)
    assert error is None or isinstance(error, ProtocolError)
    for chunks in by_octets(data), at(data, places):
        others, other = parse(chunks, **options)
        assert (joined(others), repr(other)) == (joined(frames), repr(error))


def test_rest() -> None:
    """It is empty as soon as all bytes are used up, and not before."""
    parser = FrameParser()
    assert not parser.rest
    parser.feed(client_frame(Opcode.PING, b"a") + b"\x89")
    parser.next_frame()
    assert parser.rest
    assert parser.next_frame() is None
    assert parser.rest


def whole_messages(parser: FrameParser) -> list[Message]:
    """Return the next messages that are whole, in their order."""
    messages: list[Message] = []
    parser.read_whole_messages(Message, messages)
    return messages[::-1]


def test_whole_messages() -> None:
    """Messages that are whole and nothing special are taken together, some at a time; the others frame by frame."""
    text, binary = client_frame(Opcode.TEXT, "\xe9".encode()), client_frame(Opcode.BINARY, bytes(300))
    special = [
        client_frame(Opcode.PING), client_frame(Opcode.TEXT, fin=False), client_frame(Opcode.TEXT, b"\xff"),
        client_frame(Opcode.TEXT, rsv=4), client_frame(Opcode.BINARY, bytes(301)), client_frame(Opcode.TEXT, b"a")[:-1],
        client_frame(Opcode.TEXT, mask=None), client_header(Opcode.BINARY, 1 << 63), b"\x82", b"\x82\xfe\0",
        b"\x82\xff\0", client_header(Opcode.BINARY, (1 << 32) + 1) + b"a", client_header(Opcode.TEXT, (1 << 32) - 1),
    ]
    for behind in special:
        parser = FrameParser(max_size=300)
        parser.feed(text + binary + text + behind)
        expected = [(Opcode.TEXT, "\xe9"), (Opcode.BINARY, bytes(300)), (Opcode.TEXT, "\xe9")]
        found = whole_messages(parser)
        assert found == expected
        assert all(type(message) is Message for message in found)
        assert whole_messages(parser) == []
    parser = FrameParser()
    assert whole_messages(parser) == []
    parser.feed(text * 100)
    assert len(whole_messages(parser)) < 100


def test_filling_a_frame() -> None:
    parser = FrameParser()
    data = client_frame(Opcode.BINARY, b"abcdefghij")
    parser.feed(data[:9])
    assert parser.next_frame() == Frame(Opcode.BINARY, b"abc", fin=False)
    assert parser.missing == 7
    rest = bytearray(data[9:])
    assert not parser.fill(memoryview(rest)[:5])
    assert parser.missing == 2
    assert parser.fill(memoryview(rest)[5:])
    assert rest == b"defghij"
    assert parser.missing == 0


def test_filling_an_unmasked_frame() -> None:
    parser = FrameParser(masked=False)
    parser.feed(client_frame(Opcode.BINARY, b"abcdefghij", fin=False, mask=None)[:5])
    assert parser.next_frame() == Frame(Opcode.BINARY, b"abc", fin=False)
    rest = bytearray(b"defghij")
    assert not parser.fill(memoryview(rest))  # It ends a frame, but no message.
    assert rest == b"defghij"
    assert parser.missing == 0


@pytest.mark.parametrize(("text", "reason"), [
    ("", ""), ("why", "why"), (123 * "x", 123 * "x"), (124 * "x", 123 * "x"), (62 * "ü", 61 * "ü")])
def test_cut_reason(text: str, reason: str) -> None:
    """Never within a character."""
    assert cut_reason(text) == reason


@pytest.mark.parametrize("number", [CloseCode.GOING_AWAY, Opcode.TEXT])
def test_numbers_are_printed_as_numbers(number: int) -> None:
    """Python 3.10 prints the name of a member otherwise, and statistics have it as a key."""
    assert {str(number), f"{number}", f"{number:d}", "%s" % number} == {str(int(number))}
