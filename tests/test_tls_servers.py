"""TLS in the server: gunicorn with --certfile, Werkzeug with ssl_context.

The clients are asyncio's, or have one thread per socket: websockets.sync hangs over TLS now and then, with any server.
``BUSY_SECONDS=30`` lets both directions be busy for longer. What tests/test_servers.py has also runs over TLS.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from apps.secure import check, numbered
from certificates import certificates, client_context
from clients import CLOSE, TEXT, RawClient, frame, handshake
from servers import Server, serve, wait_until
from websockets.asyncio.client import connect

APP = "apps.secure:app"
SECONDS = float(os.environ.get("BUSY_SECONDS", "1"))
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
on_versions = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)


@pytest.fixture(scope="module", params=["gthread-tls", pytest.param("werkzeug-tls", marks=pytest.mark.slow)])
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(request.param, APP) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    assert shared.errors() == []


def noted(server: Server) -> list[str]:
    found: list[str] = json.loads(server.get("/noted"))
    return found


@on_versions
def test_both_directions(server: Server, version: ssl.TLSVersion) -> None:
    """A reader and a writer thread share the session: nothing gets lost, moved or mixed."""
    before = len(noted(server))

    async def talk() -> tuple[int, int]:
        sent = received = 0
        async with connect(
                server.url("/both", "ws"), ssl=client_context(version), max_size=None, compression=None) as client:
            end = time.monotonic() + SECONDS

            async def send() -> None:
                nonlocal sent
                while time.monotonic() < end or sent < 20:
                    await client.send(numbered(sent))
                    sent += 1

            async def receive() -> None:
                nonlocal received
                while time.monotonic() < end or received < 20:
                    message = await client.recv()
                    assert isinstance(message, bytes)
                    check(message, received)
                    received += 1

            await asyncio.gather(send(), receive())

            async def drop() -> None:
                async for _ in client:
                    pass

            await asyncio.gather(client.close(), drop())
        return sent, received

    sent, received = asyncio.run(talk())
    wait_until(lambda: len(noted(server)) == before + 2)
    counts = dict(line.split() for line in noted(server)[before:])
    print(f"FIGURE {version.name}: {counts} in {SECONDS:g} s")
    assert int(counts["received"]) == sent and int(counts["sent"]) >= received


@pytest.mark.slow
@on_versions
@pytest.mark.parametrize("kind", ["gthread-tls", "werkzeug-tls"])
def test_large_message(kind: str, version: ssl.TLSVersion) -> None:
    message = os.urandom(1 << 20) * 64

    async def talk(url: str) -> None:
        async with connect(url, ssl=client_context(version), max_size=None, compression=None) as client:
            await client.send(message)
            assert await client.recv() == message

    with serve(kind, "apps.echo:app") as server:
        asyncio.run(talk(server.url("/echo", "ws")))
        assert server.errors() == []


@pytest.mark.parametrize("size", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_dropping_under_pressure(server: Server, size: int) -> None:
    """A frame whose record was begun is not dropped."""
    context = client_context()

    def post(path: str) -> None:
        request = urllib.request.Request(server.url(path), method="POST")
        urllib.request.urlopen(request, timeout=60, context=context).close()

    numbers, count, rounds = [], 10_000_000 // (size + 200), 4
    with RawClient(server.port, timeout=30, receive_buffer=1 << 14) as client:
        def receive() -> bytes:
            first, length = client.recv(2)
            if length == 126:
                length = int.from_bytes(client.recv(2), "big")
            payload = client.recv(length)
            if first == 0x82:
                assert len(payload) == size and payload == payload[:4] * (size // 4)
                numbers.append(int.from_bytes(payload[:4], "big"))
            elif first != 0x89:  # A Ping, where this takes more than ten seconds.
                assert (first, payload) == (0x81, b"last")
            return payload

        client.open("/flood-ws")
        for _ in range(rounds):
            post(f"/flood/{size}/{count}")  # The kernel takes only a part of it.
            for _ in range(count // 40):
                receive()
        last = threading.Thread(target=post, args=("/last",))
        last.start()
        while receive() != b"last":
            pass
        last.join(60)
    assert numbers == sorted(set(numbers))
    assert len(numbers) < rounds * count
    print(f"FIGURE {size} bytes: {len(numbers)} of {rounds * count} arrived")


def test_a_deadline_within_a_record(server: Server) -> None:
    """Half a record does not make receive() wait longer."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = client_context().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        def exchange() -> None:
            raw.sendall(outgoing.read())
            incoming.write(raw.recv(1 << 16))

        while True:
            try:
                secure.do_handshake()
                break
            except ssl.SSLWantReadError:
                exchange()
        secure.write(handshake("/half", server.port))
        received = b""
        while b"\r\n\r\n" not in received:
            exchange()
            try:
                received += secure.read(1 << 16)
            except ssl.SSLWantReadError:
                pass
        secure.write(frame(TEXT, "a message"))
        raw.sendall(outgoing.read()[:10])
        begun = time.monotonic()
        message = b""
        while not message:
            incoming.write(raw.recv(1 << 16))
            try:
                message = secure.read(1 << 16)
            except ssl.SSLWantReadError:
                pass
        assert 0.5 < time.monotonic() - begun < 5
        assert message.startswith(b"\x81\x04")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the program openssl is not installed")
def test_key_update(server: Server) -> None:
    """RFC 8446 4.6.3; a line that begins with K makes openssl ask for one."""
    command = [
        "openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-CAfile", certificates().authority, "-tls1_3"]
    with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0) as client:
        assert client.stdin is not None and client.stdout is not None
        try:
            received = b""

            def exchange(data: bytes, expected: bytes) -> None:
                nonlocal received
                client.stdin.write(data)  # type: ignore[union-attr]
                while expected not in received:
                    more = client.stdout.read(1 << 16)  # type: ignore[union-attr]
                    assert more, received
                    received += more
                received = b""

            exchange(b"", b"Verify return code: 0 (ok)")
            exchange(handshake("/echo", server.port), b"Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
            for number in range(3):
                exchange(b"K\n", b"KEYUPDATE")  # A line that begins so is a command.
                exchange(frame(TEXT, f"message {number}"), b"\x81\x09message %d" % number)
        finally:
            client.kill()


def test_client_certificate() -> None:
    options = ("--ca-certs", certificates().authority, "--cert-reqs", "2")
    with serve("gthread-tls", APP, *options) as server:
        with RawClient(server.port, context=client_context(certificate=True)) as client:
            client.open("/certificate")
            assert client.recv_frame() == (TEXT, b'["device@example.com"]')
        assert server.errors() == []


def test_no_client_certificate(server: Server) -> None:
    with RawClient(server.port) as client:
        client.open("/certificate")
        assert client.recv_frame() == (TEXT, b"null")
        assert client.recv_frame() == (CLOSE, b"\x03\xe8")


@pytest.mark.parametrize(("kind", "number"), [("gthread-tls", signal.SIGTERM), ("werkzeug-tls", signal.SIGINT)])
def test_stop(kind: str, number: int) -> None:
    """Clients get their Close, and after it the end of TLS; RawClient takes another end for an error."""
    with serve(kind, "apps.echo:app") as server:
        clients = [RawClient(server.port).open() for _ in range(20)]
        server.signal(number)
        for client in clients:
            with client:
                assert client.recv_frame() == (CLOSE, b"\x03\xe9")
                client.send(frame(CLOSE, b"\x03\xe9"))
                assert client.recv_rest() == b""
        server.process.wait(10)
        assert server.errors() == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gthread-tls", "werkzeug-tls"])
def test_many_upgrades(kind: str) -> None:
    with serve(kind, "apps.echo:app") as server:
        with RawClient(server.port) as first:
            first.open()
        for _ in range(5):
            server.get()
        wait_until(lambda: server.stats()["open"] == 0)
        before, failed = server.descriptors(), []

        def work() -> None:
            try:
                for number in range(50):
                    with RawClient(server.port, timeout=30) as client:
                        client.open().send(frame(TEXT, str(number)))
                        assert client.recv_frame() == (TEXT, str(number).encode())
            except BaseException as error:
                failed.append(repr(error))

        workers = [threading.Thread(target=work) for _ in range(12)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert failed == []
        wait_until(lambda: server.stats()["open"] == 0)
        wait_until(lambda: server.descriptors() <= before + 1)
        wait_until(lambda: server.access("/echo", 101) == 601)
        wait_until(lambda: server.stats()["nr_conns"] in (1, None))
        assert server.errors() == []


@pytest.mark.slow
def test_http2_on_the_same_port() -> None:
    """It goes on for pages, and a handshake by it is told why not."""
    pytest.importorskip("h2")
    httpx = pytest.importorskip("httpx")
    with serve("gthread-tls", "apps.echo:app", "--http-protocols", "h2,h1") as server:
        with httpx.Client(http2=True, verify=client_context()) as client:
            response = client.get(server.url("/any"), headers={
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"})
            assert response.http_version == "HTTP/2"
            assert (response.status_code, response.headers["Wsthread-Refused"]) == (400, "http-version")
        with RawClient(server.port) as plain:
            plain.open().send(frame(TEXT, "a"))
            assert plain.recv_frame() == (TEXT, b"a")
        assert server.errors() == []
