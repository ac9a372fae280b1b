"""The state of a WebSocket: the two halves, and the closing handshake (RFC 6455 5.5, 7)."""

from __future__ import annotations

import re
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Stream, bounded, cuts, junk, streams
from wire import (
    BINARY, CLOSE, CONTINUATION, PING, PONG, RSV1, TEXT, ServerFrame, at, by_octets, client_close, client_frame,
    close_payload, deflated, inflated, pump, pump_in_place, server_frames, whole,
)

from wsthread.exceptions import InvalidPayload, MessageTooBig, ProtocolError
from wsthread.wire import protocol as protocol_module
from wsthread.wire.deflate import Agreement, Deflate
from wsthread.wire.frames import CloseCode, Opcode
from wsthread.wire.messages import PreparedMessage
from wsthread.wire.protocol import Close, Protocol, check_close, encode_close, parse_close


def receive(protocol: Protocol, *chunks: bytes) -> tuple[list[tuple[int, str | bytes]], Exception | None]:
    """Return the events that a protocol makes of the bytes: opcodes and payloads, and the error that ended it."""
    events, error = pump(protocol.receive_data, protocol.next_event, chunks)
    return [(event.opcode, event.payload) for event in events], error


# The payload of a Close

SENDABLE = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
NOT_SENDABLE = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]
LONGEST = ["x" * 123, "\xe9" * 61 + "x", "\u20ac" * 41]


@pytest.mark.parametrize("reason", ["", "bye", "\u20ac \U0001f600", "\x00", *LONGEST])
@pytest.mark.parametrize("code", SENDABLE)
def test_close_there_and_back(code: int, reason: str) -> None:
    """Code and reason share the payload (RFC 6455 5.5.1)."""
    payload = close_payload(code, reason.encode())
    assert encode_close(Close(code, reason)) == payload
    assert parse_close(payload) == (code, reason)


def test_empty_close() -> None:
    """1005 stands for a Close without a code, both ways (RFC 6455 7.1.5)."""
    assert encode_close(Close(CloseCode.NO_STATUS_RCVD)) == b""
    assert parse_close(b"") == (1005, "")
    assert Close(1000) == (1000, "")


@pytest.mark.parametrize("code", NOT_SENDABLE)
def test_code_that_may_not_be_on_the_wire(code: int) -> None:
    """It is refused in both directions, with and without a reason (RFC 6455 7.4)."""
    for reason in "", "why":
        with pytest.raises(ProtocolError) as info:
            parse_close(close_payload(code, reason.encode()))
        assert type(info.value) is ProtocolError
        if (code, reason) != (1005, ""):
            with pytest.raises(ValueError, match=str(code)):
                encode_close(Close(code, reason))


@pytest.mark.parametrize("code", [-1, 65536, 100000])
def test_code_that_is_none(code: int) -> None:
    """What two octets do not hold is a ValueError like the others."""
    with pytest.raises(ValueError, match="may not be sent"):
        encode_close(Close(code))


@pytest.mark.parametrize(("code", "reason", "told"), [
    ("1000", "", "a close code is an int, such as 1000, not '1000'"),
    (None, "", "not None"),
    (True, "", "not True"),
    (1000.0, "", "not 1000.0"),
    (1000, b"bye", "a close reason is a str, not b'bye'"),
    (1000, None, "a close reason is a str, not None"),
])
def test_close_of_the_wrong_type(code: Any, reason: Any, told: str) -> None:
    with pytest.raises(TypeError, match=re.escape(told)):
        check_close(code, reason)


def test_close_of_an_application() -> None:
    assert check_close(CloseCode.GOING_AWAY, "bye") == Close(1001, "bye")
    for wrong in Close(1005), Close(1006), Close(999), Close(1000, "x" * 124):
        with pytest.raises(ValueError):
            check_close(*wrong)


@pytest.mark.parametrize("reason", [*(text + "x" for text in LONGEST), "\u20ac" * 123, "\ud800"])
def test_reason_that_cannot_be_sent(reason: str) -> None:
    """A reason has 123 octets of UTF-8 at most; characters do not count."""
    with pytest.raises(ValueError):
        encode_close(Close(1000, reason))


@pytest.mark.parametrize(("payload", "error"), [
    (b"\x03", ProtocolError),
    (b"\xff", ProtocolError),
    (close_payload(1000, b"\xff"), InvalidPayload),
    (close_payload(1000, b"ok \xc3"), InvalidPayload),
    (close_payload(4000, b"\xed\xa0\x80"), InvalidPayload),
    (close_payload(1006, b"\xff"), ProtocolError),
])
def test_broken_close(payload: bytes, error: type[ProtocolError]) -> None:
    """Half a code, or a reason that is not UTF-8."""
    with pytest.raises(ProtocolError) as info:
        parse_close(payload)
    assert type(info.value) is error


@bounded
@given(st.one_of(st.sampled_from(SENDABLE), st.integers(3000, 4999)), st.text(max_size=30))
def test_any_close(code: int, reason: str) -> None:
    """What is encoded is parsed."""
    assert parse_close(encode_close(Close(code, reason))) == (code, reason)


# The receive half

def test_events() -> None:
    """Messages and control frames come in wire order."""
    data = client_frame(TEXT, b"a") + client_frame(PING, b"p") + client_frame(BINARY, b"b") + client_frame(PONG)
    for chunks in whole(data), by_octets(data):
        protocol = Protocol()
        assert receive(protocol, *chunks) == ([(TEXT, "a"), (PING, b"p"), (BINARY, b"b"), (PONG, b"")], None)
        assert protocol.close_received is None and protocol.close_sent is None
        assert protocol.next_event() is None


@pytest.mark.parametrize(("data", "payload", "close"), [
    (client_frame(CLOSE), b"", (1005, "")),
    (client_close(1000), b"\x03\xe8", (1000, "")),
    (client_close(4001, b"bye"), b"\x0f\xa1bye", (4001, "bye")),
])
def test_close_received(data: bytes, payload: bytes, close: tuple[int, str]) -> None:
    """A Close is the last event; what follows is dropped (RFC 6455 5.5.1)."""
    for chunks in whole(data), by_octets(data), [data, client_frame(TEXT, b"late")], [data + b"\xff\xff\xff"]:
        protocol = Protocol()
        assert receive(protocol, *chunks) == ([(CLOSE, payload)], None)
        assert protocol.close_received == close
        protocol.receive_data(client_frame(TEXT, b"later"))
        protocol.receive_data(client_close(1001))
        assert protocol.next_event() is None
        assert protocol.close_received == close


def test_close_between_fragments() -> None:
    """The rest of an unfinished message never comes."""
    protocol = Protocol()
    data = client_frame(TEXT, b"a", fin=False) + client_close(1001) + client_frame(CONTINUATION, b"b")
    assert receive(protocol, data) == ([(CLOSE, b"\x03\xe9")], None)


@pytest.mark.parametrize(("data", "error", "code"), [
    (client_frame(TEXT, b"a", mask=None), ProtocolError, 1002),
    (client_frame(CLOSE, b"\x03"), ProtocolError, 1002),
    (client_close(1005), ProtocolError, 1002),
    (client_close(1000, b"\xff"), InvalidPayload, 1007),
    (client_frame(TEXT, b"\xff"), InvalidPayload, 1007),
    (client_frame(BINARY, bytes(11)), MessageTooBig, 1009),
])
def test_violation(data: bytes, error: type[ProtocolError], code: int) -> None:
    """A violation is raised once; then the events are over (RFC 6455 7.1.7)."""
    good = client_frame(PING)
    for chunks in [good + data + good], [*by_octets(good + data)]:
        protocol = Protocol(max_message_size=10)
        events, raised = receive(protocol, *chunks)
        assert events == [(PING, b"")]
        assert type(raised) is error and raised.code == code
        protocol.receive_data(good)
        assert protocol.next_event() is None
        assert protocol.close_received is None


def test_limit() -> None:
    """The limit of a message: none by default."""
    data = client_frame(BINARY, bytes(10))
    assert receive(Protocol(max_message_size=10), data) == ([(BINARY, bytes(10))], None)
    assert type(receive(Protocol(max_message_size=9), data)[1]) is MessageTooBig
    assert receive(Protocol(), client_frame(BINARY, bytes(100000)))[1] is None


@bounded
@given(streams(), cuts)
def test_streams(stream: Stream, places: list[int]) -> None:
    """How the bytes arrive changes nothing; after the Close there is nothing."""
    data = stream.data + client_close(1000) + stream.data
    for chunks in whole(data), by_octets(data), at(data, places):
        assert receive(Protocol(), *chunks) == ([*stream.events, (CLOSE, b"\x03\xe8")], None)


@bounded
@given(junk, cuts)
def test_junk(data: bytes, places: list[int]) -> None:
    """Only ProtocolError leaves the protocol, and only once."""
    protocol = Protocol()
    events, error = receive(protocol, *at(data, places))
    assert error is None or isinstance(error, ProtocolError)
    assert [opcode for opcode, _ in events].count(CLOSE) == (protocol.close_received is not None)
    if error is not None or protocol.close_received is not None:
        assert receive(protocol, data) == ([], None)


# The send half

@pytest.mark.parametrize(("method", "payload", "opcode", "octets"), [
    ("send_message", "\xe9", TEXT, b"\xc3\xa9"),
    ("send_message", b"\x00", BINARY, b"\x00"),
    ("send_message", bytearray(70000), BINARY, bytes(70000)),
    ("send_ping", b"", PING, b""),
    ("send_ping", bytes(125), PING, bytes(125)),
    ("send_pong", b"p", PONG, b"p"),
    ("send_pong", bytes(125), PONG, bytes(125)),
])
def test_send(method: str, payload: Any, opcode: int, octets: bytes) -> None:
    """Each call is one unmasked frame and no more state than that."""
    protocol = Protocol()
    for _ in range(2):
        assert server_frames(getattr(protocol, method)(payload)) == [(opcode, octets, True, 0)]
    assert protocol.close_sent is None


@pytest.mark.parametrize("method", ["send_ping", "send_pong"])
@pytest.mark.parametrize("size", [126, 65536])
def test_control_frame_too_long(method: str, size: int) -> None:
    """125 octets at most (RFC 6455 5.5)."""
    with pytest.raises(ValueError, match=str(size)):
        getattr(Protocol(), method)(bytes(size))


@pytest.mark.parametrize(("close", "payload"), [
    (Close(CloseCode.NO_STATUS_RCVD), b""),
    (Close(CloseCode.NORMAL_CLOSURE), b"\x03\xe8"),
    (Close(4999, "x" * 123), b"\x13\x87" + b"x" * 123),
])
def test_send_close(close: Close, payload: bytes) -> None:
    """A Close is sent once; the first one counts (RFC 6455 5.5.1)."""
    protocol = Protocol()
    assert server_frames(protocol.send_close(close)) == [(CLOSE, payload, True, 0)]
    assert protocol.send_close(close) == b""
    assert protocol.send_close(Close(1011, "other")) == b""
    assert protocol.close_sent == close


def test_close_that_cannot_be_sent() -> None:
    """It leaves no trace: a correct one can follow."""
    protocol = Protocol()
    for close in Close(1006), Close(1000, "x" * 124), Close(1000, "\ud800"):
        with pytest.raises(ValueError):
            protocol.send_close(close)
        assert protocol.close_sent is None
    assert server_frames(protocol.send_close(Close(1000))) == [(CLOSE, b"\x03\xe8", True, 0)]


# Both

def test_we_close_first() -> None:
    """After our Close the peer may go on until it answers (RFC 6455 5.5.1)."""
    protocol = Protocol()
    protocol.send_close(Close(1001, "going"))
    data = client_frame(TEXT, b"on its way") + client_frame(PING) + client_close(1001)
    assert receive(protocol, data) == ([(TEXT, "on its way"), (PING, b""), (CLOSE, b"\x03\xe9")], None)
    assert (protocol.close_sent, protocol.close_received) == ((1001, "going"), (1001, ""))


def test_peer_closes_first() -> None:
    """A Close of the peer, or its violation, leaves the send half as it is."""
    for data in client_close(1000), client_frame(3):
        protocol = Protocol()
        receive(protocol, data)
        assert server_frames(protocol.send_message("a")) == [(TEXT, b"a", True, 0)]
        assert server_frames(protocol.send_close(Close(1000))) == [(CLOSE, b"\x03\xe8", True, 0)]


def test_closes_cross() -> None:
    """Both ends may close at once; each one's Close is the answer to the other's."""
    protocol = Protocol()
    protocol.send_close(Close(1001))
    receive(protocol, client_close(4000, b"me first"))
    assert (protocol.close_sent, protocol.close_received) == ((1001, ""), (4000, "me first"))
    assert protocol.send_close(Close(4000)) == b""


def test_opcode_of_a_close() -> None:
    """The event says what it is with the enum."""
    protocol = Protocol()
    protocol.receive_data(client_frame(CLOSE))
    event = protocol.next_event()
    assert event is not None and event.opcode is Opcode.CLOSE


# With permessage-deflate

TAIL = b"\x00\x00\xff\xff"


def agreed(**options: Any) -> Agreement:
    """Return what comes of a bare offer of permessage-deflate."""
    agreement = Deflate(**options).negotiate([("permessage-deflate", [])])
    assert agreement is not None
    return agreement


def sent(data: bytes) -> ServerFrame:
    """Return the one frame that was sent."""
    frame, = server_frames(data)
    return frame


@pytest.mark.parametrize("takeover", [False, True])
def test_receive_compressed(takeover: bool) -> None:
    """Compressed and plain messages come the same way; the limit is for what was inflated."""
    text = b"Hello " * 50
    data = client_frame(TEXT, deflated(text), rsv=RSV1) + client_frame(TEXT, b"plain") + client_close(1000)
    agreement = agreed(client_context_takeover=takeover)
    for chunks in whole(data), by_octets(data):
        protocol = Protocol(agreement=agreement, max_message_size=300)
        expected = [(TEXT, text.decode()), (TEXT, "plain"), (CLOSE, b"\x03\xe8")]
        assert receive(protocol, *chunks) == (expected, None)
    assert type(receive(Protocol(agreement=agreement, max_message_size=299), data)[1]) is MessageTooBig
    assert type(receive(Protocol(), data)[1]) is ProtocolError


def test_receive_with_context_takeover() -> None:
    """A client that keeps its window may refer to earlier messages (RFC 7692 7.1.1.2). Safari 15 always does."""
    compressor = zlib.compressobj(wbits=-15)
    payloads = [(compressor.compress(b"Hello " * 50) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4] for _ in range(2)]
    data = b"".join(client_frame(BINARY, payload, rsv=RSV1) for payload in payloads)
    events, error = receive(Protocol(agreement=agreed(client_context_takeover=True)), data)
    assert (events, error) == ([(BINARY, b"Hello " * 50)] * 2, None)
    assert receive(Protocol(agreement=agreed()), data) == ([(BINARY, b"Hello " * 50)] * 2, None)
    # It shows that soon, or it does not keep it.
    honest = client_frame(BINARY, payloads[0], rsv=RSV1)
    events, error = receive(Protocol(agreement=agreed()), honest * 8 + data)
    assert (events, type(error)) == ([(BINARY, b"Hello " * 50)] * 9, ProtocolError)


@pytest.mark.parametrize(("payload", "threshold", "compressed"), [
    ("", 0, False), (b"", 0, False), (b"a", 0, True), ("a", 1, True),
    ("\xe9" * 50, 101, False), ("\xe9" * 50, 100, True),
])
def test_send_from_the_threshold_on(payload: str | bytes, threshold: int, compressed: bool) -> None:
    """Octets count; an empty message is never compressed."""
    octets = payload.encode() if isinstance(payload, str) else payload
    protocol = Protocol(agreement=agreed(threshold=threshold))
    for data in protocol.send_message(payload), protocol.send_prepared(PreparedMessage(payload)):
        frame = sent(data)
        assert (frame.rsv == RSV1) is compressed
        assert (inflated(frame.payload) if compressed else frame.payload) == octets


def test_send_prepared_without_agreement() -> None:
    """It is as plain as any message."""
    assert sent(Protocol().send_prepared(PreparedMessage("a"))) == (TEXT, b"a", True, 0)


@pytest.mark.parametrize("takeover", [False, True])
def test_send_compressed(takeover: bool) -> None:
    """A peer that keeps its window reads everything, those made for many in between as well (RFC 7692 7.2.3)."""
    protocol = Protocol(agreement=agreed(threshold=0, server_context_takeover=takeover))
    window = zlib.decompressobj(wbits=-15)
    text = "".join(f"line {i}, " for i in range(100))
    prepared = PreparedMessage(text)
    sizes = []
    for kind in "mmpmmppm":
        frame = sent(protocol.send_message(text) if kind == "m" else protocol.send_prepared(prepared))
        assert frame.rsv == RSV1
        assert window.decompress(frame.payload + TAIL) == text.encode()
        sizes.append(len(frame.payload))
    full = sizes[0]
    small = {1, 4} if takeover else set()  # Those that have a window to refer to.
    assert {i for i, size in enumerate(sizes) if size < full / 2} == small


def test_control_frames_are_never_compressed() -> None:
    """RFC 7692 6.1."""
    protocol = Protocol(agreement=agreed(threshold=0))
    for data in protocol.send_ping(b"a" * 100), protocol.send_pong(b"a" * 100), protocol.send_close(Close(1000)):
        assert sent(data).rsv == 0


@bounded
@given(st.lists(st.text(max_size=30), max_size=5), st.booleans(), cuts)
def test_compressed_round_trip(texts: list[str], takeover: bool, places: list[int]) -> None:
    """A client that compresses each message by itself is read in any pieces."""
    data = b"".join(client_frame(TEXT, deflated(text.encode()), rsv=RSV1) for text in texts)
    protocol = Protocol(agreement=agreed(client_context_takeover=takeover))
    assert receive(protocol, *at(data, places)) == ([(TEXT, text) for text in texts], None)


def test_has_input() -> None:
    """It tells whether more may have come with an event, and never that there is more than there is."""
    protocol = Protocol()
    assert not protocol.has_input
    protocol.receive_data(client_frame(TEXT, b"one") + client_frame(TEXT, b"two")[:3])
    assert protocol.has_input
    assert protocol.next_event() == (TEXT, "one")
    assert protocol.has_input
    protocol.receive_data(client_frame(TEXT, b"two")[3:])
    assert protocol.next_event() == (TEXT, "two")
    assert not protocol.has_input
    protocol.receive_data(client_frame(Opcode.CLOSE) + b"more")
    protocol.next_event()
    assert not protocol.has_input


def test_a_large_frame_in_place() -> None:
    protocol = Protocol()
    octets = bytes(range(256)) * 300
    data = client_frame(BINARY, octets) + client_frame(TEXT, b"next") + client_frame(CLOSE) + b"more"
    found = pump_in_place(protocol, protocol.receive_data, protocol.next_event, at(data, [2000, 40_000]))
    assert found == ([(BINARY, octets), (TEXT, "next"), (CLOSE, b"")], None)


def test_no_room_after_the_end() -> None:
    """What comes after a violation is dropped, in a large frame too."""
    protocol = Protocol()
    data = client_frame(TEXT, b"a" * 5000 + b"\xff" + b"a" * 60_000)
    found, error = pump_in_place(protocol, protocol.receive_data, protocol.next_event, at(data, [2000, 6000, 7000]))
    assert (found, type(error)) == ([], InvalidPayload)
    assert protocol.room() is None
    protocol.receive_data(data)
    assert protocol.next_event() is None


def test_header_of_a_payload_that_is_sent_as_it_is() -> None:
    octets = bytes(range(256)) * 300
    header = Protocol().send_header(octets)
    assert header is not None
    assert server_frames(header + octets) == [ServerFrame(BINARY, octets)]
    assert Protocol(agreement=agreed(threshold=80_000)).send_header(octets) == header
    assert Protocol(agreement=agreed(threshold=1024)).send_header(octets) is None


def test_release() -> None:
    """Nothing is held of messages any more, and nothing comes."""
    protocol = Protocol(agreement=agreed(threshold=4))
    protocol.send_message("a message")
    protocol.receive_data(client_frame(TEXT, b"part", fin=False))
    assert protocol.next_event() is None
    assert (protocol.held, protocol.is_within_message, protocol.frames) == (4, True, 1)
    protocol.renew_empty_frames()
    protocol.release()
    assert (protocol.held, protocol.is_within_message, protocol.has_input) == (0, False, False)
    protocol.receive_data(client_frame(TEXT, b"more"))
    assert protocol.next_event() is None


def test_a_peer_that_is_not_wanted() -> None:
    protocol = Protocol()
    protocol.fail()
    protocol.receive_data(client_frame(TEXT, b"more"))
    assert protocol.next_event() is None and not protocol.has_input


def test_messages_that_are_ready() -> None:
    """They may be taken from the list; there are none of a peer that is not wanted any more."""
    protocol = Protocol()
    protocol.receive_data(client_frame(Opcode.TEXT, b"a") + client_frame(Opcode.TEXT, b"b") + client_frame(Opcode.PING))
    assert protocol.ready.pop() == (Opcode.TEXT, "a")
    assert protocol.next_event() == (Opcode.TEXT, "b") and not protocol.ready
    assert protocol.next_event() == (Opcode.PING, b"")
    protocol.receive_data(client_frame(Opcode.TEXT, b"c") * 2)
    protocol.fail()
    assert not protocol.ready and protocol.next_event() is None


def test_compression_that_fails_leaves_no_trace_in_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer would not understand what refers to a message that it never got."""
    protocol = Protocol(agreement=agreed(threshold=4, server_context_takeover=True))
    first = protocol.send_message("once more")

    def fail(*args: object) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(protocol_module, "encode_compressed", fail)
        with pytest.raises(MemoryError):
            protocol.send_message("lost")
    assert protocol.send_message("once more") == first  # As from an empty window.
