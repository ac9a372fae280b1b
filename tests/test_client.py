"""The synchronous client: against gunicorn, against servers that answer badly, and over TLS."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import wire
from certificates import certificates, client_context, server_context
from servers import Server, serve
from websockets.sync import server as independent

from wsthread.client import ClientConnection, connect
from wsthread.exceptions import ConnectionClosed, HandshakeRefused, ProtocolError
from wsthread.wire.client_handshake import MAX_HEAD
from wsthread.wire.handshake import accept_key, encode_response, response_headers

Talk = Callable[[socket.socket], None]


# Under gunicorn


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with apps.echo."""
    with serve("gthread", "apps.echo:app") as running:
        yield running


def test_echo(server: Server) -> None:
    """Messages of every kind come back, and the closing handshake is complete."""
    with connect(server.url("/echo", "ws")) as ws:
        for payload in ("text", b"binary", "", "Gr\xfc\xdfe", b"x" * (1 << 20)):
            ws.send(payload)
            assert ws.receive() == payload
        ws.ping()
        assert (ws.close_code, ws.closed) == (None, False)
    assert (ws.close_code, ws.close_reason, ws.closed) == (1000, "", True)
    assert ("Upgrade", "websocket") in ws.headers


def test_large_messages_before_the_answers_are_read(server: Server) -> None:
    """What comes is taken while something is sent, so that neither side waits for the other."""
    with connect(server.url("/echo", "ws")) as ws:
        for _ in range(4):
            ws.send(b"x" * (4 << 20))
        assert [len(ws.receive()) for _ in range(4)] == [4 << 20] * 4


def test_refusals(server: Server) -> None:
    """The exception has the whole answer."""
    with pytest.raises(HandshakeRefused, match="^400 BAD REQUEST: <!doctype html>") as caught:
        connect(server.url("/", "ws"))  # Flask knows that this route is none for WebSockets.
    assert caught.value.body.endswith(b"</p>\n")
    with pytest.raises(HandshakeRefused, match="403 Forbidden: Origin is 'https://evil.example'") as caught:
        connect(server.url("/echo", "ws"), origin="https://evil.example")
    assert (caught.value.status, caught.value.reason) == (403, "Forbidden")
    assert ("Content-Type", "text/plain; charset=utf-8") in caught.value.headers
    with pytest.raises(HandshakeRefused, match="404"):
        connect(server.url("/nowhere", "ws"))


def test_unix_socket(tmp_path: Path) -> None:
    """The URL names the host of the request then, and the path names where to connect to."""
    path = str(tmp_path / "socket")
    with serve("gthread", "apps.echo:app", bind=f"unix:{path}"):
        with connect("ws://chat.example/echo", unix_path=path) as ws:
            ws.send("hi")
            assert ws.receive() == "hi"
    with pytest.raises(OSError):
        connect("ws://chat.example/echo", unix_path=path, timeout=5)


# What goes over the wire


@contextmanager
def talking(talk: Talk) -> Iterator[str]:
    """Run a server for one connection in a thread; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def run() -> None:
            sock, _ = listener.accept()
            sock.settimeout(10)
            with sock:
                talk(sock)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)
        assert not thread.is_alive()


def read_head(sock: socket.socket) -> str:
    """Return a request's head."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += sock.recv(1)
    return data.decode()


def accept(sock: socket.socket, subprotocol: str | None = None, behind: bytes = b"") -> str:
    """Answer an opening handshake, with what comes behind the 101 in the same segment; return the request."""
    head = read_head(sock)
    key = head.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
    sock.sendall(encode_response(response_headers(key, subprotocol)) + behind)
    return head


def until_end(sock: socket.socket) -> bytes:
    """Return all that comes until the client has closed."""
    data = b""
    try:
        while received := sock.recv(1 << 16):
            data += received
    except ConnectionResetError:
        pass  # It closed with bytes unread.
    return data


def exactly(sock: socket.socket, size: int) -> bytes:
    """Return so many bytes."""
    data = b""
    while len(data) < size:
        received = sock.recv(size - len(data))
        assert received, data[:100]
        data += received
    return data


def server_frame(opcode: int, payload: bytes = b"") -> bytes:
    """Return a short frame as a server sends it."""
    return bytes((0x80 | opcode, len(payload))) + payload


def test_request() -> None:
    """Headers, subprotocols, the user of the URL and the Origin are in the request."""
    heads: list[str] = []

    def talk(sock: socket.socket) -> None:
        heads.append(accept(sock, "chat.v2", server_frame(wire.TEXT, b"hi") + server_frame(wire.CLOSE)))
        exactly(sock, 6)  # Its Close.

    with talking(talk) as url:
        with connect(
            url.replace("//", "//user:pass@") + "/a b?q=1", headers={"X-Token": "1"},
            subprotocols=["chat.v1", "chat.v2"], origin="https://a.example",
        ) as ws:
            assert (ws.subprotocol, list(ws), ws.close_code) == ("chat.v2", ["hi"], 1005)
    lines = heads[0].split("\r\n")
    assert lines[:3] == ["GET /a%20b?q=1 HTTP/1.1", f"Host: {url[5:]}", "Authorization: Basic dXNlcjpwYXNz"]
    assert {"X-Token: 1", "Origin: https://a.example", "Sec-WebSocket-Protocol: chat.v1, chat.v2"} < set(lines)


def test_frames_are_masked_and_pings_answered() -> None:
    """Each frame has a masking key of its own (RFC 6455 5.3)."""
    seen: list[bytes] = []

    def talk(sock: socket.socket) -> None:
        accept(sock, None, server_frame(wire.PING, b"1") + server_frame(wire.TEXT, b"go"))
        seen.append(exactly(sock, 7 + 6 + 6))
        sock.sendall(server_frame(wire.CLOSE, wire.close_payload(1001, b"bye")))
        seen.append(exactly(sock, 8))

    with talking(talk) as url, connect(url) as ws:
        assert (ws.receive(), ws.pings) == ("go", 1)
        ws.send("")
        ws.send("")
        with pytest.raises(ConnectionClosed, match="1001: bye"):
            ws.receive()
    data, close = seen
    frames = (data[:7], data[7:13], data[13:], close)
    assert [frame[:2] for frame in frames] == [b"\x8a\x81", b"\x81\x80", b"\x81\x80", b"\x88\x82"]
    assert len({frame[2:6] for frame in frames}) == 4
    assert data[6] ^ data[2] == ord("1")
    assert bytes(a ^ b for a, b in zip(close[6:], close[2:])) == (1001).to_bytes(2, "big")


@pytest.mark.parametrize(("frames", "code"), [
    (b"\x81\x81\0\0\0\0a", 1002),  # Masked.
    (b"\xc1\x01a", 1002),  # Compressed.
    (server_frame(wire.TEXT, b"\xff"), 1007),
    (server_frame(wire.CLOSE, b"\x03"), 1002),
    (b"\x82\x7e\x04\x01", 1009),
])
def test_server_that_breaks_the_protocol(frames: bytes, code: int) -> None:
    """It is told with a Close, and the connection is over."""
    seen: list[bytes] = []

    def talk(sock: socket.socket) -> None:
        accept(sock, None, frames)
        seen.append(until_end(sock))

    with talking(talk) as url:
        ws = connect(url, max_message_size=1024)
        with pytest.raises(ProtocolError) as caught:
            ws.receive()
        assert (caught.value.code, ws.close_code, ws.closed) == (code, 1006, True)
        with pytest.raises(ConnectionClosed):
            ws.receive()
        ws.close()  # Nothing happens.
    assert bytes(a ^ b for a, b in zip(seen[0][6:8], seen[0][2:])) == code.to_bytes(2, "big")


def test_a_message_that_did_not_leave_in_time_leaves_later() -> None:
    """Nothing is written into the middle of it."""
    may_read, seen = threading.Event(), []
    message = b"x" * (16 << 20)

    def talk(sock: socket.socket) -> None:
        accept(sock, None, server_frame(wire.PING, b"1"))
        assert may_read.wait(10)
        seen.append(exactly(sock, 7 + (2 + 8 + 4 + len(message)) + 8))
        sock.sendall(server_frame(wire.CLOSE))

    with talking(talk) as url:
        ws = connect(url)
        with pytest.raises(TimeoutError, match="does not read"):
            ws.send(message, timeout=0.05)
        with pytest.raises(TimeoutError, match="does not read"):
            ws.send("dropped", timeout=0)
        may_read.set()
        ws.close(timeout=10)
    sent, = seen
    assert (sent[:2], sent[7:9], sent[-8:-6]) == (b"\x8a\x81", b"\x82\xff", b"\x88\x82")  # Pong, message, Close.


@pytest.mark.parametrize(("says", "code"), [(server_frame(wire.CLOSE, wire.close_payload(4001)), 4001), (b"", 1006)])
@pytest.mark.parametrize("half", [True, False])
def test_server_that_ends_while_it_is_sent_to(says: bytes, code: int, half: bool) -> None:
    """What it said last is still seen."""
    seen = threading.Event()

    def talk(sock: socket.socket) -> None:
        accept(sock)
        exactly(sock, 100)
        sock.sendall(says)
        if half:
            sock.shutdown(socket.SHUT_WR)
            assert seen.wait(10)

    with talking(talk) as url:
        ws = connect(url)
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                ws.send(b"x" * (16 << 20))
        assert caught.value.code == code
        seen.set()
        ws.terminate()


@pytest.mark.parametrize("call", [
    lambda ws: ws.receive(0.05), lambda ws: ws.ping(0.05), lambda ws: ws.close(timeout=0.05),
], ids=["receive", "ping", "close"])
def test_server_that_says_nothing(call: Callable[[ClientConnection], Any]) -> None:
    """A call ends at its deadline."""
    def talk(sock: socket.socket) -> None:
        accept(sock)
        until_end(sock)

    with talking(talk) as url:
        ws = connect(url)
        with pytest.raises(TimeoutError):
            call(ws)
        ws.terminate()
        ws.terminate()
        assert (ws.close_code, ws.closed) == (1006, True)


@pytest.mark.parametrize("frames", [server_frame(wire.PONG) * 1000, b"\x02\x7f" + bytes(8)], ids=["Pongs", "a message"])
@pytest.mark.parametrize("call", [lambda ws: ws.receive(0.05), lambda ws: ws.close(timeout=0.05)])
def test_server_that_sends_without_end(frames: bytes, call: Callable[[ClientConnection], Any]) -> None:
    """A deadline holds for it as well, with the time on top in which what has come is taken."""
    def talk(sock: socket.socket) -> None:
        accept(sock, None, frames)
        try:
            while True:
                sock.sendall(frames if frames[0] == 0x8a else b"\0\0" * 1000)
        except OSError:
            pass

    with talking(talk) as url:
        ws = connect(url)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            call(ws)
        ws.terminate()
        assert time.monotonic() - begun < 5


# Servers that are none


def answering(data: bytes, *, read: bool = True, wait: bool = False) -> Talk:
    """Return a server that answers with bytes, and then closes or waits for the client to."""
    def talk(sock: socket.socket) -> None:
        if read:
            read_head(sock)
        sock.sendall(data)
        if wait:
            until_end(sock)

    return talk


def endless(beginning: bytes, more: bytes) -> Talk:
    """Return a server whose answer has no end."""
    def talk(sock: socket.socket) -> None:
        read_head(sock)
        try:
            sock.sendall(beginning)
            while True:
                sock.sendall(more)
        except OSError:
            pass

    return talk


@pytest.mark.parametrize(("talk", "error", "why"), [
    (answering(b""), ConnectionClosed, "did not answer"),
    (answering(b"", read=False), ConnectionClosed, "did not answer"),
    (answering(b"HTTP/1.1 101 Switching"), ConnectionClosed, "did not answer"),
    (answering(b"", wait=True), TimeoutError, "did not answer the opening handshake in time"),
    (answering(b"HTTP/1.1 101 Switching", wait=True), TimeoutError, "in time"),
    (answering(b"SSH-2.0-OpenSSH_9.2\r\n", read=False, wait=True), ProtocolError, "not HTTP, .*SSH-2.0"),
    (answering(b"\x15\x03\x01\0\x02\x02\x46"), ProtocolError, "TLS"),
    (endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 100), ProtocolError, f"no end within {MAX_HEAD} bytes"),
    (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), ProtocolError, "no end"),
    (answering(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), ProtocolError, "Upgrade"),
    (answering(encode_response(response_headers("another key", None))), ProtocolError, "our key"),
    (answering(b"HTTP/1.0 403 Forbidden\r\n\r\nNo."), HandshakeRefused, "^403 Forbidden: No.$"),
    (answering(b"HTTP/1.1 403\r\n\r\nNo.", wait=True), HandshakeRefused, "^403: No.$"),
    (answering(b"HTTP/1.1 403 F\r\nContent-Length: 3\r\n\r\nNo.", wait=True), HandshakeRefused, "^403 F: No.$"),
    (answering(b"HTTP/1.1 403 F\r\nContent-Length: 300\r\n\r\nNo."), HandshakeRefused, "^403 F: No.$"),
    (answering(b"HTTP/1.1 403 F\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nNo.\r\n0\r\n\r\n", wait=True),
     HandshakeRefused, "^403 F: No.$"),
    (answering(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"), HandshakeRefused, "^302 Found$"),
    (endless(b"HTTP/1.1 500 Oops\r\n\r\n", b"x" * 1000), HandshakeRefused, "^500 Oops: x{200}$"),
])
def test_bad_answer(talk: Talk, error: type[Exception], why: str) -> None:
    """Each is one error that says what is wrong, and comes in time."""
    begun = time.monotonic()
    with talking(talk) as url, pytest.raises(error, match=why) as caught:
        connect(url, timeout=1)
    assert caught.type is error and time.monotonic() - begun < 5
    if isinstance(caught.value, HandshakeRefused):
        assert len(caught.value.body) <= 1 << 16


def test_long_request() -> None:
    """A server may refuse it before it has read it, or never read it."""
    done, headers = threading.Event(), {"Cookie": "x" * (16 << 20)}

    def talk(sock: socket.socket) -> None:
        assert done.wait(10)

    with talking(answering(b"HTTP/1.1 431 Too Much\r\n\r\n", read=False)) as url:
        with pytest.raises(HandshakeRefused, match="431 Too Much"):
            connect(url, headers=headers)
    with talking(talk) as url:
        with pytest.raises(TimeoutError, match="did not read"):
            connect(url, headers=headers, timeout=0.1)
        done.set()


def test_nobody_listens() -> None:
    """The error is the one of the system."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Without listening.
        with pytest.raises(ConnectionRefusedError):
            connect(f"ws://127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize(("url", "options"), [
    ("http://127.0.0.1/", {}), ("ws://127.0.0.1/", {"headers": [("Upgrade", "x")]}),
    ("ws://127.0.0.1/", {"subprotocols": ["a", "a"]}),
])
def test_bad_arguments(url: str, options: dict[str, Any]) -> None:
    """They are found before anything is opened."""
    with pytest.raises(ValueError):
        connect(url, **options)


def test_ipv6() -> None:
    """An address in brackets is connected to without them."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        port, heads = listener.getsockname()[1], []

        def run() -> None:
            sock, _ = listener.accept()
            with sock:
                heads.append(accept(sock))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        connect(f"ws://[::1]:{port}/").terminate()
        thread.join(10)
    assert f"Host: [::1]:{port}\r\n" in heads[0]


# TLS


@contextmanager
def echoing_over_tls(context: ssl.SSLContext) -> Iterator[str]:
    """Run an independent server that echoes over TLS; yield its URL."""

    def echo(ws: independent.ServerConnection) -> None:
        for message in ws:
            ws.send(message)

    with independent.serve(echo, "127.0.0.1", 0, ssl=context, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"wss://127.0.0.1:{server.socket.getsockname()[1]}/"
        server.shutdown()
        thread.join(10)


def test_tls() -> None:
    """Messages go both ways at a time over TLS as well."""
    with echoing_over_tls(server_context()) as url, connect(url, ssl_context=client_context()) as ws:
        ws.ping()
        for _ in range(4):
            ws.send(b"x" * (4 << 20))
        assert [len(ws.receive()) for _ in range(4)] == [4 << 20] * 4
        with pytest.raises(TimeoutError):
            ws.receive(0)
    assert ws.close_code == 1000


def test_certificate_that_is_not_trusted() -> None:
    """By default the certificate has to be signed by an authority that the system knows."""
    with echoing_over_tls(server_context()) as url, pytest.raises(ssl.SSLCertVerificationError):
        connect(url)


def test_certificate_of_another_host() -> None:
    """The certificate has to be for the host of the URL, whoever signed it."""
    context, paths = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificates()
    context.load_cert_chain(paths.client, paths.client_key)
    with echoing_over_tls(context) as url, pytest.raises(ssl.SSLCertVerificationError, match="127.0.0.1"):
        connect(url, ssl_context=client_context())


@pytest.mark.parametrize(("talk", "error"), [
    (answering(b"HTTP/1.1 400 Bad Request\r\n\r\n", read=False), OSError),
    (answering(b"", read=False), OSError),
    (lambda sock: until_end(sock) and None, TimeoutError),
], ids=["plain HTTP", "closed", "silent"])
def test_server_without_tls(talk: Talk, error: type[Exception]) -> None:
    """TLS that cannot be agreed on is an error in time."""
    with talking(talk) as url, pytest.raises(error):
        connect(url.replace("ws:", "wss:"), timeout=0.5)


def test_accept_key_is_that_of_the_rfc() -> None:
    """The servers here compute it with wsthread's own function, so look at it once."""
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
