"""The opening handshake, server side (RFC 6455 4.2)."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import bounded
from websockets.utils import accept_key as independent_accept_key

from wsthread.exceptions import HandshakeError
from wsthread.wire.handshake import (
    accept_key, check_origin, check_request, encode_response, response_headers, select_subprotocol, tokens,
)
from wsthread.wire.origins import Origins

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = {
    "host": "server.example.com", "upgrade": "websocket", "connection": "Upgrade", "sec-websocket-key": KEY,
    "sec-websocket-version": "13", "origin": "http://example.com",
}
#: Header values as WSGI has them: octets as Latin-1 (PEP 3333).
header_values = st.text(st.characters(max_codepoint=255), max_size=40)


def request(**changes: str | None) -> dict[str, str]:
    """Return the headers of a good request with some changed; None takes one away."""
    headers: dict[str, str | None] = {**HEADERS, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return {name: value for name, value in headers.items() if value is not None}


# The request

ACCEPTED: list[tuple[str, dict[str, str | None]]] = [
    ("as in RFC 6455 1.3", {}),
    ("Firefox", {"connection": "keep-alive, Upgrade"}),
    ("other case", {"connection": "UPGRADE", "upgrade": "WebSocket"}),
    ("a list without spaces", {"connection": "keep-alive,upgrade"}),
    ("tabs and empty elements", {"connection": ",\tkeep-alive ,, Upgrade\t,"}),
    ("more protocols", {"upgrade": "h2c, websocket"}),
    ("a body of nothing", {"content_length": "0"}),
    ("no length", {"content_length": ""}),
    ("no Origin", {"origin": None}),
    ("key with + and /", {"sec_websocket_key": "+/+/+/+/+/+/+/+/+/+/+w=="}),
    ("unknown headers", {"x_anything": "\xff", "sec_websocket_extensions": "x-unknown; a=1", "cookie": "a=b"}),
]


@pytest.mark.parametrize(("name", "changes"), ACCEPTED, ids=[row[0] for row in ACCEPTED])
def test_accepted(name: str, changes: dict[str, str | None]) -> None:
    """An opening handshake is recognised (RFC 6455 4.2.1); its key is returned."""
    headers = request(**changes)
    assert check_request("GET", "HTTP/1.1", headers) == headers["sec-websocket-key"]


UPGRADE = ("Upgrade", "websocket")
VERSION = ("Sec-WebSocket-Version", "13")
Refusal = tuple[str, str, str, Mapping[str, "str | None"], int, list[tuple[str, str]], str]
# What it is, method, HTTP version, changed headers; status, headers and words of the answer.
REFUSED: list[Refusal] = [
    *((f"method {method}", method, "HTTP/1.1", {}, 405, [("Allow", "GET")], f"GET, not {method}")
      for method in ("POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "get", "")),
    *((f"version {version}", "GET", version, {}, 400, [], "HTTP/1.1")
      for version in ("HTTP/1.0", "HTTP/2", "HTTP/2.0", "HTTP/3", "HTTP/0.9", "http/1.1", "")),
    ("HTTP/2 as gunicorn passes it on", "GET", "HTTP/2.0", {"upgrade": None, "connection": None}, 400, [], "HTTP/2"),
    ("HTTP/1.0 without Upgrade", "GET", "HTTP/1.0", {"upgrade": None}, 426, [UPGRADE], "Upgrade is missing"),
    ("HTTP/1.0 through a proxy", "GET", "HTTP/1.0", {}, 400, [], "proxy_http_version 1.1"),
    ("a page view", "GET", "HTTP/1.1", {"upgrade": None, "connection": "keep-alive"}, 426, [UPGRADE],
     "Upgrade is missing"),
    ("no Upgrade", "GET", "HTTP/1.1", {"upgrade": None}, 426, [UPGRADE], "Upgrade is missing"),
    ("empty Upgrade", "GET", "HTTP/1.1", {"upgrade": ""}, 426, [UPGRADE], "Upgrade is missing"),
    ("other Upgrade", "GET", "HTTP/1.1", {"upgrade": "h2c"}, 426, [UPGRADE], "Upgrade is 'h2c'"),
    ("part of a word", "GET", "HTTP/1.1", {"upgrade": "websockets"}, 426, [UPGRADE], "Upgrade is 'websockets'"),
    ("no Connection", "GET", "HTTP/1.1", {"connection": None}, 426, [UPGRADE], "Connection is missing"),
    ("a proxy's Connection", "GET", "HTTP/1.1", {"connection": "close"}, 426, [UPGRADE], "Connection is 'close'"),
    ("words of Connection", "GET", "HTTP/1.1", {"connection": "keep-alive Upgrade"}, 426, [UPGRADE], "proxy"),
    ("no Host", "GET", "HTTP/1.1", {"host": None}, 400, [], "no Host"),
    ("a body", "GET", "HTTP/1.1", {"content_length": "1"}, 400, [], "no body"),
    ("a chunked body", "GET", "HTTP/1.1", {"transfer_encoding": "chunked"}, 400, [], "no body"),
    ("no version", "GET", "HTTP/1.1", {"sec_websocket_version": None}, 426, [UPGRADE, VERSION], "speaks 13"),
    *((f"Sec-WebSocket-Version {version}", "GET", "HTTP/1.1", {"sec_websocket_version": version}, 426,
       [UPGRADE, VERSION], f"{version!r}") for version in ("8", "7", "0", "14", "013", "13.0", "13, 8", "x")),
    ("no key", "GET", "HTTP/1.1", {"sec_websocket_key": None}, 400, [], "''"),
    *((f"key {key!r}", "GET", "HTTP/1.1", {"sec_websocket_key": key}, 400, [], "16 bytes in base64") for key in (
        "", "x", "AAAA", KEY[:-1], KEY[:-2], KEY + "=", KEY + "AAAA", KEY[:-3] + "===", " " + KEY, KEY + "\n",
        KEY[:4] + " " + KEY[4:], KEY[:4] + "-_" + KEY[6:], "\xe9" + KEY[1:], f"{KEY}, {KEY}", "=" * 24, "!" * 24,
        base64.b64encode(bytes(15)).decode(), base64.b64encode(bytes(17)).decode(),
    )),
]


@pytest.mark.parametrize(
    ("name", "method", "version", "changes", "status", "answer", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(
    name: str, method: str, version: str, changes: Mapping[str, str | None], status: int,
    answer: list[tuple[str, str]], words: str,
) -> None:
    """What is no opening handshake is refused with the status that says why, and with a sentence."""
    with pytest.raises(HandshakeError) as info:
        check_request(method, version, request(**changes))
    error = info.value
    assert error.status is HTTPStatus(status)
    assert error.headers == answer
    assert words in error.reason


def test_long_values_are_cut() -> None:
    """A refusal does not repeat more than it must of what the client sent."""
    for name in "upgrade", "connection", "sec_websocket_key":
        with pytest.raises(HandshakeError) as info:
            check_request("GET", "HTTP/1.1", request(**{name: "x" * 10000}))
        assert len(info.value.reason) < 500


@bounded
@given(st.dictionaries(st.sampled_from([*HEADERS, "content-length", "transfer-encoding"]), header_values))
def test_any_headers(changes: dict[str, str]) -> None:
    """Whatever the headers are, there is a key or a refusal that can be sent."""
    try:
        assert check_request("GET", "HTTP/1.1", {**HEADERS, **changes}) == changes.get("sec-websocket-key", KEY)
    except HandshakeError as error:
        assert 400 <= error.status < 500
        assert b"".join(error({}, lambda status, headers: None)) == f"{error.reason}\n".encode()


@bounded
@given(st.binary(min_size=14, max_size=18))
def test_any_key(octets: bytes) -> None:
    """A key is 16 octets in base64 (RFC 6455 4.1)."""
    headers = request(sec_websocket_key=base64.b64encode(octets).decode())
    if len(octets) == 16:
        assert check_request("GET", "HTTP/1.1", headers) == headers["sec-websocket-key"]
    else:
        with pytest.raises(HandshakeError):
            check_request("GET", "HTTP/1.1", headers)


@pytest.mark.parametrize(("value", "expected"), [
    ("", []), (",", []), (" \t, ,", []), ("a", ["a"]), ("a,b", ["a", "b"]), (" a\t,\tb c ,A", ["a", "b c", "A"]),
    ("\xa0a", ["\xa0a"]),
])
def test_tokens(value: str, expected: list[str]) -> None:
    """Lists of RFC 9110 5.6.1: empty elements do not count, white space is blanks and tabs."""
    assert tokens(value) == expected


# The origin

SAME_ORIGIN: list[tuple[str | None, str, bool]] = [
    (None, "example.com", True),  # No browser.
    ("http://example.com", "example.com", True),
    ("https://example.com", "example.com", True),  # A proxy ends TLS.
    ("http://example.com", "example.com:80", True),
    ("http://example.com:80", "example.com", True),
    ("https://example.com", "example.com:443", True),
    ("https://example.com:443", "example.com", True),
    ("http://example.com:8000", "example.com:8000", True),
    ("HTTP://EXAMPLE.com:8000", "Example.COM:8000", True),
    ("http://127.0.0.1:5000", "127.0.0.1:5000", True),
    ("http://[::1]", "[::1]", True),
    ("http://[::1]:8000", "[::1]:8000", True),
    ("https://[2001:DB8::1]", "[2001:db8::1]:443", True),
    ("http://xn--bcher-kva.example", "xn--bcher-kva.example", True),
    ("http://localhost", "localhost", True),
    # Another host, or another port of the same.
    ("http://evil.com", "example.com", False),
    ("http://example.com.evil.com", "example.com", False),
    ("http://evilexample.com", "example.com", False),
    ("http://sub.example.com", "example.com", False),
    ("http://example.com", "sub.example.com", False),
    ("http://example.com:8001", "example.com:8000", False),
    ("http://example.com:8000", "example.com", False),
    ("http://example.com", "example.com:8000", False),
    ("http://example.com", "example.com:443", False),
    ("https://example.com", "example.com:80", False),
    ("http://example.com@evil.com", "example.com", False),
    ("http://evil.com/example.com", "example.com", False),
    ("http://evil.com#example.com", "example.com", False),
    ("http://evil.com?example.com", "example.com", False),
    ("http://[::1]:8000", "[::1]", False),
    ("http://[::1]", "[::2]", False),
    ("http://[::1]", "::1", False),
    ("http://127.0.0.1", "localhost", False),
    # Not the origin of a page of a server.
    ("null", "example.com", False),
    ("null", "null", False),
    ("", "example.com", False),
    ("", "", False),
    ("file://", "", False),
    ("file://example.com", "example.com", False),
    ("ws://example.com", "other.example", False),
    ("chrome-extension://example.com", "example.com", False),
    ("example.com", "example.com", False),
    ("//example.com", "example.com", False),
    ("http:example.com", "example.com", False),
    ("http://", "", False),
    ("http://", "example.com", False),
    ("http://:80", ":80", False),
    ("http://example.com, http://example.com", "example.com", False),
    # Garbage on either side.
    ("http://[::1", "[::1]", False),
    ("http://[", "[", False),
    ("http://[x]", "example.com", False),
    ("http://example.com:x", "example.com:x", False),
    ("http://example.com:65536", "example.com:65536", False),
    ("http://example.com:-1", "example.com", False),
    ("http://example.com", "example.com:x", False),
    ("http://example.com", "[", False),
    ("http://example.com", "", False),
    ("http://\u2100.com", "example.com", False),
    ("\x00\xff", "\x00\xff", False),
]


def is_allowed(origin: str | None, host: str, origins: Origins) -> bool:
    """Return what check_origin thinks."""
    try:
        check_origin(origin, host, origins)
    except HandshakeError as error:
        assert error.status is HTTPStatus.FORBIDDEN and error.headers == []
        assert repr(origin)[:256] in error.reason and repr(host)[:256] in error.reason
        return False
    return True


@pytest.mark.parametrize(("origin", "host", "allowed"), SAME_ORIGIN)
def test_same_origin(origin: str | None, host: str, allowed: bool) -> None:
    """By default only pages of the same host and port may connect (RFC 6455 10.2)."""
    assert is_allowed(origin, host, None) is allowed


PAGE = "https://page.example"
ORIGINS: list[tuple[Origins, str, bool]] = [
    ("*", PAGE, True),
    ("*", "null", True),
    (PAGE, PAGE, True),
    (PAGE.upper(), PAGE, True),
    (PAGE, PAGE.upper(), True),
    (PAGE, PAGE + ":443", False),
    (PAGE, "https://page.example.evil.com", False),
    (PAGE, "http://page.example", False),
    (PAGE, "https://host.example", False),  # A list replaces same-origin.
    ("https://page.exampl.", PAGE, False),  # A str is no pattern.
    ("null", "null", True),
    ("", PAGE, False),
    ([], PAGE, False),
    (["https://a.example", PAGE], PAGE, True),
    (("https://a.example",), PAGE, False),
    ({PAGE}, PAGE, True),
    (["*"], PAGE, True),
    (re.compile(r"https://\w+\.example"), PAGE, True),
    (re.compile(r"https://\w+\.example"), PAGE + ".evil.com", False),
    (re.compile(r"page\.example"), PAGE, False),
    (re.compile(PAGE.upper(), re.IGNORECASE), PAGE, True),
    ([re.compile("https://a.*"), "https://b.example", re.compile("https://p.*")], PAGE, True),
    (lambda origin: origin == PAGE, PAGE, True),
    (lambda origin: origin != PAGE, PAGE, False),
]


@pytest.mark.parametrize(("origins", "origin", "allowed"), ORIGINS)
def test_origins(origins: Origins, origin: str, allowed: bool) -> None:
    """Other pages may connect if they are on the list, match in full, or please a callable."""
    assert is_allowed(origin, "host.example", origins) is allowed


def refuse_all(origin: str) -> bool:
    """Allow nobody."""
    return False


@pytest.mark.parametrize("origins", [None, [], PAGE, re.compile("x"), refuse_all])
def test_no_origin(origins: Origins) -> None:
    """Who sends no Origin is no browser, and passes."""
    assert is_allowed(None, "host.example", origins)


def test_long_origins_are_cut() -> None:
    """A refusal names both values, but not all of them."""
    with pytest.raises(HandshakeError) as info:
        check_origin("http://" + "x" * 10000, "y" * 10000, None)
    assert len(info.value.reason) < 800


@bounded
@given(
    st.one_of(
        st.text(max_size=30), st.text(max_size=20).map("http://{}".format), st.from_regex(r"https?://[\[\]:0-9.]*")),
    st.text(max_size=20),
)
def test_any_origin(origin: str, host: str) -> None:
    """Whatever the two are, the answer is yes or a refusal."""
    assert is_allowed(origin, host, None) in (True, False)


# Subprotocols

@pytest.mark.parametrize(("offered", "supported", "chosen"), [
    ([], [], None),
    (["chat"], [], None),
    ([], ["chat"], None),
    (["chat"], ["chat"], "chat"),
    (["superchat", "chat"], ["chat", "superchat"], "chat"),  # The server prefers.
    (["a", "b", "c"], ("x", "c", "b"), "c"),
    (["Chat"], ["chat"], None),  # Names are compared as they are (RFC 6455 4.2.2).
    (["chatter"], ["chat"], None),
])
def test_select_subprotocol(offered: list[str], supported: list[str], chosen: str | None) -> None:
    """The first of the server's that the client offered, or none."""
    assert select_subprotocol(offered, supported) == chosen


# The response

def test_accept_key() -> None:
    """The example of RFC 6455 1.3."""
    assert accept_key(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@bounded
@given(st.binary(min_size=16, max_size=16))
def test_any_accept_key(octets: bytes) -> None:
    """It agrees with an independent implementation."""
    key = base64.b64encode(octets).decode()
    assert accept_key(key) == independent_accept_key(key)


BASE = [UPGRADE, ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")]


@pytest.mark.parametrize(("args", "more"), [
    ((None,), []),
    (("chat",), [("Sec-WebSocket-Protocol", "chat")]),
    ((None, "permessage-deflate"), [("Sec-WebSocket-Extensions", "permessage-deflate")]),
    (("chat", "x; y=1"), [("Sec-WebSocket-Protocol", "chat"), ("Sec-WebSocket-Extensions", "x; y=1")]),
])
def test_response_headers(args: tuple[Any, ...], more: list[tuple[str, str]]) -> None:
    """What was not agreed on is not in the response (RFC 6455 4.2.2)."""
    assert response_headers(KEY, *args) == [*BASE, *more]


def test_response_of_the_rfc() -> None:
    """The answer of RFC 6455 1.3, octet by octet."""
    assert encode_response(response_headers(KEY, "chat")) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n"
        b"\r\n")


def test_encode_response() -> None:
    """Any iterable will do, a name may come twice, and values are Latin-1 as in WSGI."""
    headers = iter([("Set-Cookie", "a=1"), ("Set-Cookie", "b=\xe9"), ("X-Empty", "")])
    assert encode_response(headers) == (
        b"HTTP/1.1 101 Switching Protocols\r\nSet-Cookie: a=1\r\nSet-Cookie: b=\xe9\r\nX-Empty: \r\n\r\n")


@pytest.mark.parametrize("place", [
    lambda text: ("X-Header", text), lambda text: (text, "value"), lambda text: ("Sec-WebSocket-Protocol", text),
])
@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: b=1", "a\nb", "a\rb", "\r\n\r\n<html>", "a\n", "\r"])
def test_header_injection(text: str, place: Callable[[str], tuple[str, str]]) -> None:
    """A line break in a name or a value would be another header, or the end of them (RFC 9112 11.1)."""
    with pytest.raises(ValueError, match="line break"):
        encode_response([("X-Before", "1"), place(text), ("X-After", "1")])


def test_value_outside_latin_1() -> None:
    """It has no octets to be sent as."""
    with pytest.raises(ValueError):
        encode_response([("X-Price", "1 \u20ac")])


@bounded
@given(st.lists(st.tuples(st.just("X-Any"), header_values), max_size=3))
def test_any_response(headers: list[tuple[str, str]]) -> None:
    """There are as many lines as there are headers, or there is no response."""
    try:
        data = encode_response(headers)
    except ValueError:
        assert any(char in value for _, value in headers for char in "\r\n")
    else:
        assert data.endswith(b"\r\n\r\n")
        assert len(re.split(b"[\r\n]+", data)) == len(headers) + 2
