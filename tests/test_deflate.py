"""permessage-deflate: the negotiation, compressing and inflating, and compressed messages among others (RFC 7692)."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import bounded, cuts
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode as TheirOpcode
from websockets.headers import build_extension, parse_extension
from wire import (
    BINARY, CLOSE, CONTINUATION, PING, PONG, RSV1, TEXT, ServerFrame, at, by_octets, client_frame, client_header,
    deflated, inflated, pump, server_frames, whole,
)

from wsthread.exceptions import InvalidPayload, MessageTooBig, ProtocolError
from wsthread.wire.deflate import NEVER, Agreement, Deflate, Deflater, Inflater, agree, parse_extensions
from wsthread.wire.messages import MessageReader, PreparedMessage
from wsthread.wire.protocol import Protocol

Events = list[tuple[int, "str | bytes"]]
TAIL = b"\x00\x00\xff\xff"
S_NO, C_NO = "server_no_context_takeover", "client_no_context_takeover"
S_BITS, C_BITS = "server_max_window_bits", "client_max_window_bits"
NO_TAKEOVER = f"permessage-deflate; {S_NO}; {C_NO}"
BOTH_TAKEOVERS = {"server_context_takeover": True, "client_context_takeover": True}
RANDOM = random.Random(7692).randbytes(100_000)
LINES = "".join(f"line {i}, some text; " for i in range(200)).encode()


def negotiate(header: str, **options: Any) -> Agreement | None:
    """Return what a server with these options makes of a header."""
    return Deflate(**options).negotiate(parse_extensions(header))


def agreed(**options: Any) -> Agreement:
    """Return what comes of the offer of a client that leaves the choice."""
    agreement = negotiate(f"permessage-deflate; {C_BITS}", **options)
    assert agreement is not None
    return agreement


# The header

HEADERS: list[tuple[str, list[tuple[str, list[tuple[str, str | None]]]]]] = [
    ("", []),
    (" , ,\t,", []),
    ("a", [("a", [])]),
    ("a, b,c", [("a", []), ("b", []), ("c", [])]),
    (" a ;\tx ; y = 1 ", [("a", [("x", None), ("y", "1")])]),
    ('a; x="1"', [("a", [("x", "1")])]),
    ('a; x= "1" ;y=""', [("a", [("x", "1"), ("y", "")])]),
    ('a; x="1, 2; 3=4", b', [("a", [("x", "1, 2; 3=4")]), ("b", [])]),
    ('a; x="1', [("a", [("x", '"1')])]),
    ('a; x=1"', [("a", [("x", '1"')])]),
    ('a; x="', [("a", [("x", '"')])]),
    ("a; x=", [("a", [("x", "")])]),
    ("a; x=1=2", [("a", [("x", "1=2")])]),
    ("a;", [("a", [("", None)])]),
    ("a;;x", [("a", [("", None), ("x", None)])]),
    ("; x, a", [("a", [])]),
    ("a; x; x=1", [("a", [("x", None), ("x", "1")])]),
]


@pytest.mark.parametrize(("header", "extensions"), HEADERS)
def test_parse_extensions(header: str, extensions: list[Any]) -> None:
    """RFC 6455 9.1, and leniently what breaks its grammar: no one will have an extension of that name."""
    assert parse_extensions(header) == extensions


@pytest.mark.parametrize("header", ['a; x="' + "y" * 800_000, "y" * 800_000, "a; x, " * 130_000, "a;" * 400_000])
@pytest.mark.timeout(60)
def test_parse_extensions_in_linear_time(header: str) -> None:
    """Servers join repeated headers, so that even one that limits each to 8 KiB may pass on almost a megabyte."""
    parse_extensions(header)


# Offers and answers: options of the server, the header, the answer or None.

OFFERS: list[tuple[dict[str, Any], str, str | None]] = [
    # Nothing to answer.
    ({}, "", None),
    ({}, "permessage-bzip2", None),
    ({}, "permessage-deflate2", None),
    ({}, "x-webkit-deflate-frame; no_context_takeover", None),
    # Without parameters: the server imposes what it wants (RFC 7692 7.1.1.1, 7.1.1.2).
    ({}, "permessage-deflate", NO_TAKEOVER),
    ({"server_context_takeover": True}, "permessage-deflate", f"permessage-deflate; {C_NO}"),
    ({"client_context_takeover": True}, "permessage-deflate", f"permessage-deflate; {S_NO}"),
    (BOTH_TAKEOVERS, "permessage-deflate", "permessage-deflate"),
    # What browsers offer.
    ({}, f"permessage-deflate; {C_BITS}", NO_TAKEOVER),
    (BOTH_TAKEOVERS, f"permessage-deflate; {C_BITS}", "permessage-deflate"),
    # Context takeover.
    (BOTH_TAKEOVERS, f"permessage-deflate; {S_NO}", f"permessage-deflate; {S_NO}"),
    (BOTH_TAKEOVERS, f"permessage-deflate; {C_NO}", f"permessage-deflate; {C_NO}"),
    (BOTH_TAKEOVERS, f"permessage-deflate; {C_NO}; {S_NO}", NO_TAKEOVER),
    ({}, f"permessage-deflate; {S_NO}; {C_NO}", NO_TAKEOVER),
    # Values where none are allowed, and none where one is needed.
    ({}, f"permessage-deflate; {S_NO}=", None),
    ({}, f"permessage-deflate; {S_NO}=1", None),
    ({}, f"permessage-deflate; {C_NO}=true", None),
    ({}, f'permessage-deflate; {C_NO}=""', None),
    ({}, f"permessage-deflate; {S_BITS}", None),
    ({}, f"permessage-deflate; {S_BITS}=", None),
    ({}, f"permessage-deflate; {C_BITS}=", None),
    # Parameters nobody knows, and twice the same (7.1).
    ({}, "permessage-deflate; foo", None),
    ({}, f"permessage-deflate; {S_NO}; foo=1", None),
    ({}, f"permessage-deflate; {S_NO.upper()}", None),
    ({}, "permessage-deflate;", None),
    ({}, f"permessage-deflate; {S_NO}; {S_NO}", None),
    ({}, f"permessage-deflate; {C_BITS}; {C_BITS}=10", None),
    ({}, f"permessage-deflate; {S_BITS}=10; {S_BITS}=10", None),
    # Our window: as asked for or smaller (7.1.2.1).
    ({}, f"permessage-deflate; {S_BITS}=15", f"{NO_TAKEOVER}; {S_BITS}=15"),
    ({"server_max_window_bits": 12}, "permessage-deflate", f"{NO_TAKEOVER}; {S_BITS}=12"),
    ({"server_max_window_bits": 12}, f"permessage-deflate; {S_BITS}=15", f"{NO_TAKEOVER}; {S_BITS}=12"),
    ({"server_max_window_bits": 12}, f"permessage-deflate; {S_BITS}=12", f"{NO_TAKEOVER}; {S_BITS}=12"),
    ({"server_max_window_bits": 12}, f"permessage-deflate; {S_BITS}=10", f"{NO_TAKEOVER}; {S_BITS}=10"),
    # The client's window: only if it allows us to choose (7.1.2.2).
    ({"client_max_window_bits": 10}, "permessage-deflate", NO_TAKEOVER),
    ({"client_max_window_bits": 10}, f"permessage-deflate; {C_BITS}", f"{NO_TAKEOVER}; {C_BITS}=10"),
    ({"client_max_window_bits": 10}, f"permessage-deflate; {C_BITS}=15", f"{NO_TAKEOVER}; {C_BITS}=10"),
    ({"client_max_window_bits": 10}, f"permessage-deflate; {C_BITS}=9", f"{NO_TAKEOVER}; {C_BITS}=9"),
    ({"client_max_window_bits": 8}, f"permessage-deflate; {C_BITS}", f"{NO_TAKEOVER}; {C_BITS}=8"),
    # All at once, in any order; quoted values (RFC 6455 9.1).
    (BOTH_TAKEOVERS, f"permessage-deflate; {C_BITS}=11; {S_BITS}=10; {C_NO}; {S_NO}",
     f"{NO_TAKEOVER}; {S_BITS}=10; {C_BITS}=11"),
    ({}, f'permessage-deflate; {S_BITS}="10"; {C_BITS}="11"', f"{NO_TAKEOVER}; {S_BITS}=10; {C_BITS}=11"),
    ({}, f'permessage-deflate; {S_BITS}="10', None),
    ({}, f'permessage-deflate; {S_BITS}=" 10"', None),
    # Several offers: the first that can be kept counts (7.1, RFC 6455 9.1).
    (BOTH_TAKEOVERS, f"permessage-deflate; {S_BITS}=10, permessage-deflate", f"permessage-deflate; {S_BITS}=10"),
    (BOTH_TAKEOVERS, f"permessage-deflate; {S_BITS}=8, permessage-deflate; {S_NO}", f"permessage-deflate; {S_NO}"),
    (BOTH_TAKEOVERS, "permessage-deflate; foo, permessage-deflate", "permessage-deflate"),
    (BOTH_TAKEOVERS, f"permessage-deflate; {S_BITS}=8, permessage-deflate; {S_BITS}=8; foo", None),
    # Other extensions around it.
    (BOTH_TAKEOVERS, 'foo; bar="a, permessage-deflate; x", permessage-deflate, baz', "permessage-deflate"),
    (BOTH_TAKEOVERS, f"permessage-bzip2; {S_BITS}=9, permessage-deflate", "permessage-deflate"),
]


@pytest.mark.parametrize(("options", "header", "answer"), OFFERS)
def test_negotiate(options: dict[str, Any], header: str, answer: str | None) -> None:
    """The answer keeps the offer, and the agreement says what the answer says."""
    agreement = negotiate(header, **options)
    assert (agreement and agreement.extension) == answer
    if agreement is not None:
        (_, parameters), = parse_extensions(agreement.extension)
        found = dict(parameters)
        assert agreement.deflate == Deflate(**options)
        assert agreement.server_context_takeover == (S_NO not in found)
        assert agreement.client_context_takeover == (C_NO not in found)
        assert agreement.server_max_window_bits == int(found.get(S_BITS) or 15)
        assert agreement.client_max_window_bits == int(found.get(C_BITS) or 15)


@pytest.mark.parametrize("bits", range(8, 16))
@pytest.mark.parametrize("form", ["{}", '"{}"'])
def test_negotiate_window_bits(bits: int, form: str) -> None:
    """8 to 15 (RFC 7692 7.1.2); zlib cannot deflate with 8."""
    value = form.format(bits)
    agreement = negotiate(f"permessage-deflate; {S_BITS}={value}")
    assert (agreement and agreement.extension) == (None if bits == 8 else f"{NO_TAKEOVER}; {S_BITS}={bits}")
    agreement = negotiate(f"permessage-deflate; {C_BITS}={value}")
    assert agreement is not None
    assert (agreement.extension, agreement.client_max_window_bits) == (f"{NO_TAKEOVER}; {C_BITS}={bits}", bits)


@pytest.mark.parametrize("name", [S_BITS, C_BITS])
@pytest.mark.parametrize("value", ["0", "7", "16", "08", "010", "1_0", "+9", "-9", "9.0", "0x9", "١٢", "nine", "12 13"])
def test_negotiate_no_window_bits(name: str, value: str) -> None:
    """Leading zeros are as wrong as other numbers (RFC 7692 7.1.2.1)."""
    assert negotiate(f"permessage-deflate; {name}={value}") is None
    assert negotiate(f'permessage-deflate; {name}="{value}"') is None


@pytest.mark.parametrize(("options", "name"), [
    ({"level": 0}, "level"), ({"level": 10}, "level"), ({"level": True}, "level"), ({"level": 1.0}, "level"),
    ({"level": None}, "level"), ({"level": "6"}, "level"), ({"threshold": -1}, "threshold"),
    ({"threshold": None}, "threshold"), ({S_BITS: 8}, S_BITS), ({S_BITS: 16}, S_BITS), ({C_BITS: 7}, C_BITS),
    ({C_BITS: 16}, C_BITS), ({C_BITS: False}, C_BITS),
])
def test_option_out_of_range(options: dict[str, Any], name: str) -> None:
    """The message names the option, what it is and what it may be."""
    value, = options.values()
    with pytest.raises(ValueError, match=rf"^{name} is {value!r}, it must be \d+ (to \d+|or more)$"):
        Deflate(**options)


@pytest.mark.parametrize(("level", "threshold", "server_bits", "client_bits", "shortest"), [
    (1, 0, 9, 8, 1), (9, 1 << 40, 15, 15, NEVER),
])
def test_options_at_their_bounds(
    level: int, threshold: int, server_bits: int, client_bits: int, shortest: int,
) -> None:
    """All that the documentation allows is agreed on, and works."""
    agreement = agreed(level=level, threshold=threshold, **{S_BITS: server_bits, C_BITS: client_bits})
    assert (agreement.server_max_window_bits, agreement.client_max_window_bits) == (server_bits, client_bits)
    assert agreement.compressed_from == shortest
    deflater, inflater = halves(agreement.deflate.level, agreement.server_max_window_bits)
    message = b"abcdefgh" * 5000
    data = deflater.deflate(message)
    assert len(data) < len(message) / 50
    assert inflater.inflate(data, True, None) == message


# Compressing and inflating

def halves(level: int = 6, bits: int = 15, takeover: bool = False) -> tuple[Deflater, Inflater]:
    """Return two that belong together."""
    return Deflater(level, bits, takeover), Inflater(bits, takeover)


def inflate(inflater: Inflater, pieces: Iterable[bytes], limit: int | None = None) -> bytes:
    """Inflate one message, as its reader does."""
    result = b""
    pieces = list(pieces)
    for i, piece in enumerate(pieces):
        result += inflater.inflate(piece, i == len(pieces) - 1, None if limit is None else limit - len(result))
    return result


#: RFC 7692 7.2.3.1 to 7.2.3.6: the payloads of messages that follow one another, and what they are.
EXAMPLES: list[tuple[str, list[str], list[bytes]]] = [
    ("one block", ["f2 48 cd c9 c9 07 00"], [b"Hello"]),
    ("the window again", ["f2 48 cd c9 c9 07 00", "f2 00 11 00 00"], [b"Hello", b"Hello"]),
    ("no compression", ["00 05 00 fa ff 48 65 6c 6c 6f 00"], [b"Hello"]),
    ("BFINAL", ["f3 48 cd c9 c9 07 00 00"], [b"Hello"]),
    ("BFINAL, then another", ["f3 48 cd c9 c9 07 00 00", "f2 48 cd c9 c9 07 00"], [b"Hello", b"Hello"]),
    ("two blocks", ["f2 48 05 00 00 00 ff ff ca c9 c9 07 00"], [b"Hello"]),
    ("empty", ["00", "f2 48 cd c9 c9 07 00", "00"], [b"", b"Hello", b""]),
    # Not in the RFC: two streams that end within the message, and one that ends with nothing in it.
    ("BFINAL twice", ["f3 48 cd c9 c9 07 00 f3 48 cd c9 c9 07 00 00"], [b"HelloHello"]),
    ("BFINAL and empty", ["03 00 00"], [b""]),
]


@pytest.mark.parametrize("takeover", [False, True])
@pytest.mark.parametrize(("name", "payloads", "messages"), EXAMPLES, ids=[row[0] for row in EXAMPLES])
def test_examples(name: str, payloads: list[str], messages: list[bytes], takeover: bool) -> None:
    """In one piece, octet by octet and with empty pieces in between."""
    cutters: list[Callable[[bytes], Iterable[bytes]]] = [
        whole, by_octets, lambda data: [b"", data, b""], lambda data: [data[:3], b"", data[3:]],
    ]
    for cutter in cutters:
        inflater = Inflater(15, takeover)
        for payload, message in zip(payloads, messages):
            if name == "the window again" and not takeover and payload.startswith("f2 00"):
                with pytest.raises(ProtocolError):
                    inflate(inflater, cutter(bytes.fromhex(payload)))
            else:
                assert inflate(inflater, cutter(bytes.fromhex(payload)), limit=len(message)) == message


def test_the_rfcs_own_output() -> None:
    """RFC 7692 7.2.3.1 and 7.2.3.2 are what zlib makes of Hello."""
    deflater = Deflater(6, 15, True)
    assert deflater.deflate(b"Hello").hex(" ") == "f2 48 cd c9 c9 07 00"
    assert deflater.deflate(b"Hello").hex(" ") == "f2 00 11 00 00"
    deflater.restart()
    assert deflater.deflate(b"Hello").hex(" ") == "f2 48 cd c9 c9 07 00"
    deflater = Deflater(6, 15, False)
    assert {deflater.deflate(b"Hello").hex(" ") for _ in range(3)} == {"f2 48 cd c9 c9 07 00"}
    deflater.restart()


decompressobj = zlib.decompressobj


class CountingInflater:
    """A zlib decompressor that tells how much it gave out."""

    def __init__(self, count: list[int], wbits: int) -> None:
        self._count = count
        self._zlib = decompressobj(wbits)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        result = self._zlib.decompress(data, max_length)
        self._count.append(len(result))
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._zlib, name)


def finished(octets: bytes, **options: Any) -> bytes:
    """Return a DEFLATE stream with its end, BFINAL."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, **options)
    return compressor.compress(octets) + compressor.flush()


BOMBS = {
    # DEFLATE cannot do worse than 1032:1, which is 258 octets for two bits.
    "1000:1": deflated(bytes(10_000_000)),
    "fixed codes": finished(bytes(10_000_000), strategy=zlib.Z_FIXED) + b"\x00",
    "several streams": finished(bytes(1_000_000)) * 8 + b"\x00",
}


@pytest.mark.parametrize("limit", [0, 1, 1000, 65_536, 1_000_000])
@pytest.mark.parametrize("name", BOMBS)
def test_bomb(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes, one octet more than the limit is inflated and no more, in any pieces."""
    for cutter in whole, lambda data: [data[i:i + 100] for i in range(0, len(data), 100)]:
        count: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr("wsthread.wire.deflate.zlib.decompressobj", lambda wbits: CountingInflater(count, wbits))
            with pytest.raises(MessageTooBig):
                inflate(Inflater(15, False), cutter(BOMBS[name]), limit)
        assert sum(count) == limit + 1


@pytest.mark.parametrize("size", [0, 1, 2, 255, 4096, 70_000])
@pytest.mark.parametrize("source", [bytes(70_000), LINES * 20, RANDOM], ids=["zeros", "lines", "random"])
@pytest.mark.parametrize("takeover", [False, True])
def test_limit(source: bytes, size: int, takeover: bool) -> None:
    """Exactly the limit passes, in any pieces; one octet less is too little."""
    octets = source[:size]
    payload = deflated(octets) if octets else b"\x00"
    for cutter in whole, by_octets, lambda data: [data[:-1], data[-1:]], lambda data: [data, b""]:
        assert inflate(Inflater(15, takeover), cutter(payload), None) == octets
        assert inflate(Inflater(15, takeover), cutter(payload), size + 1) == octets
        assert inflate(Inflater(15, takeover), cutter(payload), size) == octets
        if size:
            with pytest.raises(MessageTooBig):
                inflate(Inflater(15, takeover), cutter(payload), size - 1)


def test_limit_where_zlib_holds_back() -> None:
    """zlib may have taken all input and still owe output; the octet beyond the limit has to come out (7.2.2)."""
    for size in range(1, 1200):
        payload = deflated(bytes(size))
        assert inflate(Inflater(15, False), [payload], size) == bytes(size)
        for short in {1, 2, 3, 257, 258, 259, size} & set(range(size + 1)):
            with pytest.raises(MessageTooBig):
                inflate(Inflater(15, False), [payload], size - short)


GARBAGE = [
    b"\xff", b"\x06", b"\x07\x00", b"\x00\x05\x00\x00\x00", b"\x04\x00", b"\xf2\x00\x11\x00\x00", RANDOM[:50],
    b"\xf2\x48\xcd\xc9\xc9\x07", bytes.fromhex("789ccb48cdc9c9070006"), b"\x05\xe0\x81",
]


@pytest.mark.parametrize("octets", GARBAGE)
@pytest.mark.parametrize("takeover", [False, True])
def test_garbage(octets: bytes, takeover: bool) -> None:
    """It is a ProtocolError, of no closer kind, that zlib caused, whichever piece shows it."""
    for cutter in whole, by_octets:
        inflater = Inflater(15, takeover)
        with pytest.raises(ProtocolError, match="not DEFLATE data") as caught:
            inflate(inflater, [*cutter(octets), RANDOM[:300]])
        assert type(caught.value) is ProtocolError
        assert isinstance(caught.value.__cause__, zlib.error)
        assert len(caught.value.reason.encode()) <= 123, "too long for a Close"


@pytest.mark.parametrize(("streams", "passes"), [(1, True), (8, True), (14, True), (40, False), (20_000, False)])
def test_many_streams(streams: int, passes: bool) -> None:
    """Each stream costs something, so there is an end to it, which is the same in any pieces."""
    for octets, stream in (b"", b"\x03\x00"), (b"Hello", b"\xf3\x48\xcd\xc9\xc9\x07\x00"):
        payload = stream * streams + b"\x00"
        for cutter in whole, by_octets, lambda data: [data[:7], data[7:]]:
            inflater = Inflater(15, False)
            for _ in range(2):
                if passes:
                    assert inflate(inflater, cutter(payload), 1000) == octets * streams
                else:
                    with pytest.raises(ProtocolError):
                        inflate(inflater, cutter(payload), 1_000_000)
                    break


def strictly_inflated(payload: bytes, bits: int) -> bytes:
    """Inflate in small steps: zlib lets distances pass the window within the output of one call."""
    decompressor, data, result = zlib.decompressobj(-bits), payload + TAIL, b""
    while data:
        result += decompressor.decompress(data, 100)
        data = decompressor.unconsumed_tail
    return result + decompressor.decompress(b"")


@pytest.mark.parametrize("bits", range(9, 16))
def test_window(bits: int) -> None:
    """A Deflater refers no further back than was agreed on; an Inflater looks just as far."""
    near, far = RANDOM[:(1 << bits) - 270], RANDOM[:(1 << bits) + 10]
    for octets in near + near, far + far, RANDOM[:200] + bytes(1 << bits) + RANDOM[:200]:
        deflater, inflater = halves(9, bits)
        payload = deflater.deflate(octets)
        assert strictly_inflated(payload, bits) == octets
        assert inflate(inflater, at(payload, range(0, len(payload), 50))) == octets
        assert (len(payload) < len(octets) * 0.8) is (octets != far + far)
    if bits < 15:
        with pytest.raises(zlib.error):
            strictly_inflated(deflated(far + far, bits + 1), bits)


def test_window_of_8_bits() -> None:
    """zlib's own clients take 9 bits where 8 were agreed on."""
    octets = RANDOM[:250] * 2
    payload = deflated(octets, 9)
    assert len(payload) < 300
    assert inflate(Inflater(8, False), [payload]) == octets


@pytest.mark.parametrize("level", range(1, 10))
def test_level(level: int) -> None:
    """It is zlib's."""
    deflater, inflater = halves(level)
    payload = deflater.deflate(LINES)
    assert inflate(inflater, [payload]) == LINES
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
    assert payload + TAIL == compressor.compress(LINES) + compressor.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize("takeover", [False, True])
def test_context_takeover(takeover: bool) -> None:
    """With it the second message refers to the first, without it both are the same."""
    deflater, inflater = halves(takeover=takeover)
    first, second = deflater.deflate(LINES), deflater.deflate(LINES)
    assert (len(second) < len(first) / 4) is takeover
    assert takeover or first == second
    for cutter in whole, by_octets:
        inflater = Inflater(15, takeover)
        assert [inflate(inflater, cutter(payload)) for payload in (first, second, b"\x00")] == [LINES, LINES, b""]
    if takeover:
        with pytest.raises(ProtocolError):
            inflate(Inflater(15, False), [second])


# Round trips

message_lists = st.lists(st.one_of(
    st.binary(min_size=1, max_size=60),
    st.builds(lambda octets, times: octets * times, st.binary(min_size=1, max_size=9), st.integers(1, 2000)),
    st.sampled_from([LINES, RANDOM[:500], RANDOM[:20_000]]),
), max_size=6)
levels, windows = st.integers(1, 9), st.integers(9, 15)


@bounded
@given(message_lists, levels, windows, st.booleans(), cuts, st.sets(st.integers(0, 5)))
def test_round_trip(
    messages: list[bytes], level: int, bits: int, takeover: bool, places: list[int], restarts: set[int],
) -> None:
    """With ourselves and with zlib, which keeps its window all the time; restarts in between do no harm."""
    deflater, inflater = halves(level, bits, takeover)
    window = zlib.decompressobj(-bits)
    for i, message in enumerate(messages):
        if i in restarts:
            deflater.restart()
        payload = deflater.deflate(message)
        assert inflate(inflater, at(payload, places), len(message)) == message
        assert window.decompress(payload + TAIL) == message


@bounded
@given(message_lists, levels, windows, st.booleans(), cuts)
def test_round_trip_from_zlib(
    messages: list[bytes], level: int, bits: int, takeover: bool, places: list[int],
) -> None:
    """A client may flush, fragment and finish as it likes (RFC 7692 7.2.1)."""
    inflater = Inflater(bits, takeover)
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits)
    for i, message in enumerate(messages):
        if not takeover or i % 3 == 2:
            compressor = zlib.compressobj(level, zlib.DEFLATED, -bits, 1 + i)
        payload = b""
        for part in at(message, places):
            payload += compressor.compress(part)
            if len(part) % 2:
                payload += compressor.flush((zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH)[i % 2])
        if i % 4 == 3:
            payload += compressor.flush() + b"\x00"
            compressor = zlib.compressobj(level, zlib.DEFLATED, -bits)
        else:
            payload = (payload + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        assert inflate(inflater, at(payload, places), len(message)) == message


@bounded
@given(message_lists, levels, windows, windows, st.booleans(), st.booleans(), cuts)
def test_round_trip_with_websockets(
    messages: list[bytes], level: int, our_bits: int, their_bits: int, our_takeover: bool, their_takeover: bool,
    places: list[int],
) -> None:
    """Both ways, the extension of another library at the other end."""
    theirs = PerMessageDeflate(not our_takeover, not their_takeover, our_bits, their_bits, {"level": level})
    deflater, inflater = Deflater(level, our_bits, our_takeover), Inflater(their_bits, their_takeover)
    for message in messages:
        received = theirs.decode(TheirFrame(TheirOpcode.BINARY, deflater.deflate(message), rsv1=True))
        assert received.data == message
        parts = at(message, places)
        payload = b""
        for i, part in enumerate(parts):
            opcode = TheirOpcode.CONT if i else TheirOpcode.BINARY
            payload += bytes(theirs.encode(TheirFrame(opcode, part, fin=i == len(parts) - 1)).data)
        assert inflate(inflater, at(payload, places), len(message)) == message


CLIENTS = [
    ClientPerMessageDeflateFactory(*options)
    for options in itertools.product([False, True], [False, True], [None, 9, 15], [None, True, 9, 15])
]
SERVERS = [
    Deflate(level=1, server_context_takeover=ours, client_context_takeover=theirs, server_max_window_bits=our_bits,
            client_max_window_bits=their_bits)
    for ours, theirs, our_bits, their_bits in itertools.product([False, True], [False, True], [9, 15], [9, 15])
]


@pytest.mark.parametrize("server", SERVERS, ids=str)
def test_agreement_with_websockets(server: Deflate) -> None:
    """The client of another library takes every answer to its offers, and then both understand each other."""
    for client in CLIENTS:
        offer = build_extension([(client.name, list(client.get_request_params()))])
        agreement = server.negotiate(parse_extensions(offer))
        assert agreement is not None
        (_, parameters), = parse_extension(agreement.extension)
        try:
            theirs = client.process_response_params(parameters, [])
        except NegotiationError as error:  # pragma: no cover
            pytest.fail(f"{offer}: {agreement.extension}: {error}")
        assert isinstance(theirs, PerMessageDeflate)
        protocol = Protocol(agreement=agreement)
        for message in LINES, RANDOM[:3000] * 2, LINES:
            frame, = server_frames(protocol.send_message(message))
            assert theirs.decode(TheirFrame(TheirOpcode(frame.opcode), frame.payload, rsv1=True)).data == message
            payload = bytes(theirs.encode(TheirFrame(TheirOpcode.BINARY, message)).data)
            protocol.receive_data(client_frame(BINARY, payload, rsv=RSV1))
            assert protocol.next_event() == (BINARY, message)


# Compressed messages among others

def read(
    chunks: Iterable[bytes], max_size: int | None = None, takeover: bool = True, compressed: bool = True,
) -> tuple[Events, type[Exception] | None]:
    """Return what a new reader makes of the bytes: opcodes and payloads, and the kind of the error that ended it."""
    reader = MessageReader(max_size=max_size, inflater=Inflater(15, takeover) if compressed else None)
    messages, error = pump(reader.feed, reader.next_message, chunks)
    return [(message.opcode, message.payload) for message in messages], type(error) if error else None


def fragments(opcode: int, payload: bytes, *places: int, between: bytes = b"") -> bytes:
    """Return a compressed message, cut at places."""
    parts = [payload[start:end] for start, end in zip([0, *places], [*places, len(payload)])]
    return between.join(
        client_frame(CONTINUATION if i else opcode, part, i == len(parts) - 1, 0 if i else RSV1)
        for i, part in enumerate(parts))


HELLO = deflated(b"Hello")
EURO = "€uro €".encode()
PING_A, PONG_B = client_frame(PING, b"a"), client_frame(PONG, b"b")
STREAMS: list[tuple[str, bytes, Events]] = [
    ("whole", fragments(TEXT, HELLO), [(TEXT, "Hello")]),
    ("binary", fragments(BINARY, HELLO), [(BINARY, b"Hello")]),
    ("7.2.3.1", fragments(TEXT, HELLO, 3), [(TEXT, "Hello")]),
    ("a fragment per octet", fragments(TEXT, HELLO, *range(1, 7)), [(TEXT, "Hello")]),
    ("empty fragments", fragments(TEXT, HELLO, 0, 0, 3, 3, 7, 7), [(TEXT, "Hello")]),
    ("empty", fragments(TEXT, b"\x00"), [(TEXT, "")]),
    ("empty, two octets", fragments(BINARY, b"\x02\x00"), [(BINARY, b"")]),
    ("empty in fragments", fragments(BINARY, b"\x02\x00", 0, 1), [(BINARY, b"")]),
    ("control frames between", fragments(TEXT, HELLO, 2, 4, between=PING_A + PONG_B),
     [(PING, b"a"), (PONG, b"b"), (PING, b"a"), (PONG, b"b"), (TEXT, "Hello")]),
    ("Close between", client_frame(TEXT, HELLO[:3], False, RSV1) + client_frame(CLOSE, b"\x03\xe8bye"),
     [(CLOSE, b"\x03\xe8bye")]),
    ("plain ones among them",
     client_frame(TEXT, b"a") + fragments(TEXT, HELLO, 3) + client_frame(BINARY, b"b", fin=False)
     + client_frame(CONTINUATION, HELLO) + fragments(TEXT, HELLO),
     [(TEXT, "a"), (TEXT, "Hello"), (BINARY, b"b" + HELLO), (TEXT, "Hello")]),
    ("code points in two fragments", fragments(TEXT, deflated(EURO), *range(1, len(deflated(EURO)))),
     [(TEXT, EURO.decode())]),
    ("BFINAL in fragments", fragments(TEXT, bytes.fromhex("f348cdc9c9070000"), 7), [(TEXT, "Hello")]),
    ("stored", fragments(TEXT, bytes.fromhex("000500faff48656c6c6f00"), 4, 6), [(TEXT, "Hello")]),
]


@pytest.mark.parametrize("takeover", [False, True])
@pytest.mark.parametrize(("name", "data", "events"), STREAMS, ids=[row[0] for row in STREAMS])
def test_compressed_messages(name: str, data: bytes, events: Events, takeover: bool) -> None:
    """The same comes out whole, in octets, and twice; the same at exactly the limit."""
    most = max(len(payload.encode() if isinstance(payload, str) else payload) for _, payload in events)
    for chunks in whole(data), by_octets(data):
        assert read(chunks, most, takeover) == (events, None)
    if name != "Close between":
        assert read([data, data], None, takeover) == (events * 2, None)


PINGED: Events = [(PING, b"")]
BROKEN: list[tuple[str, bytes, Events, type[ProtocolError]]] = [
    ("RSV1 on a continuation",
     client_frame(TEXT, HELLO[:3], False, RSV1) + client_frame(CONTINUATION, HELLO[3:], True, RSV1), [], ProtocolError),
    ("RSV1 on a continuation of a plain message",
     client_frame(TEXT, b"a", False) + client_frame(CONTINUATION, HELLO, True, RSV1), [], ProtocolError),
    *((f"RSV1 on opcode {opcode}", client_frame(PING) + client_frame(opcode, b"", rsv=RSV1), PINGED, ProtocolError)
      for opcode in (CLOSE, PING, PONG)),
    *((f"reserved bits {rsv:03b}", client_frame(TEXT, HELLO, rsv=rsv), [], ProtocolError)
      for rsv in (1, 2, 3, 5, 6, 7)),
    ("new compressed message before the end", client_frame(TEXT, HELLO, False, RSV1) + fragments(TEXT, HELLO), [],
     ProtocolError),
    ("new plain message before the end", client_frame(TEXT, HELLO, False, RSV1) + client_frame(TEXT), [],
     ProtocolError),
    ("not DEFLATE", fragments(TEXT, b"\xff\xff\xff"), [], ProtocolError),
    ("not DEFLATE in the second fragment", fragments(TEXT, HELLO + TAIL + b"\x07", 11), [], ProtocolError),
    ("not UTF-8", fragments(TEXT, deflated(b"a\xff")), [], InvalidPayload),
    ("a surrogate", fragments(TEXT, deflated(b"\xed\xa0\x80")), [], InvalidPayload),
    ("half a code point", fragments(TEXT, deflated(EURO[:-1])), [], InvalidPayload),
    ("half a code point in fragments", fragments(TEXT, deflated(EURO[:-1]), 4, 6, between=PING_A),
     [(PING, b"a"), (PING, b"a")], InvalidPayload),
]


@pytest.mark.parametrize(("name", "data", "events", "error"), BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_compressed_messages(
    name: str, data: bytes, events: Events, error: type[ProtocolError],
) -> None:
    """RFC 7692 6.2, RFC 6455 5.2, 8.1."""
    for chunks in whole(data), by_octets(data), whole(data + PING_A):
        assert read(chunks) == (events, error)


@pytest.mark.parametrize("name", ["whole", "binary", "7.2.3.1"])
def test_rsv1_without_an_agreement(name: str) -> None:
    """No one said what it means (RFC 6455 5.2)."""
    data, = (data for row, data, _ in STREAMS if row == name)
    assert read([data], compressed=False) == ([], ProtocolError)
    assert read([data[:2]], compressed=False) == ([], ProtocolError)


def test_text_is_refused_as_soon_as_it_cannot_be_utf8() -> None:
    """A fragment that was inflated is checked before the next one comes (RFC 6455 8.1)."""
    compressor = zlib.compressobj(wbits=-15)
    first = compressor.compress(b"a\xff") + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert read([client_frame(TEXT, first, False, RSV1)]) == ([], InvalidPayload)
    assert read([client_frame(BINARY, first, False, RSV1)]) == ([], None)


@pytest.mark.parametrize("limit", [1, 100, 5000])
def test_limit_across_fragments(limit: int) -> None:
    """What was inflated counts from fragment to fragment, for each message anew."""
    for size, error in (limit, None), (limit + 1, MessageTooBig):
        payload = deflated(bytes(size))
        events: Events = [] if error else [(BINARY, bytes(size))]
        for places in [], [1], range(1, len(payload)), [len(payload) - 1], [len(payload)]:
            data = fragments(BINARY, payload, *places)
            assert read([data], limit) == read(by_octets(data), limit) == (events, error)
            assert read([data, data], limit) == (events * 2, error)


def test_limit_stops_at_the_fragment() -> None:
    """A message that is too big is refused before the rest of it comes."""
    data = fragments(BINARY, deflated(bytes(100_000)), 40)
    assert read([data[:2 + 4 + 40]], 1000) == ([], MessageTooBig)


@pytest.mark.parametrize("limit", [1, 5, 125, 126, 1000, 65_535, 65_536, 100_000])
def test_incompressible_at_the_limit(limit: int) -> None:
    """Compressed, it is longer than the limit, which is for what it holds; an announced length says nothing."""
    for level, places in itertools.product([0, 1, 9], [[], [1], [limit // 2], [limit]]):
        for size, error in (limit, None), (limit + 1, MessageTooBig):
            one = zlib.compressobj(level, zlib.DEFLATED, -15)
            payload = (one.compress(RANDOM[:size]) + one.flush(zlib.Z_SYNC_FLUSH))[:-4]
            if size > len(RANDOM):
                continue
            assert len(payload) > size
            events: Events = [] if error else [(BINARY, RANDOM[:size])]
            assert read([fragments(BINARY, payload, *places)], limit) == (events, error)


@pytest.mark.parametrize("limit", [0, 1, 1000])
def test_compressed_octets_have_a_limit_too(limit: int) -> None:
    """A message that is nothing but empty blocks is not read for ever; how much is generous."""
    block = b"\x00\x00\x00\xff\xff"
    few = block * ((limit + 1000) // 5) + b"\x00"
    assert read([fragments(BINARY, few)], limit) == ([(BINARY, b"")], None)
    for data in (
        fragments(BINARY, block * limit + block * 10_000),
        client_frame(BINARY, block, False, RSV1) + client_frame(CONTINUATION, block * 100, False) * (10 + limit),
        client_header(BINARY, 1 << 60, rsv=RSV1, mask=bytes(4)) + block * (limit + 10_000),
    ):
        assert read([data], limit) == read(by_octets(data), limit) == ([], MessageTooBig)
    # A reader that has no limit reads on.
    assert read([fragments(BINARY, block * 10_000 + b"\x00")]) == ([(BINARY, b"")], None)


def test_limit_of_plain_messages_is_back() -> None:
    """After a compressed message, a plain frame is refused at its header again."""
    data = fragments(BINARY, deflated(bytes(100)), 3)
    assert read([data, client_header(BINARY, 101)], 100) == ([(BINARY, bytes(100))], MessageTooBig)


# Sending

def decoded(frame: ServerFrame, window: Any) -> bytes:
    """Return what a client that keeps its window reads."""
    assert frame.rsv in (0, RSV1)
    return window.decompress(frame.payload + TAIL) if frame.rsv else frame.payload


@pytest.mark.parametrize("threshold", [0, 1, 10, 1024])
def test_threshold(threshold: int) -> None:
    """From it on messages are compressed, except empty ones, which are shorter plain."""
    agreement = agreed(threshold=threshold)
    for size in {0, 1, threshold - 1, threshold, threshold + 1, 5000} - {-1}:
        protocol = Protocol(agreement=agreement)
        for payload in "x" * size, b"x" * size, bytearray(size), memoryview(bytes(size)):
            octets = payload.encode() if isinstance(payload, str) else bytes(payload)
            for data in protocol.send_message(payload), protocol.send_prepared(PreparedMessage(payload)):
                frame, = server_frames(data)
                assert frame.fin and frame.opcode == (TEXT if isinstance(payload, str) else BINARY)
                assert frame.rsv == (RSV1 if size and size >= threshold else 0)
                assert decoded(frame, zlib.decompressobj(-15)) == octets
    frame, = server_frames(Protocol(agreement=agreed(threshold=4)).send_message("éé"))
    assert frame.rsv == RSV1, "octets count, not characters"


@pytest.mark.parametrize("takeover", [False, True])
@pytest.mark.parametrize("first", "mps")
def test_prepared_messages_among_others(first: str, takeover: bool) -> None:
    """A client that keeps its window reads prepared, short and other messages in any order (RFC 7692 7.2.3)."""
    for kinds in itertools.product("mps", repeat=4):
        check_sent([first, *kinds], takeover)


def check_sent(kinds: list[str], takeover: bool) -> None:
    protocol = Protocol(agreement=agreed(threshold=100, server_context_takeover=takeover, server_max_window_bits=10))
    window = zlib.decompressobj(-10)
    prepared = PreparedMessage(RANDOM[:400] + LINES[:700])
    for i, kind in enumerate(kinds):
        if kind == "p":
            data, expected = protocol.send_prepared(prepared), RANDOM[:400] + LINES[:700]
        else:
            expected = b"short" if kind == "s" else LINES[i * 7:900] + RANDOM[:400]
            data = protocol.send_message(expected)
        frame, = server_frames(data)
        assert frame.rsv == (0 if kind == "s" else RSV1)
        assert decoded(frame, window) == expected


def test_prepared_message_is_encoded_once_for_each_kind_of_peer() -> None:
    """Once plain, once for each level and window."""
    message = PreparedMessage(LINES)
    protocols = [Protocol(agreement=agreement) for agreement in (
        None, agreed(), agreed(level=1), agreed(server_max_window_bits=9), agreed(**BOTH_TAKEOVERS),
        agreed(threshold=len(LINES) + 1))]
    frames = [protocol.send_prepared(message) for protocol in protocols]
    assert frames[0] == frames[5] and frames[1] == frames[4]
    assert len(set(frames)) == 4
    assert all(protocol.send_prepared(message) is frame for protocol, frame in zip(protocols, frames))
    for data, bits in zip(frames[1:4], [15, 15, 9]):
        frame, = server_frames(data)
        assert inflated(frame.payload, bits) == LINES


def test_an_empty_prepared_message_is_not_compressed() -> None:
    protocol = Protocol(agreement=agreed(threshold=0))
    assert [frame.rsv for frame in server_frames(protocol.send_prepared(PreparedMessage("")))] == [0]


@pytest.mark.parametrize(("agreement", "is_alone"), [
    (None, False), (agreed(), True), (agreed(level=1, server_max_window_bits=9), True),
    (agreed(client_context_takeover=True), True), (agreed(server_context_takeover=True), False),
])
def test_those_without_a_window_may_get_the_same_bytes(agreement: Agreement | None, is_alone: bool) -> None:
    protocol = Protocol(agreement=agreement)
    message = PreparedMessage(LINES)
    assert bool(protocol.compression) == is_alone
    if is_alone:
        assert protocol.send_prepared(message) is message.encode(protocol.compression)
        assert protocol.send_message(LINES) == message.encode(protocol.compression)


@bounded
@given(
    st.lists(st.tuples(st.booleans(), st.one_of(st.text(max_size=30), st.sampled_from([LINES, b"", RANDOM[:300]]))),
             max_size=8),
    st.booleans(), st.booleans(), windows, st.sampled_from([0, 5, 1024]), cuts,
)
def test_conversation(
    messages: list[tuple[bool, str | bytes]], ours: bool, theirs: bool, bits: int, threshold: int, places: list[int],
) -> None:
    """What one end sends, the other receives, whatever was agreed on."""
    agreement = agreed(
        threshold=threshold, server_context_takeover=ours, client_context_takeover=theirs, server_max_window_bits=bits,
        client_max_window_bits=bits)
    protocol = Protocol(agreement=agreement, max_message_size=len(LINES))
    client = MessageReader(masked=False, inflater=Inflater(bits, ours))
    deflater = Deflater(6, bits, theirs)
    for prepared, message in messages:
        client.feed(protocol.send_prepared(PreparedMessage(message)) if prepared else protocol.send_message(message))
        opcode = TEXT if isinstance(message, str) else BINARY
        assert client.next_message() == (opcode, message)
        octets = message.encode() if isinstance(message, str) else message
        data = client_frame(opcode, deflater.deflate(octets), rsv=RSV1) if octets else client_frame(opcode)
        events, error = pump(protocol.receive_data, protocol.next_event, at(data, places))
        assert (events, error) == ([(opcode, message)], None)


@pytest.mark.parametrize("header", [
    "permessage-deflate", "permessage-deflate; client_max_window_bits", "permessage-deflate; nonsense", "bzip2", ",",
])
def test_offers_that_come_again(header: str) -> None:
    """What was agreed on with one client holds for the others with the same offer, and for the same options only."""
    deflate, other = Deflate(), Deflate(level=1)
    assert agree(deflate, header) == negotiate(header)
    assert agree(Deflate(), header) is agree(deflate, header)
    assert agree(other, header) == negotiate(header, level=1)
