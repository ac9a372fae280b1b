"""RFC 6455 as a table: what a server must make of a client's frames, one row per rule.

The rows have the substance of the Autobahn test suite, sections 1 to 7, 9 and 10, whose numbers they name in brackets.
Each row is fed whole, octet by octet, and with more octets behind it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from wire import (
    BINARY, CLOSE, CONTINUATION, PING, PONG, RSV1, TEXT, by_octets, client_close, client_frame, client_header,
    close_payload, fragments, pump, whole,
)

from wsthread.exceptions import ProtocolError
from wsthread.wire.protocol import Protocol

LIMIT = 1000


class Rule(NamedTuple):
    """One row.

    Attributes:
        section: of RFC 6455.
        name: what the client does, and the Autobahn case in brackets.
        data: the client's octets; unless they break a rule, they end where a frame ends.
        events: what the application gets, opcodes and payloads.
        code: the close code to fail the connection with; None when no rule is broken.
        close: code and reason of the client's Close; None when there is none.
        limit: the largest message in octets; None for no limit.
    """

    section: str
    name: str
    data: bytes
    events: list[tuple[int, str | bytes]]
    code: int | None = None
    close: tuple[int, str] | None = None
    limit: int | None = None


def octets_of(size: int) -> bytes:
    """Return a payload whose octets differ from their neighbours."""
    return bytes(i % 251 for i in range(size))


PING_A = client_frame(PING, b"a")
SIZES = (0, 1, 125, 126, 127, 128, 65535, 65536)


def framing() -> Iterable[Rule]:
    """Sizes, lengths and masks (Autobahn 1, 9, 10)."""
    for size in SIZES:
        text = "*" * size
        yield Rule("5.6", f"text of {size} octets [1.1]", client_frame(TEXT, text.encode()), [(TEXT, text)])
        yield Rule("5.6", f"binary of {size} octets [1.2]", client_frame(BINARY, octets_of(size)),
                   [(BINARY, octets_of(size))])
    for length_form, size in (16, 0), (16, 1), (16, 125), (64, 0), (64, 125), (64, 126), (64, 65535):
        # 5.2 obliges the sender to the shortest form and no receiver to refuse others.
        yield Rule("5.2", f"{size} octets in {length_form} bits of length",
                   client_frame(BINARY, bytes(size), length_form=length_form), [(BINARY, bytes(size))])
    for mask in bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01", b"\x80\x00\x00\x00", b"7\xfa!=":
        for size in 5, 1030:
            payload = octets_of(size)
            yield Rule("5.3", f"{size} octets masked with {mask.hex()}", client_frame(BINARY, payload, mask=mask),
                       [(BINARY, payload)])
    yield Rule("5.3", "another key for each frame",
               client_frame(TEXT, b"ab", fin=False, mask=b"abcd") + client_frame(CONTINUATION, b"cd", mask=b"\xff" * 4),
               [(TEXT, "abcd")])
    for opcode in (TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG):
        for payload in b"", b"ab":
            yield Rule("5.1", f"opcode {opcode} with {len(payload)} octets, not masked",
                       client_frame(opcode, payload, mask=None), [], 1002)
    yield Rule("5.1", "not masked after a good one", PING_A + client_frame(TEXT, b"a", mask=None), [(PING, b"a")], 1002)
    for length in 2 ** 63, 2 ** 64 - 1:
        yield Rule("5.2", f"length of {length:#x}", client_header(BINARY, length), [], 1002)
        yield Rule("5.2", f"length of {length:#x}, limited", client_header(TEXT, length), [], 1002, limit=LIMIT)
    parts = [octets_of(65536)[i:i + 1300] for i in range(0, 65536, 1300)]
    yield Rule("5.4", "64 KiB in fragments of 1300 octets [9.4, 10.1]", fragments(BINARY, *parts),
               [(BINARY, octets_of(65536))])
    yield Rule("5.4", "4 KiB in fragments of 64 octets [9.3]", fragments(TEXT, *([b"x" * 64] * 64)),
               [(TEXT, "x" * 4096)])
    yield Rule("5.6", "1 MiB in one frame [9.2]", client_frame(BINARY, bytes(1 << 20)), [(BINARY, bytes(1 << 20))])
    yield Rule("5.6", "500 messages in a row [9.7]", client_frame(TEXT, b"x") * 500, [(TEXT, "x")] * 500)


def limits() -> Iterable[Rule]:
    """The largest message: exactly that, and one more (10.4, 7.4.1)."""
    for opcode, name in (TEXT, "text"), (BINARY, "binary"):
        exact: str | bytes = "x" * LIMIT if opcode == TEXT else b"x" * LIMIT
        for way, sizes in (
            ("in one frame", [LIMIT]), ("in two", [1, LIMIT - 1]), ("in three", [0, LIMIT, 0]),
            ("in ones", [1] * LIMIT),
        ):
            parts = [b"x" * size for size in sizes]
            yield Rule("10.4", f"{name} of the limit {way}", fragments(opcode, *parts), [(opcode, exact)],
                       limit=LIMIT)
            parts[-1] += b"x"
            yield Rule("10.4", f"{name} of one more {way}", fragments(opcode, *parts), [], 1009, limit=LIMIT)
    yield Rule("10.4", "one more, its header alone", client_header(BINARY, LIMIT + 1), [], 1009, limit=LIMIT)
    yield Rule("10.4", "2**63 - 1, its header alone", client_header(TEXT, 2 ** 63 - 1), [], 1009, limit=LIMIT)
    yield Rule("10.4", "one more before the last fragment",
               client_frame(BINARY, bytes(LIMIT), fin=False) + client_frame(CONTINUATION, b"x", fin=False),
               [], 1009, limit=LIMIT)
    yield Rule("10.4", "octets count, not characters", client_frame(TEXT, "\u20ac".encode() * 333 + b"x"),
               [(TEXT, "\u20ac" * 333 + "x")], limit=LIMIT)
    yield Rule("10.4", "octets count, one more", client_frame(TEXT, "\u20ac".encode() * 333 + b"xx"), [], 1009,
               limit=LIMIT)
    yield Rule("10.4", "each message has its own limit", client_frame(BINARY, bytes(LIMIT)) * 3,
               [(BINARY, bytes(LIMIT))] * 3, limit=LIMIT)
    yield Rule("10.4", "control frames do not count",
               client_frame(BINARY, bytes(LIMIT), fin=False) + client_frame(PING, b"p" * 125)
               + client_frame(CONTINUATION),
               [(PING, b"p" * 125), (BINARY, bytes(LIMIT))], limit=LIMIT)


def control_frames() -> Iterable[Rule]:
    """Pings and pongs (Autobahn 2), reserved bits and opcodes (3, 4)."""
    for opcode, name in (PING, "ping"), (PONG, "pong"):
        for payload in b"", b"Hello", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", bytes(124), b"\xfe" * 125:
            yield Rule("5.5", f"{name} of {len(payload)} octets [2.1 to 2.4]", client_frame(opcode, payload),
                       [(opcode, payload)])
        for size in 126, 65536:
            yield Rule("5.5", f"{name} of {size} octets [2.5]", client_frame(opcode, bytes(size)), [], 1002)
            yield Rule("5.5", f"{name} of {size} octets, its header alone", client_header(opcode, size), [], 1002)
        for length_form in 16, 64:
            yield Rule("5.5", f"{name} in {length_form} bits of length",
                       client_frame(opcode, b"a", length_form=length_form), [], 1002)
        yield Rule("5.5", f"fragmented {name} [5.1, 5.2]", client_frame(opcode, b"a", fin=False), [], 1002)
        yield Rule("5.5", f"fragmented {name} and its continuation",
                   client_frame(opcode, b"a", fin=False) + client_frame(CONTINUATION, b"b"), [], 1002)
    yield Rule("5.5", "fragmented Close", client_frame(CLOSE, b"\x03\xe8", fin=False), [], 1002)
    yield Rule("5.5.3", "pongs that nobody asked for [2.7, 2.8]", client_frame(PONG) + client_frame(PONG, b"x"),
               [(PONG, b""), (PONG, b"x")])
    yield Rule("5.5.3", "a pong, then a ping [2.9]", client_frame(PONG, b"x") + PING_A, [(PONG, b"x"), (PING, b"a")])
    yield Rule("5.5.2", "ten pings [2.10, 2.11]", b"".join(client_frame(PING, b"%d" % i) for i in range(10)),
               [(PING, b"%d" % i) for i in range(10)])
    for rsv in range(1, 8):
        for opcode in TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG:
            yield Rule("5.2", f"opcode {opcode} with reserved bits {rsv:03b} [3]", client_frame(opcode, rsv=rsv), [],
                       1002)
        yield Rule("5.2", f"a good text, then reserved bits {rsv:03b} [3.2 to 3.4]",
                   client_frame(TEXT, b"good") + client_frame(TEXT, b"bad", rsv=rsv), [(TEXT, "good")], 1002)
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        for payload in b"", b"reserved":
            yield Rule("5.2", f"opcode {opcode} with {len(payload)} octets [4]", client_frame(opcode, payload), [],
                       1002)
        yield Rule("5.2", f"opcode {opcode}, not the last fragment", client_frame(opcode, fin=False), [], 1002)
        yield Rule("5.2", f"a good text, then opcode {opcode} [4]", client_frame(TEXT, b"good") + client_frame(opcode),
                   [(TEXT, "good")], 1002)


def fragmentation() -> Iterable[Rule]:
    """Fragments (Autobahn 5)."""
    first, last = client_frame(TEXT, b"frag1", fin=False), client_frame(CONTINUATION, b"frag2")
    middle = client_frame(CONTINUATION, b"-", fin=False)
    yield Rule("5.4", "a text in two fragments [5.3 to 5.5]", first + last, [(TEXT, "frag1frag2")])
    yield Rule("5.4", "a binary in three fragments", fragments(BINARY, b"\xff", b"\xfe", b"\xfd"),
               [(BINARY, b"\xff\xfe\xfd")])
    yield Rule("5.4", "fragments without payload [6.1.2]", fragments(TEXT, b"", b"", b""), [(TEXT, "")])
    yield Rule("5.4", "payload between empty fragments [6.1.3]", fragments(TEXT, b"", b"middle", b""),
               [(TEXT, "middle")])
    yield Rule("5.4", "a ping between fragments [5.6 to 5.8]", first + PING_A + last,
               [(PING, b"a"), (TEXT, "frag1frag2")])
    yield Rule("5.4", "a pong between fragments", first + client_frame(PONG) + last,
               [(PONG, b""), (TEXT, "frag1frag2")])
    yield Rule("5.4", "pings between many fragments [5.19, 5.20]",
               first + middle + PING_A + middle + PING_A + middle + last,
               [(PING, b"a"), (PING, b"a"), (TEXT, "frag1---frag2")])
    yield Rule("5.5.1", "a Close between fragments", first + client_close(1000) + last, [(CLOSE, b"\x03\xe8")],
               close=(1000, ""))
    for fin in True, False:
        alone = client_frame(CONTINUATION, b"x", fin=fin)
        name = f"continuation with FIN {fin}"
        yield Rule("5.4", f"{name}, nothing to continue [5.9 to 5.14]", alone, [], 1002)
        yield Rule("5.4", f"empty {name}, nothing to continue", client_frame(CONTINUATION, fin=fin), [], 1002)
        yield Rule("5.4", f"{name} after a message", client_frame(TEXT, b"a") + alone, [(TEXT, "a")], 1002)
        yield Rule("5.4", f"{name} after fragments [5.15]", first + last + alone, [(TEXT, "frag1frag2")], 1002)
        yield Rule("5.4", f"{name} after a ping [5.16, 5.17]", PING_A + alone, [(PING, b"a")], 1002)
        for opcode in TEXT, BINARY:
            for inside in TEXT, BINARY:
                yield Rule("5.4", f"opcode {inside} with FIN {fin} inside opcode {opcode} [5.18]",
                           client_frame(opcode, b"a", fin=False) + client_frame(inside, b"b", fin=fin), [], 1002)


def utf8() -> Iterable[Rule]:
    """Text (Autobahn 6); the rows are those of Markus Kuhn's decoder capability and stress test, by its numbers."""
    for name, text in VALID_TEXT:
        octets = text.encode()
        ones = [octets[i:i + 1] for i in range(len(octets))]
        yield Rule("5.6", f"{name}", client_frame(TEXT, octets), [(TEXT, text)])
        yield Rule("5.6", f"{name}, each octet a fragment", fragments(TEXT, *ones), [(TEXT, text)])
        yield Rule("5.6", f"{name}, twice", client_frame(TEXT, octets + octets), [(TEXT, text + text)])
    for name, octets in INVALID_TEXT:
        ones = [octets[i:i + 1] for i in range(len(octets))]
        yield Rule("8.1", f"{name}", client_frame(TEXT, octets), [], 1007)
        yield Rule("8.1", f"{name}, in a text", client_frame(TEXT, b"\xce\xba" + octets + b"edited"), [], 1007)
        yield Rule("8.1", f"{name}, each octet a fragment", fragments(TEXT, *ones), [], 1007)
        yield Rule("8.1", f"{name}, an empty last fragment", fragments(TEXT, octets, b""), [], 1007)
        yield Rule("5.6", f"{name}, as binary", client_frame(BINARY, octets), [(BINARY, octets)])
        yield Rule("5.5.2", f"{name}, in a ping", client_frame(PING, octets[:125]), [(PING, octets[:125])])
        yield Rule("7.1.6", f"{name}, as a reason", client_close(1000, octets[:123]), [], 1007)
    bad = "\u03ba\u1f79\u03c3\u03bc\u03b5".encode() + b"\xf4\x90"
    yield Rule("8.1", "the rest of a frame is not waited for [6.4.3, 6.4.4]", client_frame(TEXT, bad + bytes(20))[:-20],
               [], 1007)
    yield Rule("8.1", "the rest of a message is not waited for [6.4.1, 6.4.2]", client_frame(TEXT, bad, fin=False),
               [], 1007)
    yield Rule("8.1", "a code point over fragments, with a ping in it",
               client_frame(TEXT, b"\xe2\x82", fin=False) + PING_A + client_frame(CONTINUATION, b"\xac"),
               [(PING, b"a"), (TEXT, "\u20ac")])
    yield Rule("8.1", "what one text lacks is no part of the next",
               client_frame(TEXT, b"ok") + client_frame(TEXT, b"\xe2\x82") + client_frame(TEXT, b"\xac"),
               [(TEXT, "ok")], 1007)


VALID_TEXT = [
    ("1 kosme [6.5.1]", "\u03ba\u1f79\u03c3\u03bc\u03b5"),
    ("Hello-\xb5@\xdf\xf6\xe4\xfc\xe0\xe1-UTF-8!! [6.2]", "Hello-\xb5@\xdf\xf6\xe4\xfc\xe0\xe1-UTF-8!!"),
    ("2.1.1 first of 1 octet [6.6.2]", "\x00"),
    ("2.1.2 first of 2 octets [6.6.5]", "\x80"),
    ("2.1.3 first of 3 octets [6.6.7]", "\u0800"),
    ("2.1.4 first of 4 octets [6.6.9]", "\U00010000"),
    ("2.2.1 last of 1 octet [6.7.1]", "\x7f"),
    ("2.2.2 last of 2 octets [6.7.2]", "\u07ff"),
    ("2.2.3 last of 3 octets [6.7.3]", "\uffff"),
    ("2.2.4 last of 4 octets [6.7.4]", "\U0010ffff"),
    ("2.3.1 before the surrogates [6.9.1]", "\ud7ff"),
    ("2.3.2 after the surrogates [6.9.2]", "\ue000"),
    ("2.3.3 replacement character [6.9.3]", "\ufffd"),
    ("5.3.1 U+FFFE [6.22.1]", "\ufffe"),
    ("5.3.2 U+FFFF [6.22.2]", "\uffff"),
    ("5.3.3 U+FDD0 to U+FDEF", "".join(map(chr, range(0xFDD0, 0xFDF0)))),
    ("5.3.4 the last two of each plane [6.22]",
     "".join(chr(plane << 16 | last) for plane in range(1, 17) for last in (0xFFFE, 0xFFFF))),
    ("byte order mark", "\ufefftext"),
    ("line ends", "a\r\nb\rc\nd\u2028"),
]
_LEADS = [(0xC0, 0xE0), (0xE0, 0xF0), (0xF0, 0xF8), (0xF8, 0xFC), (0xFC, 0xFE)]
# 3.3: sequences with their last continuation octet missing, overlong ones and those of 5 and 6 octets with the others.
_CUT = ["c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "fbbfbfbf", "fdbfbfbfbf"]
_SURROGATES = [0xD800, 0xDB7F, 0xDB80, 0xDBFF, 0xDC00, 0xDF80, 0xDFFF]
_PAIRS = [(high, low) for high in (0xD800, 0xDB7F, 0xDB80, 0xDBFF) for low in (0xDC00, 0xDFFF)]


def _surrogates(*points: int) -> bytes:
    return b"".join(bytes([0xE0 | p >> 12, 0x80 | p >> 6 & 0x3F, 0x80 | p & 0x3F]) for p in points)


INVALID_TEXT = [
    ("2.1.5 first of 5 octets [6.8.1]", bytes.fromhex("f888808080")),
    ("2.1.6 first of 6 octets [6.8.2]", bytes.fromhex("fc8480808080")),
    ("2.2.4 last of 21 bits", bytes.fromhex("f7bfbfbf")),
    ("2.2.5 last of 5 octets", bytes.fromhex("fbbfbfbfbf")),
    ("2.2.6 last of 6 octets", bytes.fromhex("fdbfbfbfbfbf")),
    ("2.3.5 U+110000 [6.9.5]", bytes.fromhex("f4908080")),
    *((f"3.1 {n} continuation octets [6.10]", (b"\x80\xbf" * 4)[:n]) for n in range(1, 8)),
    ("3.1.1 continuation octet bf", b"\xbf"),
    ("3.1.9 all 64 continuation octets", bytes(range(0x80, 0xC0))),
    *((f"3.2 lonely start octets {low:02x} to {high - 1:02x} [6.12]",
       b"".join(bytes([start, 0x20]) for start in range(low, high))) for low, high in _LEADS),
    *((f"3.3 {octets} cut short [6.13]", bytes.fromhex(octets)) for octets in _CUT),
    ("3.4 all of 3.3 [6.14.10]", bytes.fromhex("".join(_CUT))),
    ("3.5.1 fe [6.15]", b"\xfe"),
    ("3.5.2 ff [6.15]", b"\xff"),
    ("3.5.3 fefeffff [6.15]", b"\xfe\xfe\xff\xff"),
    *((f"4.1 overlong slash {octets} [6.16]", bytes.fromhex(octets))
      for octets in ("c0af", "e080af", "f08080af", "f8808080af", "fc80808080af")),
    *((f"4.2 overlong, the last of them {octets} [6.17]", bytes.fromhex(octets))
      for octets in ("c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf")),
    *((f"4.3 overlong NUL {octets} [6.18]", bytes.fromhex(octets))
      for octets in ("c080", "e08080", "f0808080", "f880808080", "fc8080808080")),
    *((f"5.1 surrogate {point:04x} [6.20]", _surrogates(point)) for point in _SURROGATES),
    *((f"5.2 surrogates {high:04x} {low:04x} [6.21]", _surrogates(high, low)) for high, low in _PAIRS),
    ("text, then a code point cut short [6.3]", b"Hello \xe2\x82"),
]


def closing() -> Iterable[Rule]:
    """The closing handshake (Autobahn 7)."""
    text = client_frame(TEXT, b"late")
    bye = client_close(1000)
    closed = (CLOSE, close_payload(1000))
    yield Rule("5.5.1", "Close after a message [7.1.1]", client_frame(TEXT, b"a") + bye, [(TEXT, "a"), closed],
               close=(1000, ""))
    yield Rule("5.5.1", "two Closes [7.1.2]", bye + client_close(1001), [closed], close=(1000, ""))
    yield Rule("5.5.1", "a ping after Close [7.1.3]", bye + PING_A, [closed], close=(1000, ""))
    yield Rule("5.5.1", "a text after Close [7.1.4]", bye + text, [closed], close=(1000, ""))
    yield Rule("5.5.1", "fragments around Close [7.1.5]",
               client_frame(TEXT, b"a", fin=False) + bye + client_frame(CONTINUATION), [closed], close=(1000, ""))
    yield Rule("5.5.1", "256 KiB and Close [7.1.6]", client_frame(TEXT, b"x" * 262144) + bye,
               [(TEXT, "x" * 262144), closed], close=(1000, ""))
    yield Rule("5.5.1", "junk after Close", bye + b"\xff" * 40, [closed], close=(1000, ""))
    yield Rule("5.5.1", "Close without payload [7.3.1]", client_frame(CLOSE), [(CLOSE, b"")], close=(1005, ""))
    for octet in b"\x00\x03\xff":
        yield Rule("5.5.1", f"Close with one octet, {octet:02x} [7.3.2]", client_frame(CLOSE, bytes([octet])), [], 1002)
    for reason in "", "Hello World!", "x" * 122, "\u03ba\u1f79\u03c3\u03bc\u03b5", "\u20ac" * 41, "\x00":
        payload = close_payload(1000, reason.encode())
        yield Rule("5.5.1", f"Close with a reason of {len(reason.encode())} octets [7.3.3 to 7.3.5]",
                   client_frame(CLOSE, payload), [(CLOSE, payload)], close=(1000, reason))
    yield Rule("5.5", "Close with a reason of 124 octets [7.3.6]", client_close(1000, b"x" * 124), [], 1002)
    yield Rule("5.5", "Close of 126 octets that is wrong in itself", client_frame(CLOSE, bytes(126)), [], 1002)
    yield Rule("7.1.6", "reason not UTF-8 [7.5.1]", client_close(1000, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80edited"),
               [], 1007)
    yield Rule("7.1.6", "reason cut in a code point", client_close(1000, b"x" * 122 + b"\xc3"), [], 1007)
    yield Rule("7.4.2", "code and reason both wrong", client_close(999, b"\xff"), [], 1002)
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999):
        yield Rule("7.4.1", f"code {code} [7.7]", client_close(code), [(CLOSE, close_payload(code))], close=(code, ""))
        yield Rule("7.4.1", f"code {code} with a reason", client_close(code, b"why"),
                   [(CLOSE, close_payload(code, b"why"))], close=(code, "why"))
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 32768, 65535):
        yield Rule("7.4.2", f"code {code} [7.9, 7.13]", client_close(code), [], 1002)
        yield Rule("7.4.2", f"code {code} with a reason", client_close(code, b"why"), [], 1002)
    yield Rule("7.1.7", "a violation, then a Close", client_frame(TEXT, rsv=RSV1) + bye, [], 1002)
    yield Rule("7.1.7", "a violation, then good frames", client_frame(3) + text + PING_A, [], 1002)
    yield Rule("5.5.1", "a violation after Close", bye + client_frame(3), [closed], close=(1000, ""))


ROWS = [*framing(), *limits(), *control_frames(), *fragmentation(), *utf8(), *closing()]


def check(rule: Rule, way: str, chunks: Iterable[bytes], *more: tuple[int, str | bytes]) -> Protocol:
    """Feed a row to a new protocol, compare everything with the row and return the protocol."""
    protocol = Protocol(max_message_size=rule.limit)
    found, error = pump(protocol.receive_data, protocol.next_event, chunks)
    assert error is None or isinstance(error, ProtocolError), way
    assert (None if error is None else error.code) == rule.code, way
    assert [(event.opcode, event.payload) for event in found] == [*rule.events, *more], way
    assert protocol.close_received == rule.close, way
    return protocol


@pytest.mark.parametrize("rule", ROWS, ids=lambda rule: f"{rule.section} {rule.name}")
def test_rule(rule: Rule) -> None:
    """A rule holds however the octets arrive; what follows is the next frame, or dropped when all is over."""
    over = rule.code is not None or rule.close is not None
    next_frames = PING_A + client_frame(TEXT, b"next")
    next_events: list[tuple[int, str | bytes]] = [] if over else [(PING, b"a"), (TEXT, "next")]
    for way, chunks in ("whole", whole(rule.data)), ("by octets", by_octets(rule.data)):
        protocol = check(rule, way, chunks)
        found, error = pump(protocol.receive_data, protocol.next_event, by_octets(next_frames))
        assert ([(event.opcode, event.payload) for event in found], error) == (next_events, None), way
    check(rule, "more behind", [rule.data + next_frames], *next_events)
    check(rule, "some more behind", [rule.data + PING_A[:-1]])


def test_table() -> None:
    """No two rows have a name in common, and each names a section of the RFC."""
    names = Counter((rule.section, rule.name) for rule in ROWS)
    assert not [name for name, count in names.items() if count > 1]
    assert all(re.fullmatch(r"(5|7|8|10)(\.\d)+", rule.section) for rule in ROWS)
