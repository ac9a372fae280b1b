"""The transport over a server's TLS session, with a client in the same process."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from certificates import certificates, client_context, server_context
from peer import TIMEOUT

from wsthread.detach import Detached
from wsthread.servers.in_process import SOCKET_KEY
from wsthread.tls import TlsTransport, certificate_of


class Pair(NamedTuple):
    """A transport, the client of it, and what the server has left.

    Attributes:
        transport: ours.
        peer: the client, who sees an end without close_notify as an error.
        server: the server's socket, which leads to the dummy.
        drain: the other end of the dummy.
    """

    transport: TlsTransport
    peer: ssl.SSLSocket
    server: ssl.SSLSocket
    drain: socket.socket


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def secured(
    version: ssl.TLSVersion | None = None, *, certificate: bool = False, buffer: int | None = None,
) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Return the server's and the client's end of a TLS connection."""
    context = server_context()
    if certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates().authority)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as undo:
        raw = undo.enter_context(socket.socket())
        if buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        raw.settimeout(TIMEOUT)
        raw.connect(listener.getsockname())
        accepted, _ = listener.accept()
        undo.enter_context(accepted)
        if buffer is not None:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        accepted.settimeout(TIMEOUT)
        found: list[ssl.SSLSocket] = []
        thread = threading.Thread(target=lambda: found.append(context.wrap_socket(accepted, server_side=True)))
        thread.start()
        client = client_context(version, certificate).wrap_socket(
            raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
        thread.join(TIMEOUT)
        undo.pop_all()
    return found[0], client


@contextlib.contextmanager
def opened(version: ssl.TLSVersion | None = None, *, buffer: int | None = None) -> Iterator[Pair]:
    server, peer = secured(version, buffer=buffer)
    dummy, drain = socket.socketpair()
    transport = TlsTransport(server, dummy)
    with peer, drain:
        try:
            yield Pair(transport, peer, server, drain)
        finally:
            transport.close()
            server.close()


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with opened(request.param) as pair:
        yield pair


def read_all(peer: ssl.SSLSocket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        parts += peer.recv(1 << 16)
    return bytes(parts)


def test_reading(pair: Pair) -> None:
    transport, peer = pair[:2]
    assert transport.recv_now(10) is None
    peer.sendall(b"abc")
    assert transport.recv(2) == b"ab"
    assert transport.wait(readable=True, timeout=0)  # It is decrypted already, and poll() does not know of it.
    buffer = bytearray(b"....")
    assert transport.recv_into(memoryview(buffer)) == 1
    assert buffer == b"c..."
    assert transport.recv_into_now(memoryview(buffer)) is None
    assert not transport.wait(readable=True, timeout=0)


def test_reading_much(pair: Pair) -> None:
    transport, peer = pair[:2]
    data = random.Random(1).randbytes(300_000)
    thread = threading.Thread(target=peer.sendall, args=(data,))
    thread.start()
    received = bytearray()
    while len(received) < len(data):
        received += transport.recv(1 << 17)
    thread.join(TIMEOUT)
    assert received == data


def test_writing(pair: Pair) -> None:
    transport, peer = pair[:2]
    assert transport.send(b"ab") == 2
    assert transport.send(memoryview(b"cd")) == 2
    assert transport.send_both(b"e", b"f") == 2
    assert transport.send(b"") == 0
    assert read_all(peer, 6) == b"abcdef"


@pytest.mark.parametrize("size", [16381, 16382, 16383, 16384, 40_000])
def test_writing_two_pieces(pair: Pair, size: int) -> None:
    transport, peer = pair[:2]
    payload = os.urandom(size)
    assert transport.send_both(b"he", payload) == 2 + size
    assert read_all(peer, 2 + size) == b"he" + payload


@pytest.mark.parametrize("size", [2, 100, 5000, 16385, 100_000])
def test_a_record_that_was_begun(size: int) -> None:
    """Whatever comes next, the peer gets what the transport said to have sent, and then the rest of it."""
    with opened(buffer=1 << 14) as (transport, peer, _, _):
        expected = bytearray()
        rest = b""
        generator = random.Random(size)
        while not rest:
            message = generator.randbytes(size)
            sent = transport.send(message)
            expected += message[:sent]
            rest = message[sent:]
        assert len(rest) < size  # So it is not dropped.
        assert transport.send(rest) == 0
        received = bytearray()
        thread = threading.Thread(target=lambda: received.extend(read_all(peer, len(expected) + len(rest) + 4)))
        thread.start()
        more = rest + b"next"
        expected += more
        while more:
            assert transport.wait(writable=True, timeout=TIMEOUT)
            more = more[transport.send(more):]
        thread.join(TIMEOUT)
        assert received == expected


def test_half_a_record() -> None:
    """There is something to be read, and yet there is nothing."""
    server, peer = secured()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer.close()
    server.close()
    context = client_context()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as raw:
        accepted, _ = listener.accept()
        found: list[ssl.SSLSocket] = []
        thread = threading.Thread(
            target=lambda: found.append(server_context().wrap_socket(accepted, server_side=True)))
        thread.start()
        client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                incoming.write(raw.recv(1 << 16))
        raw.sendall(outgoing.read())
        thread.join(TIMEOUT)
        dummy, drain = socket.socketpair()
        transport = TlsTransport(found[0], dummy)
        with drain, contextlib.closing(transport), found[0]:
            client.write(b"a message")
            record = outgoing.read()
            raw.sendall(record[:10])
            assert transport.wait(readable=True, timeout=TIMEOUT)
            assert transport.recv_now(99) is None
            assert not transport.wait(readable=True, timeout=0.05)
            raw.sendall(record[10:])
            assert transport.recv(99) == b"a message"


@pytest.mark.parametrize("end", ["shutdown", "end_sending"])
def test_the_peer_sees_no_attack(pair: Pair, end: str) -> None:
    """Its end of file is TLS' own, behind all that was sent; without close_notify this peer raises."""
    transport, peer = pair[:2]
    transport.send(b"last words")
    getattr(transport, end)()
    assert peer.recv(99) == b"last words"
    assert peer.recv(99) == b""
    assert transport.send(b"") == 0
    transport.close()


def test_ending_one_direction(pair: Pair) -> None:
    transport, peer = pair[:2]
    transport.end_sending()
    assert peer.recv(1) == b""
    peer.sendall(b"a")
    assert transport.recv(99)  # It is not decrypted any more.
    peer.close()
    while transport.recv(1 << 16):
        pass


def test_the_end_of_the_peer(pair: Pair) -> None:
    transport, peer = pair[:2]
    peer.settimeout(0)
    with contextlib.suppress(ssl.SSLWantReadError):
        peer.unwrap()
    assert transport.recv(10) == b""
    assert transport.recv_now(10) == b""
    assert transport.recv_into_now(memoryview(bytearray(4))) == 0


def test_a_connection_that_was_reset(pair: Pair) -> None:
    transport, peer = pair[:2]
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    assert transport.wait(readable=True, timeout=TIMEOUT)
    with contextlib.suppress(OSError):  # OpenSSL may say that it is an EOF.
        assert transport.recv_now(10) == b""
    with pytest.raises(OSError):
        while True:
            transport.send(bytes(1 << 16))
    transport.shutdown()
    transport.close()


def test_nothing_is_written_past_tls(pair: Pair) -> None:
    """The functions in C get no descriptor."""
    assert pair.transport.raw_descriptor == -1
    assert pair.transport.fileno() >= 0


def test_closing(pair: Pair) -> None:
    transport, peer = pair[:2]
    peer.sendall(bytes(1000))
    assert transport.wait(readable=True, timeout=TIMEOUT)
    transport.shutdown()
    transport.close()
    transport.close()
    assert transport.fileno() == -1
    assert peer.recv(1) == b""
    assert transport.wait(readable=True, timeout=0)
    assert transport.is_hung_up()
    with pytest.raises(OSError):
        transport.recv_now(1)
    with pytest.raises(OSError):
        transport.send(b"a")


def test_waking_a_reader(pair: Pair) -> None:
    found: list[object] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            found.append(pair.transport.recv(10))

    thread = threading.Thread(target=read)
    thread.start()
    pair.transport.shutdown()
    thread.join(TIMEOUT)
    assert not thread.is_alive() and found in ([], [b""])


def test_a_reader_and_a_writer(pair: Pair) -> None:
    transport, peer = pair[:2]
    size = 4 << 20
    data = random.Random(2).randbytes(size)
    received, echoed = bytearray(), bytearray()

    def send() -> None:
        view = memoryview(data)
        while view:
            sent = transport.send(view[:70_000])
            view = view[sent:]
            if not sent:
                transport.wait(writable=True, timeout=TIMEOUT)

    def read() -> None:
        while len(received) < size:
            received.extend(transport.recv(1 << 16))

    def read_as_peer() -> None:
        echoed.extend(read_all(peer_reader, size))

    # The peer is one thread per direction, too; Python's lock-free SSL object would not stand that, so it takes turns.
    peer_reader = peer
    threads = [threading.Thread(target=target) for target in (send, read)]
    for thread in threads:
        thread.start()
    sent = 0
    peer.settimeout(TIMEOUT)
    while sent < size or len(echoed) < size:
        if sent < size:
            peer.sendall(data[sent:sent + 10_000])
            sent += 10_000
        if len(echoed) < size:
            echoed.extend(peer.recv(1 << 14))
    for thread in threads:
        thread.join(TIMEOUT)
    assert received == data and echoed == data


# What the server has left


def test_the_server_goes_on_with_the_dummy(pair: Pair) -> None:
    server, drain, transport = pair.server, pair.drain, pair.transport
    number = transport.fileno()
    assert server.fileno() not in (-1, number)
    server.sendall(b"the server's 101")
    assert server.send(b"!") == server.write(b"!") == 1
    assert drain.recv(99) == b"the server's 101!!"
    drain.sendall(b"abcd")
    buffer = bytearray(1)
    assert (server.recv(1), server.recv_into(buffer), server.read(1)) == (b"a", 1, b"c")
    assert [server.read(1, buffer), buffer] == [1, b"d"]
    assert server.pending() == 0
    server.settimeout(5)
    assert server.gettimeout() == 5
    server.setblocking(True)
    assert server.gettimeout() is None
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.unwrap()
    with open(__file__, "rb") as file:
        assert server.sendfile(file) > 0
    server.shutdown(socket.SHUT_WR)
    server.close()
    assert server.fileno() == -1
    pair.peer.sendall(b"a frame")
    assert transport.recv(99) == b"a frame"
    assert transport.fileno() == number


def test_the_number_of_the_dummy(pair: Pair) -> None:
    os.close(pair.server.detach())
    assert pair.server.fileno() == -1
    pair.transport.send(b"a")
    assert pair.peer.recv(9) == b"a"


def test_detaching() -> None:
    server, peer = secured()
    with peer, server.makefile("rb") as file:
        peer.sendall(b"GET / HTTP/1.1\r\n\r\na frame")
        assert server.recv(18) == b"GET / HTTP/1.1\r\n\r\n"
        detached = Detached({SOCKET_KEY: server})
        with contextlib.closing(detached.transport):
            assert detached.transport.recv(99) == b"a frame"  # Was decrypted before.
            server.sendall(b"the server's 101")
            detached.release()
            assert file.read() == b""
            server.close()
            detached.transport.send(b"ours")
            assert peer.recv(99) == b"ours"


def test_the_copy_of_a_fork_says_nothing() -> None:
    with opened() as (transport, peer, _, _):
        number = os.dup(transport.fileno())  # The parent's.
        try:
            transport.close_copy()
            peer.settimeout(0.05)
            with pytest.raises(TimeoutError):
                peer.recv(1)
        finally:
            os.close(number)


@pytest.mark.parametrize("certificate", [True, False])
def test_client_certificate(certificate: bool) -> None:
    server, peer = secured(certificate=certificate)
    with server, peer:
        found = certificate_of(server)
        if certificate:
            assert found is not None and ("email", "device@example.com") in found["subjectAltName"]
        else:
            assert found is None
    assert certificate_of(7) is None
