"""The opening handshake, client side (RFC 6455 4.1)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import bounded

from wsthread.exceptions import ProtocolError
from wsthread.wire.client_handshake import (
    MAX_HEAD, Answer, AnswerReader, check_answer, encode_request, parse_body, parse_url,
)
from wsthread.wire.handshake import check_request

KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # Those of RFC 6455 1.3.
GOOD = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ACCEPT)]
HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


# The URL


@pytest.mark.parametrize(("url", "secure", "host", "port", "host_header", "resource"), [
    ("ws://a.example", False, "a.example", 80, "a.example", "/"),
    ("wss://a.example/", True, "a.example", 443, "a.example", "/"),
    ("WSS://A.Example:443/Chat", True, "a.example", 443, "a.example", "/Chat"),
    ("ws://a.example:443/", False, "a.example", 443, "a.example:443", "/"),
    ("ws://a.example:8000?q=1", False, "a.example", 8000, "a.example:8000", "/?q=1"),
    ("ws://127.0.0.1/a/b?q=1&r=%20", False, "127.0.0.1", 80, "127.0.0.1", "/a/b?q=1&r=%20"),
    ("ws://[::1]/", False, "::1", 80, "[::1]", "/"),
    ("wss://[fe80::1]:8443/ws", True, "fe80::1", 8443, "[fe80::1]:8443", "/ws"),
    ("ws://b\xfccher.example/a b/\xfc?\xfc", False, "xn--bcher-kva.example", 80, "xn--bcher-kva.example",
     "/a%20b/%C3%BC?%C3%BC"),
    ("ws://user:pw@a.example/", False, "a.example", 80, "a.example", "/"),
])
def test_url(url: str, secure: bool, host: str, port: int, host_header: str, resource: str) -> None:
    """A URL says where to connect to and what to ask for (RFC 6455 3)."""
    assert parse_url(url)[:5] == (secure, host, port, host_header, resource)


@pytest.mark.parametrize(("url", "authorization"), [
    ("ws://a/", None),
    ("ws://Aladdin:open%20sesame@a/", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),  # RFC 7617 2
    ("ws://Aladdin@a/", "Basic QWxhZGRpbjo="),
    ("ws://:pw@a/", "Basic OnB3"),
])
def test_user_in_the_url(url: str, authorization: str | None) -> None:
    """A user and a password in the URL are percent-decoded."""
    assert parse_url(url).authorization == authorization


@pytest.mark.parametrize(("url", "why"), [
    ("http://a/", "begins with ws:// or wss://"),
    ("a.example/ws", "begins with ws:// or wss://"),
    ("", "begins with ws:// or wss://"),
    ("ws:///path", "names no host"),
    ("ws://:80/", "names no host"),
    ("ws://a/#top", "no fragment"),
    ("ws://a:port/", "port"),
    ("ws://a:65536/", "[Pp]ort"),
    ("ws://[::1/", "IPv6"),
    ("ws://" + "\xfc" * 64 + ".example/", "cannot be a host"),
])
def test_bad_url(url: str, why: str) -> None:
    """What is no WebSocket URL is refused with a reason."""
    with pytest.raises(ValueError, match=why):
        parse_url(url)


# The request


def test_request() -> None:
    """The request is the one of RFC 6455 1.3."""
    request = encode_request(
        parse_url("ws://server.example.com/chat"), KEY, subprotocols=["chat", "superchat"], origin="http://example.com")
    assert request.decode().split("\r\n") == [
        "GET /chat HTTP/1.1", "Host: server.example.com", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Protocol: chat, superchat",
        "Origin: http://example.com", "", ""]


@pytest.mark.parametrize(("headers", "found"), [
    ([], ["Host: a", "Authorization: Basic dTpw"]),
    ([("X-Token", "1"), ("x-token", "\xff")], ["Host: a", "Authorization: Basic dTpw", "X-Token: 1", "x-token: \xff"]),
    ([("host", "b:80")], ["Authorization: Basic dTpw", "host: b:80"]),
    ([("authorization", "Bearer x")], ["Host: a", "authorization: Bearer x"]),
])
def test_headers_of_the_caller(headers: list[tuple[str, str]], found: list[str]) -> None:
    """They come in their order, and replace what the URL says."""
    lines = encode_request(parse_url("ws://u:p@a/"), KEY, headers=headers).decode("latin-1").split("\r\n")
    ours = ("Upgrade", "Connection", "Sec-WebSocket-")
    assert [line for line in lines[1:-2] if not line.startswith(ours)] == found


@pytest.mark.parametrize(("options", "why"), [
    ({"headers": [("Upgrade", "h2c")]}, "sets upgrade itself"),
    ({"headers": [("sec-websocket-key", KEY)]}, "sets sec-websocket-key itself"),
    ({"headers": [("Content-Length", "5")]}, "sets content-length itself"),
    ({"headers": [("X", "a\r\nY: b")]}, "cannot be a header"),
    ({"headers": [("X", "a\0")]}, "cannot be a header"),
    ({"headers": [("X Y", "a")]}, "cannot be a header"),
    ({"headers": [("", "a")]}, "cannot be a header"),
    ({"headers": [("X", "\N{SNOWMAN}")]}, "latin-1"),
    ({"origin": "http://a\n"}, "cannot be a header"),
    ({"subprotocols": ["a b"]}, "cannot be a subprotocol"),
    ({"subprotocols": [""]}, "cannot be a subprotocol"),
    ({"subprotocols": ["a", "a"]}, "twice"),
])
def test_bad_request(options: dict[str, Any], why: str) -> None:
    """What would be another request than the one meant is refused."""
    with pytest.raises(ValueError, match=why):
        encode_request(parse_url("ws://a/"), KEY, **options)


@given(path=st.text(max_size=20), query=st.text(max_size=20))
@bounded
def test_the_server_side_takes_every_request(path: str, query: str) -> None:
    """Whatever the path is, the request is one line and headers that open a WebSocket."""
    try:
        target = parse_url(f"ws://a/{path}?{query}")
    except ValueError:
        return  # A fragment, or a lone surrogate.
    first, *lines = encode_request(target, KEY).decode("ascii").split("\r\n")
    method, resource, version = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[:-2])}
    assert resource.startswith("/") and check_request(method, version, headers) == KEY


# The head of the answer


def read(data: bytes, step: int) -> tuple[Answer | None, bytes]:
    """Feed an answer in pieces."""
    reader, answer = AnswerReader(), None
    for at in range(0, len(data), step):
        reader.feed(data[at:at + step])
        answer = answer or reader.next_answer()
    return answer, reader.unread


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(("data", "answer"), [
    (HEAD, Answer("1.1", 101, "Switching Protocols", [("Upgrade", "websocket")])),
    (b"HTTP/1.0 403 Forbidden\nA:b\nC: \td \n\n", Answer("1.0", 403, "Forbidden", [("A", "b"), ("C", "d")])),
    (b"HTTP/1.1 404\r\n\r\n", Answer("1.1", 404, "", [])),
    (b"HTTP/1.1 404 \r\nA:\r\n\r\n", Answer("1.1", 404, "", [("A", "")])),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + HEAD,
     Answer("1.1", 101, "Switching Protocols", [("Upgrade", "websocket")])),
    (b"HTTP/1.1 500 caf\xe9\r\n\r\n", Answer("1.1", 500, "caf\xe9", [])),
])
def test_head(data: bytes, answer: Answer, step: int) -> None:
    """Heads are read, whole or in pieces, and what comes behind them is kept."""
    assert read(data, step) == (answer, b"")
    assert read(data + b"\x81\x02hi\r\n\r\n", step) == (answer, b"\x81\x02hi\r\n\r\n")
    assert read(data[:-1], step)[0] is None


@pytest.mark.parametrize(("data", "why"), [
    (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP, it begins with b'SSH-2.0"),
    (b"\r\n", "not HTTP"),
    (b"HTTQ", "not HTTP"),
    (b"\x81\x05hello", "not HTTP"),
    (b"\x15\x03\x01\x00\x02\x02\x46", "TLS; such a server is reached with wss://"),
    (b"HTTP/2 200\r\n\r\n", "no status line"),
    (b"HTTP/1.1 99 Early\r\n\r\n", "no status line"),
    (b"HTTP/1.1 1010 Late\r\n\r\n", "no status line"),
    (b"HTTP/1.1 101 Switching Protocols\r\nno colon\r\n\r\n", "'no colon' among its headers"),
    (b"HTTP/1.1 101 Switching Protocols\r\nA: b\r\n folded: c\r\n\r\n", "among its headers"),
    (b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD, "no end"),
    (b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD // 10), "no end"),
])
def test_no_head(data: bytes, why: str) -> None:
    """What is no HTTP, or without end, is found out as soon as it can be."""
    for step in (1009, len(data)):
        with pytest.raises(ProtocolError, match=why):
            read(data, step)


@given(st.binary(max_size=200), st.integers(1, 50))
@bounded
def test_any_bytes(data: bytes, step: int) -> None:
    """Nothing but a ProtocolError ever comes out."""
    for beginning in (b"", b"HTTP/1.1 101 \r\n"):
        try:
            read(beginning + data, step)
        except ProtocolError:
            pass


# What a 101 must say


def changed(**changes: str | None) -> Answer:
    """Return a good 101 with some headers changed; None takes one away."""
    new = {name.replace("_", "-"): value for name, value in changes.items()}
    headers = {**{name.lower(): value for name, value in GOOD}, **new}
    return Answer("1.1", 101, "", [(name, value) for name, value in headers.items() if value is not None])


@pytest.mark.parametrize(("answer", "subprotocols", "chosen"), [
    (Answer("1.1", 101, "", GOOD), [], None),
    (changed(), ["a"], None),
    (changed(upgrade="WebSocket", connection="keep-alive, UPGRADE"), [], None),
    (changed(sec_websocket_protocol="b"), ["a", "b"], "b"),
    (changed(sec_websocket_protocol="", sec_websocket_extensions=""), [], None),
])
def test_good_101(answer: Answer, subprotocols: list[str], chosen: str | None) -> None:
    """It opens a WebSocket with the subprotocol that the server chose."""
    assert check_answer(answer, KEY, subprotocols) == chosen


@pytest.mark.parametrize(("answer", "why"), [
    (Answer("1.0", 101, "", GOOD), "HTTP/1.0"),
    (changed(upgrade=None), "Upgrade ''"),
    (changed(upgrade="h2c"), "Upgrade 'h2c'"),
    (changed(connection=None), "Connection ''"),
    (changed(connection="close"), "Connection 'close'"),
    (changed(sec_websocket_accept=None), "Sec-WebSocket-Accept ''"),
    (changed(sec_websocket_accept=ACCEPT.lower()), "does not belong to our key"),
    (Answer("1.1", 101, "", [*GOOD, GOOD[2]]), "does not belong to our key"),
    (changed(sec_websocket_extensions="permessage-deflate"), "extensions 'permessage-deflate', and none"),
    (changed(sec_websocket_protocol="c"), "subprotocol 'c', which was not offered"),
    (changed(sec_websocket_protocol="a, b"), "subprotocol 'a, b', which was not offered"),
    (changed(sec_websocket_protocol="A"), "subprotocol 'A', which was not offered"),
])
def test_bad_101(answer: Answer, why: str) -> None:
    """A 101 that does not answer this request is told from one that does (RFC 6455 4.1)."""
    with pytest.raises(ProtocolError, match=why):
        check_answer(answer, KEY, ["a", "b"])


# The body of a refusal


@pytest.mark.parametrize(("status", "headers", "data", "body", "complete"), [
    (403, [("Content-Length", "3")], b"No.", b"No.", True),
    (403, [("Content-Length", "3")], b"No.HTTP/1.1", b"No.", True),
    (403, [("Content-Length", "3")], b"No", b"No", False),
    (403, [("Content-Length", "0")], b"", b"", True),
    (403, [("Content-Length", "-1")], b"No.", b"No.", False),
    (403, [("Content-Length", "3"), ("Content-Length", "3")], b"No.", b"No.", False),
    (403, [], b"No.", b"No.", False),
    (204, [], b"", b"", True),
    (304, [("Content-Length", "3")], b"", b"", True),
    (403, [("Transfer-Encoding", "chunked")], b"2\r\nNo\r\n1;a=b\r\n.\r\n0\r\n\r\n", b"No.", True),
    (403, [("transfer-encoding", "Chunked")], b"2 \r\nNo\r\n1", b"No", False),
    (403, [("Transfer-Encoding", "chunked")], b"A\r\nNo", b"No", False),
    (403, [("Transfer-Encoding", "chunked")], b"none\r\nNo", b"", False),
    (403, [("Transfer-Encoding", "chunked")], b"", b"", False),
])
def test_body(status: int, headers: list[tuple[str, str]], data: bytes, body: bytes, complete: bool) -> None:
    """Its end is where the headers say, or where the connection ends."""
    assert parse_body(Answer("1.1", status, "", headers), data) == (body, complete)
