"""send_json() and receive_json(): what goes through, and what is refused without an end of the connection."""

from __future__ import annotations

import enum
import json
import math
import pickle
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import TIMEOUT, Connect, Peer, connect, run_handler
from servers import wait_until

from wsthread import Connection, ConnectionClosed, InvalidJSON, Opcode, SimpleManager, Upgrader, testing

__all__ = ["connect"]


class Point(NamedTuple):
    x: int
    y: float


class Colour(enum.IntEnum):
    RED = 1


def echo(conn: Connection) -> None:
    """Send each value back; for what is no JSON, what is wrong with it."""
    while True:
        try:
            value = conn.receive_json()
        except InvalidJSON as error:
            assert conn.connected
            conn.send(f"no JSON: {error.reason}")
        else:
            conn.send_json(value)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: list[Any] = [
    None, True, False, 0, -1, 1 << 53, 10 ** 400, 0.1, -0.0, 1e308, 5e-324, "", "hello", "\x00\x1f\x7f", '"\\/', "ä🙂",
    "\u2028", "\ud800", "\udfff\ud800", [], [[]], {}, {"": {}}, {"a": [1, "b", None]}, [1.5, {"x": True}], "x" * 70000,
    list(range(5000)), nested(50), "\ufeff",
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_round_trip(connect: Connect, value: Any) -> None:
    _, peer = run_handler(connect, echo)
    for opcode in (Opcode.TEXT, Opcode.BINARY):
        peer.send(opcode, json.dumps(value).encode())
        answer, payload = peer.read()
        assert answer == Opcode.TEXT
        assert json.loads(payload) == value
        assert payload.isascii()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children))


@given(JSON)
@settings(deadline=None, max_examples=50)
def test_round_trip_of_any_value(value: Any) -> None:
    with testing.connect(Upgrader(SimpleManager(echo))) as client:
        client.send(json.dumps(value, ensure_ascii=False))
        answer = client.receive()
        assert json.loads(answer) == value


@pytest.mark.parametrize("value, text", [
    ({"a": 1, "b": [1, 2]}, '{"a":1,"b":[1,2]}'),
    ((1, (2,)), "[1,[2]]"),
    (Point(1, 2.5), "[1,2.5]"),
    (Colour.RED, "1"),
    ({1: "a", None: "b", 2.5: "c", False: "d"}, '{"1":"a","null":"b","2.5":"c","false":"d"}'),
    (OrderedDict([("z", 1), ("a", 2)]), '{"z":1,"a":2}'),
    ("ä", '"\\u00e4"'),
    ("\ud800", '"\\ud800"'),
])
def test_what_is_sent(connect: Connect, value: Any, text: str) -> None:
    _, peer = run_handler(connect, lambda conn: conn.send_json(value))
    assert peer.read() == (Opcode.TEXT, text.encode())


def myself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


#: What has no JSON, and the exception.
UNSENDABLE: list[tuple[str, Callable[[], Any], type[Exception]]] = [
    ("a NaN", lambda: math.nan, ValueError),
    ("an infinity", lambda: [1, {"a": -math.inf}], ValueError),
    ("what holds itself", myself, ValueError),
    ("what is nested too deeply", lambda: nested(100_000), ValueError),
    ("bytes", lambda: b"abc", TypeError),
    ("a set", lambda: {1}, TypeError),
    ("an object", object, TypeError),
    ("a generator", lambda: (one for one in "ab"), TypeError),
    ("a key that is no string", lambda: {(1, 2): 3}, TypeError),
    ("an int that is too long", lambda: 10 ** 5000, ValueError),
]


@pytest.mark.parametrize("make, error", [case[1:] for case in UNSENDABLE], ids=[case[0] for case in UNSENDABLE])
def test_what_has_no_json(connect: Connect, make: Callable[[], Any], error: type[Exception]) -> None:
    """Nothing of it is sent, and the connection stays open."""
    caught: list[type[Exception]] = []

    def handler(conn: Connection) -> None:
        try:
            conn.send_json(make())
        except (TypeError, ValueError) as raised:
            caught.append(type(raised))
        conn.send_json("next")

    _, peer = run_handler(connect, handler)
    assert peer.read() == (Opcode.TEXT, b'"next"')
    assert caught == [error]


#: What is no JSON by RFC 8259.
TEXTS: dict[str, str] = {
    "nothing": "",
    "blanks": " \r\n\t",
    "a word": "hello",
    "single quotes": "{'a': 1}",
    "half an object": '{"a": ',
    "half a string": '"abc',
    "a comma too many": "[1,]",
    "a key without quotes": "{a: 1}",
    "two values": "1 2",
    "something behind": '{"a": 1}\x00',
    "a comment": "/* */ 1",
    "NaN": "NaN",
    "NaN inside": '{"a": [NaN]}',
    "Infinity": "Infinity",
    "-Infinity": "[-Infinity]",
    "a line break in a string": '"a\nb"',
    "an escape that is none": r'"\x41"',
    "half an escape": r'"\u12"',
    "a plus": "+1",
    "zeros in front": "007",
    "a hexadecimal number": "0x10",
    "a byte order mark": "\ufeff1",
    "a Python value": "None",
    "deep lists": "[" * 100_000,
    "deep lists that end": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "an int that is too long": "9" * 5000,
}
BINARIES: dict[str, bytes] = {
    **{name: text.encode() for name, text in TEXTS.items()},
    "no UTF-8": b'"\xff"',
    "an encoded surrogate": b'"\xed\xa0\x80"',
    "half a character": b'"\xc3',
    "Latin-1": '"ä"'.encode("latin-1"),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"a": 1}'.encode("utf-16-le"),
    "UTF-32": '{"a": 1}'.encode("utf-32"),
    "a number in UTF-16": "1".encode("utf-16-be"),
    "pickled": pickle.dumps({"a": 1}),
    "zeros": bytes(10),
}
BAD = [(Opcode.TEXT, name, text.encode()) for name, text in TEXTS.items()]
BAD += [(Opcode.BINARY, name, data) for name, data in BINARIES.items()]


@pytest.mark.parametrize("opcode, payload", [(opcode, payload) for opcode, _, payload in BAD],
                         ids=[f"{opcode.name}-{name}" for opcode, name, _ in BAD])
def test_what_is_no_json(connect: Connect, opcode: Opcode, payload: bytes) -> None:
    """It is one message, and the one behind it is received as ever."""
    _, peer = run_handler(connect, echo)
    peer.send(opcode, payload)
    peer.send(Opcode.TEXT, b"[1]")
    answer, text = peer.read()
    assert (answer, text[:9]) == (Opcode.TEXT, b"no JSON: ")
    assert len(text) > 9
    assert peer.read() == (Opcode.TEXT, b"[1]")
    peer.close_frame()
    assert peer.read_close() == 1000


def test_what_is_lenient(connect: Connect) -> None:
    """It is JSON, though no good one."""
    _, peer = run_handler(connect, echo)
    for text, answer in (('{"a":1,"a":2}', '{"a":2}'), (" 1 ", "1"), (r'"\ud800"', r'"\ud800"'), ("-0", "0")):
        peer.send(Opcode.TEXT, text.encode())
        assert peer.read()[1].decode() == answer


def test_a_float_that_is_too_large_comes_and_cannot_go(connect: Connect) -> None:
    values: list[float] = []
    _, peer = run_handler(connect, lambda conn: values.append(conn.receive_json()))
    peer.send(Opcode.TEXT, b"1e999")
    assert peer.read_close() == 1000
    assert values == [math.inf]


@pytest.mark.parametrize("opcode, payload", [(Opcode.TEXT, b"{"), (Opcode.BINARY, b"\xff")])
def test_the_exception_has_the_evidence(connect: Connect, opcode: Opcode, payload: bytes) -> None:
    caught: list[InvalidJSON] = []

    def handler(conn: Connection) -> None:
        try:
            conn.receive_json()
        except ValueError as error:
            assert isinstance(error, InvalidJSON)
            caught.append(error)

    _, peer = run_handler(connect, handler)
    peer.send(opcode, payload)
    assert peer.read_close() == 1000
    error, = caught
    assert error.message == (payload.decode() if opcode is Opcode.TEXT else payload)
    assert isinstance(error.__cause__, ValueError)
    assert str(error) == f"the message is no JSON: {error.reason}" and error.reason == str(error.__cause__)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.message, copy.reason) == (error.message, error.reason)


def test_bad_json_that_nobody_catches(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """It is an exception of the application like any."""
    def handler(conn: Connection) -> None:
        conn.receive_json()

    _, peer = run_handler(connect, handler)
    peer.send(Opcode.TEXT, b"{")
    assert peer.read_close() == 1011
    wait_until(lambda: "InvalidJSON" in caplog.text)


def test_the_rest_is_as_for_receive_and_send(connect: Connect) -> None:
    results: list[Any] = []
    done = threading.Event()

    def attempt(function: Callable[[], Any]) -> None:
        try:
            results.append(function())
        except Exception as error:
            results.append(type(error))

    def handler(conn: Connection) -> None:
        attempt(lambda: conn.receive_json(timeout=0.01))
        other = threading.Thread(target=attempt, args=(conn.receive_json,))
        other.start()
        other.join()
        conn.send_json(1, timeout=5.0)
        attempt(lambda: conn.receive_json(timeout=5.0))
        attempt(conn.receive_json)
        attempt(lambda: conn.send_json(1))
        attempt(lambda: conn.send_json({1}))  # A wrong call is wrong in every state.
        done.set()

    _, peer = run_handler(connect, handler)
    assert peer.read() == (Opcode.TEXT, b"1")
    peer.send(Opcode.TEXT, b'{"a":2}')
    peer.close_frame()
    assert done.wait(TIMEOUT)
    assert results == [TimeoutError, RuntimeError, {"a": 2}, ConnectionClosed, ConnectionClosed, TypeError]


def test_depth_is_the_interpreters(connect: Connect) -> None:
    """What Python can still read or write is no error."""
    _, peer = run_handler(connect, echo)
    limit = sys.getrecursionlimit()
    peer.send(Opcode.TEXT, json.dumps(nested(limit // 4)).encode())
    assert answer_of(peer) == json.dumps(nested(limit // 4))


def answer_of(peer: Peer) -> str:
    opcode, payload = peer.read()
    assert opcode == Opcode.TEXT
    return payload.decode()
