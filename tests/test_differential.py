"""The same bytes to this package and to the Sans-I/O half of ``websockets``: both have to see the same.

Streams are made of frames that keep the rules more often than not. What the two make of them has to be the same
events and the same close code for what was wrong, at the same frame. Where they differ and both may, the reason is
one of :func:`difference`; after it, only what came before is compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from strategies import cuts
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.protocol import State
from websockets.server import ServerProtocol
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, RSV1, TEXT, at, client_header, close_payload, xor

from wsthread import speedups
from wsthread.exceptions import ProtocolError
from wsthread.wire import frames
from wsthread.wire.deflate import Agreement, Deflate, parse_extensions
from wsthread.wire.protocol import Protocol

BOUNDED = settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
TAIL = b"\x00\x00\xff\xff"
#: What to put into the frame parser for the same results: the Python versions, and what lets it take each frame alone.
OTHER_WAYS: list[dict[str, Any]] = [
    {name: speedups.python_versions[name] for name in ("mask", "mask_in_place", "read_messages")},
    {"mask": speedups.python_versions["mask"], "read_messages": lambda buffer, start, *rest: ([], start)},
]
T = TypeVar("T")
Events = list[tuple[int, "str | bytes"]]


class Spec(NamedTuple):
    """A frame of the client. It is cut short where its header announces more than the payload has."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0
    mask: bytes | None = bytes(4)
    form: int | None = None
    missing: int = 0

    @property
    def length(self) -> int:
        """What the header says."""
        return len(self.payload) + self.missing

    def encode(self) -> bytes:
        """Return it as it is on the wire."""
        form = 64 if self.form and self.length > 125 else self.form  # What fits.
        header = client_header(self.opcode, self.length, self.fin, self.rsv, self.mask, form)
        return header + (self.payload if self.mask is None else xor(self.payload, self.mask))


class Outcome(NamedTuple):
    """What came of a stream: the events, the close code of the failure if any, and the frame that brought the end."""

    events: Events
    code: int | None
    at: int


class Before(NamedTuple):
    """What they knew before a frame: the room left, whether a message is open, and whether it is compressed."""

    room: int | None
    open: bool
    compressed: bool


def ours(chunks: list[bytes], limit: int | None, agreement: Agreement | None) -> Outcome:
    """Return what this package makes of the chunks."""
    protocol = Protocol(max_message_size=limit, agreement=agreement)
    events: Events = []
    for i, chunk in enumerate(chunks):
        protocol.receive_data(chunk)
        try:
            while (message := protocol.next_event()) is not None:
                events.append((message.opcode, message.payload))
        except ProtocolError as error:
            return Outcome(events, error.code, i)
        if protocol.close_received is not None:
            return Outcome(events, None, i)
    return Outcome(events, None, len(chunks))


class Watched(PerMessageDeflate):
    """The extension of the others, that remembers its last decompressor."""

    seen: Any = zlib.decompressobj()

    @property
    def decoder(self) -> Any:
        return self.seen

    @decoder.setter
    def decoder(self, value: Any) -> None:
        self.seen = value

    @decoder.deleter
    def decoder(self) -> None:
        """Keep it."""


class Theirs:
    """The others, with what their I/O layers do besides: fragments put together, UTF-8 checked as they come."""

    def __init__(self, limit: int | None, agreement: Agreement | None) -> None:
        self._protocol = ServerProtocol(state=State.OPEN, max_size=limit)
        self.takeover = agreement is not None and agreement.client_context_takeover
        self.extension: Watched | None = None
        if agreement is not None:
            self.extension = Watched(
                not agreement.client_context_takeover, not agreement.server_context_takeover,
                agreement.client_max_window_bits, agreement.server_max_window_bits)
            self._protocol.extensions = [self.extension]
        self.limit = limit
        self.finished: list[bool] = []  # For each frame, whether the decompressor was at its end after it.
        self._opcode: int | None = None  # That of the message under way, and what it holds.
        self._data = b""

    def run(self, specs: list[Spec]) -> tuple[Outcome, list[Before]]:
        """Return what they make of the frames, and what they knew before each of them."""
        events: Events = []
        states: list[Before] = []
        for i, spec in enumerate(specs):
            states.append(Before(
                None if self.limit is None else self.limit - len(self._data), self._opcode is not None,
                self.extension is not None and self.extension.decode_cont_data))
            self._protocol.receive_data(spec.encode())
            self.finished.append(self.extension is not None and self.extension.seen.eof)
            try:
                for frame in self._protocol.events_received():
                    events += self._collect(frame.opcode, bytes(frame.data), frame.fin)  # type: ignore[union-attr]
            except UnicodeDecodeError:
                return Outcome(events, 1007, i), states
            if self._protocol.parser_exc is not None:
                assert self._protocol.close_sent is not None
                return Outcome(events, self._protocol.close_sent.code, i), states
            if self._protocol.close_rcvd is not None:
                return Outcome(events, None, i), states
        return Outcome(events, None, len(specs)), states

    def _collect(self, opcode: int, payload: bytes, fin: bool) -> Events:
        if opcode >= CLOSE:
            return [(opcode, payload)]
        if opcode != CONTINUATION:
            self._opcode = opcode
        assert self._opcode is not None
        self._data += payload
        if self._opcode == TEXT:
            check_utf8(self._data, fin)
        if not fin:
            return []
        message = self._opcode, self._data.decode() if self._opcode == TEXT else self._data
        self._opcode, self._data = None, b""
        return [message]


def check_utf8(octets: bytes, final: bool) -> None:
    """Refuse what is not UTF-8, and of a text that goes on what cannot become UTF-8 (RFC 6455 8.1)."""
    try:
        octets.decode()
    except UnicodeDecodeError as error:
        if final or error.reason != "unexpected end of data":
            raise


def inflated_size(specs: list[Spec], takeover: bool) -> int:
    """Return how long the compressed message is that the last frame belongs to, as far as it has come."""
    window, size, compressed = zlib.decompressobj(-15), 0, False
    for spec in specs:
        if spec.opcode in (TEXT, BINARY):
            compressed, size = bool(spec.rsv & RSV1), 0
            window = window if takeover else zlib.decompressobj(-15)
        if compressed and spec.opcode < CLOSE:
            size += len(window.decompress(spec.payload + (TAIL if spec.fin else b"")))
    return size


def difference(specs: list[Spec], state: Before, we: Outcome, they: Outcome, theirs: Theirs) -> str | None:
    """Return why the two may differ at the last of some frames; None if they may not."""
    spec = specs[-1]
    data = spec.opcode < CLOSE
    compressed = state.compressed if spec.opcode == CONTINUATION else data and bool(spec.rsv & RSV1)
    too_long = state.room is not None and spec.length > state.room
    if spec.length >> 63 and we.code == 1002 and they.code in (1009, None):
        # RFC 6455 5.2: the most significant bit MUST be 0. They take it for a length.
        return "most significant bit of the length"
    if we.code == 1002 and they.code == 1009 and breaks_a_rule(spec, state, theirs.extension is not None):
        # RFC 6455 7.1.7 names no order for a frame that is wrong twice. We read the header from its first octet on and
        # then look whether the frame is in place; they look at the length first, and inflate before the rest.
        return "wrong twice"
    if not data and spec.form and we.code == 1002:
        # RFC 6455 5.2: the fewest octets MUST be used for the length. Where they cannot be needed, we insist.
        return "long form of a short length"
    if not data and too_long and they.code == 1009:
        # RFC 6455 5.5: a control frame has at most 125 octets and is no part of the message it comes between. They
        # take it off the room that is left.
        return "control frame longer than the room left"
    if spec.opcode == CLOSE and state.open and they.code == 1002 and we.code is None:
        # RFC 6455 5.4: control frames MAY come between fragments, 5.5.1 makes no exception for Close.
        return "Close between fragments"
    if compressed and too_long and they.code == 1009:
        # RFC 7692 says nothing of limits. Ours is for the message; theirs is for what is on the wire as well.
        return "compressed frame longer than the room left"
    if spec.missing and we.code is not None and they.code is None:
        # RFC 6455 5.4, 8.1: we treat what has come of a frame as a fragment. They wait for the rest of it.
        return "first half of a frame"
    if spec.missing and too_long and they.code == 1009 and we.code in (1002, 1007, None):
        # We wait for the octet beyond the limit when the fragments before were within it; they look at the header.
        return "fragment that will be too long"
    if compressed and theirs.finished[len(specs) - 1]:
        # RFC 7692 7.2.3.4: a sender may set BFINAL. They take nothing that follows it.
        return "BFINAL"
    if compressed and not theirs.takeover and any(one.rsv & RSV1 for one in specs[:-1]):
        # RFC 7692 7.1.1.2: nothing may refer to the message before. Safari does it all the same, so we understand it.
        return "reference to the message before"
    if compressed and state.room is not None and {we.code, they.code} == {1002, 1009}:
        # The octet that shows that a message is too big may also be the one that is not DEFLATE.
        return "not DEFLATE at the limit"
    if compressed and theirs.limit is not None and we.code == 1009 and (they.at > we.at or they.code == 1007):
        # A message that is too big passes them by: when no room is left, they tell zlib 0, which means no limit; and
        # zlib may have taken all input and still owe output, which they do not ask for.
        if inflated_size(specs, theirs.takeover) > theirs.limit:
            return "limit not held"
    return None


def breaks_a_rule(spec: Spec, state: Before, rsv1_allowed: bool) -> bool:
    """Tell whether a frame is wrong for anything but its length (RFC 6455 5.2, 5.4, 5.5)."""
    if spec.opcode >= CLOSE and (not spec.fin or spec.rsv or spec.length > 125):
        return True
    if spec.rsv & ~RSV1 or spec.rsv and (not rsv1_allowed or spec.opcode == CONTINUATION):
        return True
    return spec.opcode < CLOSE and (spec.opcode == CONTINUATION) != state.open


def compare(specs: list[Spec], places: list[int], limit: int | None, agreement: Agreement | None) -> None:
    """Compare the two, and the first to itself with other chunks, without the C extension, and frame by frame."""
    we = ours([spec.encode() for spec in specs], limit, agreement)
    judge = Theirs(limit, agreement)
    they, states = judge.run(specs)
    if we == they:
        event(f"same: {we.code}")
    else:
        index = min(we.at, they.at)
        assert index < len(specs), (we, they)
        reason = difference(specs[:index + 1], states[index], we, they, judge)
        assert reason is not None, (specs[index], states[index], we, they)
        event(reason)
        common = min(len(we.events), len(they.events))
        if reason == "limit not held":
            common = len(we.events)
        assert we.events[:common] == they.events[:common]

    last = specs[min(we.at, len(specs) - 1)]
    assert we.code == 1002 or not last.length >> 63

    for instead in OTHER_WAYS:
        with mock.patch.multiple(frames, **instead):
            again = ours(at(b"".join(spec.encode() for spec in specs), places), limit, agreement)
        assert again.events == we.events
        assert (again.code is None) == (we.code is None)
        if limit is None and agreement is None:
            assert again.code == we.code


# Streams

class Tape:
    """Octets that decide, one for each choice; 0 when they are used up. Faster than a strategy for each choice."""

    def __init__(self, octets: bytes) -> None:
        self._octets = iter(octets)

    def number(self) -> int:
        """Return 0 to 255."""
        return next(self._octets, 0)

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.number() % len(options)]


TEXTS = [
    b"", b"Hello", "é€😀".encode(), b"x" * 125, b"x" * 126, b"y" * 1000, "€".encode() * 400,
    "\ufeff\0\U0010ffff".encode(),
]
NOT_TEXTS = [
    b"\xff", b"\xc0\x80", b"ab\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"ok\xe2\x82", b"\x80",
    b"a\xc3(",
]
CLOSES = [
    b"", b"\x03", *(close_payload(code) for code in (999, 1000, 1004, 1005, 1006, 1014, 1015, 2999, 3000, 4999, 5000)),
    *(close_payload(1000, reason) for reason in (*TEXTS[:3], *NOT_TEXTS, b"x" * 123, b"x" * 124)),
]
MASKS = [bytes(4), b"\x01\x02\x03\x04", b"\xff\x00\x80\x7f"]
FORMS = [None, None, None, 16, 64]
LIMITS = st.sampled_from([None, None, 3, 30, 125, 126, 500, 2000])
tapes = st.binary(min_size=50, max_size=120).map(Tape)


def stream(tape: Tape, takeover: bool | None) -> list[Spec]:
    """Return the frames of a client; with takeover None, nothing is compressed."""
    specs: list[Spec] = []
    compressor = None
    while len(specs) < 12:
        kind = tape.pick("-mmmmmmmmccwx")
        if kind == "-" and specs:
            break
        if takeover is not None and not (takeover and compressor):
            compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
        if kind == "c":
            specs.append(control(tape))
        elif kind == "w":
            specs.append(wild(tape))
        elif kind == "x":
            specs.append(Spec(CLOSE, tape.pick(CLOSES), mask=tape.pick(MASKS)))
        else:
            specs += message(tape, compressor)
    return mutated(specs, tape)


def control(tape: Tape) -> Spec:
    """Return a control frame as it should be."""
    return Spec(tape.pick([PING, PONG]), tape.pick([b"", b"a", b"ping", b"pong", bytes(125)]), mask=tape.pick(MASKS))


def message(tape: Tape, compressor: Any) -> list[Spec]:
    """Return a message in fragments, perhaps compressed, perhaps not UTF-8, and control frames in between."""
    opcode, octets, rsv = tape.pick([TEXT, BINARY]), tape.pick(TEXTS * 3 + NOT_TEXTS), 0
    octets = octets[tape.pick([0, 0, 0, 1, 2]):] + tape.pick(["", "", "", "…"]).encode()
    if compressor is not None and tape.pick([True, False]):
        rsv = RSV1
        octets = compressed(tape, compressor, octets)
    parts = at(octets, [tape.number() for _ in range(tape.pick([0, 0, 1, 2, 3]))])
    specs: list[Spec] = []
    for i, part in enumerate(parts):
        if i and tape.pick([False, True]):
            specs.append(tape.pick([control] * 9 + [wild])(tape))
        specs.append(Spec(
            CONTINUATION if i else opcode, part, i == len(parts) - 1, 0 if i else rsv, tape.pick(MASKS),
            tape.pick(FORMS)))
    return specs


def compressed(tape: Tape, compressor: Any, octets: bytes) -> bytes:
    """Return a compressed payload (RFC 7692 7.2.1), or what should be one."""
    kind = tape.pick("======bwo-")
    if kind == "-":  # As it is: it is hardly DEFLATE.
        return octets
    if kind == "b":
        octets *= 300
    if kind == "w":  # A window and an effort of its own.
        compressor = zlib.compressobj(tape.number() % 10, zlib.DEFLATED, -9)
    if kind == "o":  # Octets that no effort makes shorter.
        octets = bytes((i * i * tape.number() + i) % 251 for i in range(tape.number() * 3))
    result: bytes = compressor.compress(octets) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return result[:-4]


def wild(tape: Tape) -> Spec:
    """Return a frame that is wrong, or in the wrong place, or a Close."""
    opcode = tape.pick([CONTINUATION, TEXT, BINARY, CLOSE, CLOSE, PING, *range(16)])
    payloads = CLOSES if opcode == CLOSE else TEXTS + NOT_TEXTS
    return Spec(
        opcode, tape.pick(payloads), tape.pick([True, True, True, False]), tape.pick([0] * 12 + [1, 2, 4, 4, 7]),
        tape.pick([*MASKS * 3, None]), tape.pick(FORMS))


def mutated(specs: list[Spec], tape: Tape) -> list[Spec]:
    """Return the frames, perhaps with one of them lost, repeated or wrong, or with less than the last announces."""
    index = tape.number() % len(specs)
    spec = specs[index]
    kind = tape.pick("------------lrf123mm")
    if kind == "m":
        missing = tape.pick([1, 2, 60, 2000, 1 << 20, (1 << 63) - 5000, 1 << 63])
        return [*specs[:-1], specs[-1]._replace(missing=missing)]
    instead = {
        "-": [spec], "l": [] if specs[1:] else [spec], "r": [spec, spec], "f": [spec._replace(fin=not spec.fin)],
        **{f"{bit + 1}": [spec._replace(rsv=spec.rsv ^ 4 >> bit)] for bit in range(3)},
    }[kind]
    return [*specs[:index], *instead, *specs[index + 1:]]


@BOUNDED
@given(tapes.map(lambda tape: stream(tape, None)), cuts, LIMITS)
def test_plain(specs: list[Spec], places: list[int], limit: int | None) -> None:
    """Without compression."""
    compare(specs, places, limit, None)


def agreed(takeover: bool) -> Agreement:
    """Return an agreement with a client that keeps its window or not."""
    deflate = Deflate(client_context_takeover=takeover)
    agreement = deflate.negotiate(parse_extensions("permessage-deflate"))
    assert agreement is not None
    return agreement


@BOUNDED
@given(tapes.map(lambda tape: stream(tape, False)), cuts, LIMITS)
def test_compressed(specs: list[Spec], places: list[int], limit: int | None) -> None:
    """With compression, each message by itself."""
    compare(specs, places, limit, agreed(False))


@BOUNDED
@given(tapes.map(lambda tape: stream(tape, True)), cuts, LIMITS)
def test_compressed_with_context_takeover(specs: list[Spec], places: list[int], limit: int | None) -> None:
    """With compression, for a client that keeps its window."""
    compare(specs, places, limit, agreed(True))
