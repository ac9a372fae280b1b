"""Peers that keep their compression window although they agreed not to, such as Safari 15 (RFC 7692 7.1.1.2)."""

from __future__ import annotations

import json
import random
import sys
import zlib
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import bounded, cuts
from wire import BINARY, RSV1, TEXT, at, by_octets, client_frame, deflated, whole

from wsthread import Deflate, ListenableManager, Upgrader, testing
from wsthread.exceptions import MessageTooBig, ProtocolError
from wsthread.wire.deflate import WATCHED, Inflater

RANDOM = random.Random(1347).randbytes(100_000)
Cutter = Callable[[bytes], Iterable[bytes]]
CUTTERS: list[Cutter] = [
    whole, by_octets, lambda data: [b"", data, b""], lambda data: [data[:3], b"", data[3:]],
    lambda data: [data[:-1], data[-1:]],
]


class Keeper:
    """Compresses like a client that never restarts its compressor."""

    def __init__(self, bits: int = 15) -> None:
        self._compressor = zlib.compressobj(6, zlib.DEFLATED, -bits)

    def deflate(self, octets: bytes) -> bytes:
        return (self._compressor.compress(octets) + self._compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflate(inflater: Inflater, pieces: Iterable[bytes], limit: int | None = None) -> bytes:
    """Inflate one message, as its reader does."""
    result, pieces = b"", list(pieces)
    for i, piece in enumerate(pieces):
        result += inflater.inflate(piece, i == len(pieces) - 1, None if limit is None else limit - len(result))
    return result


def held(inflater: Inflater) -> int:
    """Return how many bytes an Inflater keeps, zlib's window not among them."""
    watch = inflater._watch
    return 0 if watch is None else sum(
        sys.getsizeof(getattr(watch, name)) for name in ("_before", "_compressed", "_inflated"))


def chatter(number: int) -> bytes:
    """Return a message like those of an application."""
    return json.dumps({"type": "move", "number": number, "x": number * 7, "y": number * 3}).encode()


@pytest.mark.parametrize("cutter", CUTTERS)
@pytest.mark.parametrize("bits", [9, 12, 15])
def test_understood(bits: int, cutter: Cutter) -> None:
    keeper, inflater = Keeper(bits), Inflater(bits, False, WATCHED)
    for number in range(30):
        message = chatter(number)
        assert inflate(inflater, cutter(keeper.deflate(message)), len(message)) == message
    assert held(inflater) == 0  # zlib has the window now.


@pytest.mark.parametrize("cutter", CUTTERS)
@pytest.mark.parametrize("first", range(WATCHED - 1))
def test_understood_as_soon_as_it_refers_back(first: int, cutter: Cutter) -> None:
    """After messages that have nothing in common; and in the middle of one, cut anywhere."""
    keeper, inflater = Keeper(), Inflater(15, False, WATCHED)
    messages = [RANDOM[i * 60:(i + 1) * 60] for i in range(first)]
    messages += [RANDOM[5000:5200], b"new " + RANDOM[5000:5200] + b" new", RANDOM[:60]]
    for message in messages[:WATCHED + 1]:
        assert inflate(inflater, cutter(keeper.deflate(message))) == message


@pytest.mark.parametrize("size", [1, 3, 1000, 32_768, 32_769, 60_000])
def test_understood_after_a_message_of_any_size(size: int) -> None:
    """The window is 32 KiB, and a reference goes no further."""
    keeper, inflater = Keeper(), Inflater(15, False, WATCHED)
    first = RANDOM[:size]
    for message in first, first[-200:] + b"!", first[-200:] * 3, first[:100]:
        assert inflate(inflater, [keeper.deflate(message)], len(message)) == message


def test_after_the_watch_nothing_is_kept() -> None:
    """A peer that keeps to the agreement costs nothing, and is held to it."""
    inflater = Inflater(15, False, WATCHED)
    payload = deflated(RANDOM[:3000])
    for number in range(1, 20):
        inflate(inflater, [payload])
        assert (held(inflater) > 0) is (number < WATCHED)
    keeper = Keeper()
    inflate(inflater, [keeper.deflate(b"Hello, hello")])
    with pytest.raises(ProtocolError, match="not DEFLATE data"):
        inflate(inflater, [keeper.deflate(b"Hello, hello")])


def test_memory() -> None:
    """What is kept is what the peer sent, and 32 KiB at most."""
    inflater = Inflater(15, False, WATCHED)
    assert held(inflater) == 0
    inflate(inflater, [deflated(chatter(1))])
    assert held(inflater) < 300
    for _ in range(WATCHED - 2):
        inflate(inflater, [deflated(bytes(1_000_000))])
        assert held(inflater) < 33_000


def test_memory_within_a_message() -> None:
    """A message of nothing but empty blocks is not kept; a peer that sends one is no browser."""
    inflater = Inflater(15, False, WATCHED)
    inflate(inflater, [deflated(b"Hello")])
    most = 0
    for _ in range(100_000):
        inflater.inflate(b"\x00\x00\x00\xff\xff", False, 1000)
        most = max(most, held(inflater))
    assert most < 100_000 and held(inflater) == 0


def test_without_a_watch() -> None:
    """An Inflater that was not told to watch keeps nothing."""
    keeper, inflater = Keeper(), Inflater(15, False)
    inflate(inflater, [keeper.deflate(b"Hello, hello")])
    with pytest.raises(ProtocolError):
        inflate(inflater, [keeper.deflate(b"Hello, hello")])


@pytest.mark.parametrize("cutter", CUTTERS)
def test_garbage_is_garbage(cutter: Cutter) -> None:
    """The second attempt finds the same."""
    for garbage in b"\xff", b"\x06", b"\x00\x05\x00\x00\x00", RANDOM[:50]:
        for before in [], [b"Hello"], [b"Hello", RANDOM[:40_000]]:
            inflater = Inflater(15, False, WATCHED)
            for message in before:
                inflate(inflater, [deflated(message)])
            with pytest.raises(ProtocolError, match="not DEFLATE data"):
                inflate(inflater, [*cutter(garbage), RANDOM[:300]])


def test_limit() -> None:
    """It holds for what a reference gives, and no byte more is inflated."""
    for size, error in (5000, False), (5001, True):
        keeper, inflater = Keeper(), Inflater(15, False, WATCHED)
        inflate(inflater, [keeper.deflate(RANDOM[:5001])])
        payload = keeper.deflate(RANDOM[:size])
        assert len(payload) < 1000
        if error:
            with pytest.raises(MessageTooBig):
                inflate(inflater, [payload], 5000)
        else:
            assert inflate(inflater, [payload], 5000) == RANDOM[:size]


@bounded
@given(
    st.lists(st.one_of(st.binary(min_size=1, max_size=60), st.integers(0, 50).map(chatter),
                       st.sampled_from([RANDOM[:500], RANDOM[:40_000], bytes(3000)])), max_size=10),
    st.integers(9, 15), cuts, st.booleans())
def test_round_trip(messages: list[bytes], bits: int, places: list[int], keeps: bool) -> None:
    """Whatever a peer sends, what it keeps, and how it cuts: the same comes out."""
    keeper, inflater = Keeper(bits), Inflater(bits, False, WATCHED)
    for message in [b"the first", b"the first", *messages]:
        if not keeps:
            keeper = Keeper(bits)
        assert inflate(inflater, at(keeper.deflate(message), places), len(message)) == message


@pytest.mark.parametrize("compression", [Deflate(), Deflate(client_max_window_bits=10)])
def test_safari(compression: Deflate) -> None:
    """The second message refers to the first, as of a client that offers compression without parameters."""
    manager = ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload))
    headers = {
        "Sec-WebSocket-Extensions": "permessage-deflate",
        "User-Agent": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
                      "Version/15.1 Safari/605.1.15"}
    with testing.connect(Upgrader(manager, compression=compression), headers=headers) as ws:
        assert "client_no_context_takeover" in ws.response.headers["Sec-WebSocket-Extensions"]
        keeper = Keeper()
        for number in range(30):
            message = chatter(number)
            data = client_frame(TEXT if number % 2 else BINARY, keeper.deflate(message), rsv=RSV1)
            ws._socket._socket.sendall(data)
            assert ws.receive() == (message.decode() if number % 2 else message)
