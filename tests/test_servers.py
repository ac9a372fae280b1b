"""wsthread under real servers: what clients see, what the servers' logs and counters say, what is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import websocket
from apps.echo import MIXED_SIZES, noise
from certificates import certificates
from clients import BINARY, CLOSE, PING, TEXT, RawClient, ask, frame, handshake
from servers import Server, serve, wait_until
from websockets.sync.client import unix_connect

ALL = ("gthread", "sync", "werkzeug", "werkzeug-single")
#: Those that are tested beside them when all tests run; tests/test_servers_*.py have more of each.
MORE = ("wsgiref", "runserver", "waitress", "cheroot")
ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" \
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"  # The one of RFC 6455 1.3.
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def on(*kinds: str, slow: Sequence[str] = (), tls: bool = True) -> pytest.MarkDecorator:
    """Run a test on these servers; on those of ``slow``, and with TLS, only when all tests run."""
    secure = [f"{kind}-tls" for kind in ("gthread", "werkzeug") if tls and kind in kinds]
    params = [*kinds, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (*slow, *secure))]
    return pytest.mark.parametrize("shared", params, indirect=True)


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with apps.echo, one for all tests."""
    with serve(request.param, "apps.echo:app") as running:
        yield running


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """A server with apps.echo, without WebSockets at the beginning, that logs no error during the test."""
    wait_until(lambda: is_idle(shared))
    before = len(shared.errors())
    yield shared
    while _connected:  # Those that a failed test has left.
        _connected.pop().shutdown()
    assert shared.errors()[before:] == []


_connected: list[websocket.WebSocket] = []


def is_idle(server: Server) -> bool:
    """Tell whether there are no WebSockets, and on_close was called for each that there was."""
    stats = server.stats()
    return not stats["open"] and stats["connected"] == len(stats["closed"])


def connect(server: Server, path: str = "/echo", **options: Any) -> websocket.WebSocket:
    """Open a WebSocket that needs no thread of ours."""
    client = websocket.create_connection(
        server.url(path, "ws"), sslopt={"ca_certs": certificates().authority}, **{"timeout": 20, **options})
    _connected.append(client)
    return client


def closed_since(server: Server, before: int) -> list[int]:
    """Return the close codes of the connections that ended after the first so many."""
    return [code for code, _ in server.stats()["closed"][before:]]


# The promise: WebSockets cost no thread of the pool


@on("gthread", "sync", slow=["werkzeug"])
def test_http_goes_on_beside_many_websockets(server: Server) -> None:
    upgrades = server.access("/echo", 101)
    clients = [connect(server) for _ in range(300)]
    wait_until(lambda: server.stats()["open"] == 300)
    stop = threading.Event()
    talked: list[int] = []

    def talk(mine: list[websocket.WebSocket]) -> None:
        while not stop.is_set():
            for client in mine:
                client.send("talk")
                assert client.recv() == "talk"
            talked.append(len(mine))

    talkers = [threading.Thread(target=talk, args=(clients[start::3],)) for start in range(3)]
    for talker in talkers:
        talker.start()
    try:
        durations = []
        for _ in range(50):
            begun = time.monotonic()
            assert server.get("/") == "plain HTTP"
            durations.append(time.monotonic() - begun)
        assert sorted(durations)[-2] < 1  # One may have met a moment in which the machine did something else.
        wait_until(lambda: sum(talked) >= 600)
    finally:
        stop.set()
        for talker in talkers:
            talker.join(20)
    # The one connection is that of the request for /stats.
    wait_until(lambda: server.stats()["nr_conns"] in (1, None), timeout=5)
    for client in clients:
        client.close()
    wait_until(lambda: server.access("/echo", 101) == upgrades + 300, timeout=5)
    wait_until(lambda: server.stats()["open"] == 0)


def test_connection_counter() -> None:
    """gunicorn accepts no more connections when it counts too many of them."""
    with serve("gthread", "apps.echo:app", "--keep-alive", "60") as server, contextlib.ExitStack() as stack:
        keep_alive = [stack.enter_context(RawClient(server.port)) for _ in range(3)]
        for http_client in keep_alive:
            http_client.send(GET)
            assert http_client.recv_response() == (200, "plain HTTP")
        clients = [stack.enter_context(RawClient(server.port)).open() for _ in range(20)]
        # The slots of the upgrades are given back by the worker's main loop, which may come a moment later.
        wait_until(lambda: server.stats()["nr_conns"] == 4)
        for client in clients:
            client.socket.close()
        wait_until(lambda: is_idle(server))
        wait_until(lambda: server.stats()["nr_conns"] == 4)  # That of the request before may be on its way out.
        for http_client in keep_alive:
            http_client.socket.close()
        wait_until(lambda: server.stats()["nr_conns"] == 1)
        assert server.errors() == []


@on("gthread")  # The others have no such timeout.
def test_idle_longer_than_keep_alive(server: Server) -> None:
    with RawClient(server.port) as idle:
        idle.open()
        with RawClient(server.port) as keep_alive:
            keep_alive.send(GET)
            assert keep_alive.recv_response() == (200, "plain HTTP")
            with contextlib.suppress(ssl.SSLEOFError):  # That is how gunicorn ends TLS.
                assert keep_alive.recv_rest() == b""  # After gunicorn's 2 s for keep-alive connections.
        idle.send(frame(TEXT, "still here"))
        assert idle.recv_frame() == (TEXT, b"still here")


# What is left behind


def warm_up(server: Server) -> tuple[int, int]:
    """Let the server start the threads that it keeps: its pool, the housekeeper. Return what it holds then."""
    connect(server).close()
    getters = [threading.Thread(target=server.get) for _ in range(20)]
    for getter in getters:
        getter.start()
    for getter in getters:
        getter.join(10)
    wait_until(lambda: server.stats()["open"] == 0)
    held = [holds(server)]
    # The last connections may be on their way out still; there is nothing to wait for but quiet.
    while len(held) < 5 or held[-5:] != 5 * held[-1:]:
        time.sleep(0.05)
        held.append(holds(server))
    return held[-1]


def holds(server: Server) -> tuple[int, int]:
    """Return the numbers of threads and of file descriptors."""
    return server.threads(), server.descriptors()


@on("gthread", slow=["werkzeug"])
def test_nothing_is_left_after_closing(server: Server) -> None:
    before, ended = warm_up(server), len(server.stats()["closed"])
    count = 200 if server.is_secure else 1000  # TLS handshakes take their time.
    for number in range(count):
        client = connect(server)
        client.send(str(number))
        assert client.recv() == str(number)
        if number % 2:
            client.close(status=4000 + number % 3)
        else:
            client.send_close()  # And the server's answer is waited for by neither side.
            client.shutdown()
    wait_until(lambda: holds(server) == before)
    expected = [4000 + number % 3 if number % 2 else 1000 for number in range(count)]
    assert sorted(closed_since(server, ended)) == sorted(expected)
    wait_until(lambda: server.stats()["nr_conns"] in (1, None))


def cut_with_rst(client: RawClient) -> None:
    client.reset()


def cut_with_fin(client: RawClient) -> None:
    client.socket.close()


def cut_mid_frame(client: RawClient) -> None:
    client.send(frame(BINARY, bytes(100_000))[:50_000])
    client.socket.close()


def cut_mid_header_with_rst(client: RawClient) -> None:
    client.send(frame(BINARY, bytes(100_000))[:5])
    client.reset()


def cut_mid_message(client: RawClient) -> None:
    client.send(frame(TEXT, "first fragment", fin=False))
    client.reset()


@on("gthread", slow=["werkzeug"])
def test_nothing_is_left_after_cuts(server: Server) -> None:
    before, ended = warm_up(server), len(server.stats()["closed"])
    cuts = (cut_with_rst, cut_with_fin, cut_mid_frame, cut_mid_header_with_rst, cut_mid_message)
    count = 200 if server.is_secure else 1000
    for number in range(count):
        client = RawClient(server.port).open()
        client.send(frame(TEXT, str(number)))
        assert client.recv_frame() == (TEXT, str(number).encode())
        cuts[number % len(cuts)](client)
    wait_until(lambda: holds(server) == before)
    assert closed_since(server, ended) == [1006] * count
    wait_until(lambda: server.stats()["nr_conns"] in (1, None))


@on("gthread", "werkzeug")
@pytest.mark.parametrize("cut", [cut_with_rst, cut_with_fin])
def test_cut_while_the_server_sends(server: Server, cut: Callable[[RawClient], None]) -> None:
    before, ended = warm_up(server), len(server.stats()["closed"])
    clients = [RawClient(server.port, receive_buffer=4096).open() for _ in range(5)]
    for client in clients:
        client.send(frame(BINARY, bytes(8 << 20)))
        client.recv(10)  # The echo has begun, and now it is stuck.
    for client in clients:
        cut(client)
    wait_until(lambda: closed_since(server, ended) == [1006] * 5)
    wait_until(lambda: holds(server) == before)


@on("gthread", "sync", "werkzeug")
@pytest.mark.parametrize(("data", "code"), [
    (frame(CLOSE, b"\x03\xe8"), 1000),
    (frame(CLOSE, b"\x03\xe9bye"), 1001),
    (frame(CLOSE, b"\x13\x88"), 1002),  # 5000 may not be on the wire (RFC 6455 7.4.2).
    (frame(CLOSE), 1005),
    (frame(CLOSE, b"\x03"), 1002),
    (frame(TEXT, b"\xff"), 1007),
    (b"\x81\x01a", 1002),
    (b"GET / HTTP/1.1\r\n", 1002),
    (b"\x82\xff" + (1 << 62).to_bytes(8, "big") + b"mask", 1009),
    (frame(PING), 1006),
], ids=["normal", "reason", "5000", "empty", "half", "utf-8", "unmasked", "http", "huge", "no close"])
def test_close_codes(server: Server, data: bytes, code: int) -> None:
    ended = len(server.stats()["closed"])
    with RawClient(server.port) as client:
        client.open().send(data)
        if code != 1006:
            opcode, payload = client.recv_frame()
            assert opcode is CLOSE
            assert int.from_bytes(payload[:2] or b"\x03\xed", "big") == code
        with contextlib.suppress(OSError):  # The server may have closed it already.
            client.end_sending()
        client.recv_rest()  # EOF, and no reset.
    wait_until(lambda: closed_since(server, ended) == [code])


# The bytes of the handshake


@on(*ALL, slow=MORE)
@pytest.mark.parametrize(("offer", "chosen"), [
    ([], b""),
    (["Sec-WebSocket-Protocol: v1, v2"], b"Sec-WebSocket-Protocol: v2\r\n"),
    (["Sec-WebSocket-Protocol: v0"], b""),
])
def test_exactly_one_101(server: Server, offer: list[str], chosen: bytes) -> None:
    expected = ACCEPTED + chosen + b"\r\n"
    with RawClient(server.port) as client:
        client.send(handshake("/echo", server.port, *offer))
        assert client.recv(len(expected)) == expected
        assert client.silent()
        client.send(frame(TEXT, "a"))
        assert client.recv(3) == b"\x81\x01a"
        assert client.silent()
        client.send(frame(CLOSE, b"\x03\xe8"))
        assert client.recv_rest() == b"\x88\x02\x03\xe8"


@on(*ALL, slow=MORE)
@pytest.mark.parametrize("header", [
    "Connection: keep-alive, Upgrade",  # Firefox
    "Connection: upgrade",
    "X-Long: " + "x" * 4000,
    "Origin: http://127.0.0.1:{port}",
    "Sec-WebSocket-Extensions: permessage-foo; a=1, x-bar",
])
def test_other_headers(server: Server, header: str) -> None:
    request = handshake("/echo", server.port, header.format(port=server.port))
    if header.startswith("Connection"):
        request = request.replace(b"Connection: Upgrade\r\n", b"")
    with RawClient(server.port) as client:
        client.send(request)
        assert client.recv_head() == ACCEPTED + b"\r\n"
        client.send(frame(CLOSE, b"\x03\xe8"))
        assert client.recv_rest() == b"\x88\x02\x03\xe8"


@on(*ALL, slow=MORE)
def test_slow_handshake_in_small_pieces(server: Server) -> None:
    request = handshake("/echo", server.port)
    with RawClient(server.port) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), 20):
            client.send(request[start:start + 20])
        assert client.recv_head() == ACCEPTED + b"\r\n"
        client.send(frame(TEXT, "a"))
        assert client.recv_frame() == (TEXT, b"a")


# What arrives together with the handshake, or before it


@on(*ALL, slow=MORE)
@pytest.mark.parametrize("sizes", [(5,), (0, 1, 125), (126, 7000), (20_000, 3), (300_000,)], ids=str)
def test_frames_behind_the_handshake(server: Server, sizes: tuple[int, ...]) -> None:
    """RFC 6455 4.1 forbids it; they must neither be lost nor be taken for another HTTP request."""
    refused = server.access("/echo", 400)
    messages = [noise(size, size) for size in sizes]
    with RawClient(server.port) as client:
        client.send(handshake("/echo", server.port) + b"".join(frame(BINARY, message) for message in messages))
        assert client.recv_head() == ACCEPTED + b"\r\n"
        for message in messages:
            assert client.recv_frame() == (BINARY, message)
        assert client.silent()
    assert server.get() == "plain HTTP"
    assert server.access("/echo", 400) == refused


@on(*ALL, slow=MORE)
def test_many_bytes_right_behind_the_101(server: Server) -> None:
    """A server that still reads its connection would take some of them."""
    message = noise(1, 100_000)
    for _ in range(10):
        with RawClient(server.port) as client:
            client.open().send(frame(BINARY, message))
            assert client.recv_frame() == (BINARY, message)


@on(*ALL, slow=MORE)
def test_http_behind_the_handshake_is_not_served(server: Server) -> None:
    """It would be request smuggling: a proxy believes that this connection speaks WebSocket now."""
    with RawClient(server.port) as client:
        client.send(handshake("/echo", server.port) + GET.replace(b"/ ", b"/smuggled "))
        assert client.recv_head() == ACCEPTED + b"\r\n"
        opcode, payload = client.recv_frame()
        assert (opcode, payload[:2]) == (CLOSE, b"\x03\xea")
        client.end_sending()
        assert client.recv_rest() == b""
    assert server.get() == "plain HTTP"
    assert "smuggled" not in server.log()


@on("gthread")  # The others end a connection after one request.
def test_upgrade_as_a_later_request(server: Server) -> None:
    with RawClient(server.port) as client:
        for _ in range(3):
            client.send(GET)
            assert client.recv_response() == (200, "plain HTTP")
        client.send(handshake("/echo", server.port) + frame(TEXT, "behind"))
        check_upgraded(client)


@on("gthread")
def test_upgrade_behind_pipelined_requests(server: Server) -> None:
    with RawClient(server.port) as client:
        client.send(3 * GET + handshake("/echo", server.port) + frame(TEXT, "behind"))
        for _ in range(3):
            assert client.recv_response() == (200, "plain HTTP")
        check_upgraded(client)


def check_upgraded(client: RawClient) -> None:
    """Check what follows the handshake, behind which there was a message already."""
    assert client.recv_head() == ACCEPTED + b"\r\n"
    assert client.recv_frame() == (TEXT, b"behind")
    client.send(frame(TEXT, "later"))
    assert client.recv_frame() == (TEXT, b"later")
    client.send(frame(CLOSE, b"\x03\xe8"))
    assert client.recv_rest() == b"\x88\x02\x03\xe8"


@on("gthread")  # The others end a connection after one request.
def test_an_older_keep_alive_connection_goes_on(server: Server) -> None:
    older = server.http(timeout=5)
    older.request("GET", "/")
    assert older.getresponse().read() == b"plain HTTP"
    older_socket = older.sock
    clients = [connect(server) for _ in range(6)]
    for number, client in enumerate(clients):
        older.request("GET", "/")
        assert older.getresponse().read() == b"plain HTTP"
        client.send(str(number))
        assert client.recv() == str(number)
        client.close()
    older.request("GET", "/")
    assert older.getresponse().read() == b"plain HTTP"
    assert older.sock is older_socket
    older.close()


# Refusals


def changed(server: Server, old: str, new: str) -> bytes:
    request = handshake("/any", server.port).decode()
    assert old in request
    return request.replace(old, new).encode()


@on(*ALL, slow=MORE)
@pytest.mark.parametrize(("old", "new", "status", "headers", "told"), [
    ("GET ", "POST ", 405, {"Allow": "GET"}, "POST"),
    ("Upgrade: websocket\r\n", "", 426, {"Upgrade": "websocket"}, '"Upgrade: websocket", but Upgrade is missing'),
    ("Upgrade: websocket", "Upgrade: h2c", 426, {"Upgrade": "websocket"}, "but Upgrade is 'h2c'"),
    ("Connection: Upgrade", "Connection: keep-alive", 426, {"Upgrade": "websocket"}, "Connection is 'keep-alive'"),
    ("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", 400, {}, "Sec-WebSocket-Key is 'c2hvcnQ='"),
    ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400, {}, "Sec-WebSocket-Key is ''"),
    ("Version: 13", "Version: 8", 426, {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"}, "'8'"),
    ("Sec-WebSocket-Version: 13\r\n", "", 426, {"Sec-WebSocket-Version": "13"}, "''"),
    ("HTTP/1.1", "HTTP/1.0", 400, {}, "HTTP/1.0"),
], ids=["POST", "no upgrade", "h2c", "connection", "short key", "no key", "version 8", "no version", "HTTP/1.0"])
def test_refusals(
    server: Server, old: str, new: str, status: int, headers: dict[str, str], told: str,
) -> None:
    before = server.log().count("refused handshake")
    # Some servers say nothing when they close behind HTTP/1.0, with any application.
    found = ask(server.port, changed(server, old, new), again=server.ends_with_notice or new != "HTTP/1.0")
    assert found[0] == status
    if not server.takes_upgrade:
        headers = {name: value for name, value in headers.items() if name != "Upgrade"}
    assert {name: found[1][name] for name in headers} == headers
    assert told in found[2] and found[2].endswith(".\n")
    wait_until(lambda: server.log().count("refused handshake") == before + 1, timeout=5)
    assert told in server.log()


@on(*ALL, slow=MORE)
def test_a_foreign_origin_is_refused(server: Server) -> None:
    status, _, body = ask(server.port, handshake("/echo", server.port, "Origin: https://evil.example"))
    assert status == 403
    line = server.wait_log(re.compile("refused handshake.*evil.*")).group()
    for told in (body, line):
        assert "'https://evil.example'" in told and f"'127.0.0.1:{server.port}'" in told
    if server.has_access_log:
        wait_until(lambda: server.access("/echo", 403) == 1)


@on(*ALL, slow=MORE)
@pytest.mark.parametrize(("header", "body"), [
    ("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n")])
def test_a_request_with_a_body_is_refused(server: Server, header: str, body: bytes) -> None:
    """The body would be taken for frames, or the frames for a body."""
    # Nor behind a body in chunks that nobody has read.
    again = server.ends_with_notice or "chunked" not in header
    status, _, told = ask(server.port, handshake("/echo", server.port, header) + body, again)
    assert (status, told) == (400, "The opening handshake has no body.\n")


@on("gthread", "werkzeug", tls=False)
@pytest.mark.parametrize("free", [2, 3, 4, 5])
def test_no_file_descriptor_is_left(server: Server, free: int) -> None:
    """The client is told, nothing leaks, and the server goes on."""
    held, connected = warm_up(server), server.stats()["connected"]
    wait_until(lambda: holds(server) == held)
    worker = server.worker()
    limits = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{worker}/fd")}
    # One for the HTTP connection; a detachment takes three more for a moment; some are kept for the server.
    limit = next(limit for limit in range(limits[0]) if limit - sum(number < limit for number in used) == free)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (limit, limits[1]))
    try:
        for _ in range(5):
            status, headers, told = ask(server.port, handshake("/echo", server.port))
            assert status == 503 and int(headers["Retry-After"]) > 0
            assert "ulimit -n" in told
            wait_until(lambda: holds(server) == held)
            assert server.get() == "plain HTTP"
            wait_until(lambda: holds(server) == held)
    finally:
        resource.prlimit(worker, resource.RLIMIT_NOFILE, limits)
    assert server.stats()["connected"] == connected
    with RawClient(server.port) as client:
        client.open()


def test_unix_socket() -> None:
    # Not tmp_path: the path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"
        with serve("gthread", "apps.echo:app", bind=f"unix:{path}") as server:
            for origin in (None, "http://localhost"):
                with unix_connect(path, "ws://localhost/echo", origin=origin, compression=None) as client:
                    client.send("through a file")
                    assert client.recv(timeout=10) == "through a file"
            wait_until(lambda: server.access("/echo", 101) == 2)
            assert server.errors() == []


# Much and from many


@on("gthread", slow=["werkzeug"])
@pytest.mark.parametrize(("count", "size"), [(1, 64 << 20), (64, 1 << 20)], ids=["one message", "64 messages"])
def test_a_slow_reader_gets_everything(server: Server, count: int, size: int) -> None:
    with RawClient(server.port, timeout=30, receive_buffer=1 << 16) as client:
        client.open(f"/much?count={count}&size={size}")
        with RawClient(server.port) as other:  # Meanwhile, nobody else waits.
            other.open().send(frame(TEXT, "a"))
            assert other.recv_frame() == (TEXT, b"a")
        for number in range(count):
            received = bytearray(client.recv(10))
            assert received == b"\x82\x7f" + size.to_bytes(8, "big")
            del received[:]
            while len(received) < size:
                received += client.recv(min(1 << 18, size - len(received)))
                time.sleep(0.005)  # This is the slowness.
            assert received == noise(number, size)
        assert client.recv_frame() == (CLOSE, b"\x03\xe8")


@on("gthread", slow=["werkzeug"])
def test_many_threads_send_on_one_connection(server: Server) -> None:
    threads, count = 16, 24
    pings: list[bytes] = []
    following = dict.fromkeys(range(threads), 0)
    with RawClient(server.port) as client:
        client.open(f"/threads?threads={threads}&count={count}")
        while True:
            opcode, payload = client.recv_frame()
            if opcode is CLOSE:
                break
            if opcode is PING:
                pings.append(payload)
                continue
            thread, number = payload[:2]
            assert opcode is BINARY and number == following[thread]
            assert payload[2:] == noise(thread << 8 | number, MIXED_SIZES[number % len(MIXED_SIZES)])
            following[thread] += 1
        assert payload == b"\x03\xe8"
    assert following == dict.fromkeys(range(threads), count)
    assert sorted(pings) == sorted(bytes([thread, number]) for thread in range(threads) for number in range(count))


@on(*ALL, slow=MORE)
def test_http_views_send(server: Server) -> None:
    clients = [connect(server, skip_utf8_validation=True) for _ in range(10)]
    wait_until(lambda: server.stats()["open"] == 10)

    def post(path: str, body: str) -> None:
        connection = server.http()
        connection.request("POST", path, body.encode())
        assert connection.getresponse().read() == b"sent"
        connection.close()

    post("/broadcast", "to all: ä€😀")
    assert [client.recv() for client in clients] == ["to all: ä€😀"] * 10
    post("/push", "to one")
    assert clients[-1].recv() == b"to one"
    post("/broadcast", "x" * 500_000)
    assert {client.recv() for client in clients} == {"x" * 500_000}
    for client in clients:
        client.close()
