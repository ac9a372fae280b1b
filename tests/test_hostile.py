"""Peers that mean harm, against a real server: each gets its close code or its deadline, and nobody else notices."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clients import handshake
from peer import Peer
from servers import Server, serve, wait_until
from websockets.sync.client import connect
from wire import client_frame, client_header

from wsthread import Opcode

LIMIT = 1 << 20  # As in apps/hostile.py.
SLACK = 8 << 20  # What the process may take beyond the limit: buffers of the kernel's size, Python's arenas.


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("gthread", "apps.hostile:app") as running:
        with connect(running.url("/ws?name=warm-up", "ws"), compression=None) as client:
            client.send(os.urandom(LIMIT))
            client.recv(timeout=10)
        yield running


def attack(server: Server, name: str, extensions: str = "") -> Peer:
    """Open a connection for an attack."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    request = handshake(f"/ws?name={name}", server.port)
    if extensions:
        request = request.replace(b"\r\n\r\n", f"\r\nSec-WebSocket-Extensions: {extensions}\r\n\r\n".encode())
    sock.sendall(request)
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101")
    return Peer(sock)


def peak_memory(server: Server) -> int:
    """Return the largest resident size that the worker ever had, in bytes."""
    for line in Path(f"/proc/{server.worker()}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


def cpu_seconds(server: Server) -> float:
    """Return the processor time that the worker has used."""
    fields = Path(f"/proc/{server.worker()}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bystander:
    """Another client, which talks all the time; leaving the with block asserts that it always got its answer."""

    def __init__(self, server: Server) -> None:
        self._url = server.url("/ws?name=bystander", "ws")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self.answers = 0
        self.error: Exception | None = None

    def _talk(self) -> None:
        try:
            with connect(self._url) as client:
                while not self._stop.is_set():
                    client.send("hello")
                    assert client.recv(timeout=5) == "hello"
                    self.answers += 1
        except Exception as error:
            self.error = error

    def __enter__(self) -> Bystander:
        self._thread.start()
        wait_until(lambda: self.answers or self.error)
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert self.error is None
        assert self.answers > 0


def bomb(size: int) -> bytes:
    """Return a compressed payload that inflates to ``size`` bytes, about 1000 times as much."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(bytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]


BOMB = bomb(256 << 20)


def send_bomb(peer: Peer) -> None:
    assert len(BOMB) < LIMIT
    peer.send(Opcode.BINARY, BOMB, rsv=4)


def send_bomb_in_fragments(peer: Peer) -> None:
    for at in range(0, len(BOMB), 100):
        try:
            peer.send(Opcode.CONTINUATION if at else Opcode.BINARY, BOMB[at:at + 100], fin=False, rsv=0 if at else 4)
        except ConnectionError:
            return  # It has heard enough.


def send_endless_length(peer: Peer) -> None:
    peer.socket.sendall(client_header(Opcode.BINARY, (1 << 63) - 1) + bytes(1000))


def send_top_bit(peer: Peer) -> None:
    peer.socket.sendall(b"\x82\xff" + struct.pack("!Q", 1 << 63) + bytes(1000))


def send_endless_fragments(peer: Peer) -> None:
    fragment = bytes(10_000)
    for i in range(2 * LIMIT // len(fragment)):
        try:
            peer.send(Opcode.CONTINUATION if i else Opcode.BINARY, fragment, fin=False)
        except ConnectionError:
            return


def send_one_too_many(peer: Peer) -> None:
    peer.send(Opcode.BINARY, bytes(LIMIT + 1))


@pytest.mark.parametrize(("send", "code"), [
    (send_bomb, 1009),
    (send_bomb_in_fragments, 1009),
    (send_endless_length, 1009),
    (send_top_bit, 1002),
    (send_endless_fragments, 1009),
    (send_one_too_many, 1009),
], ids=lambda value: getattr(value, "__name__", None))
def test_too_much(server: Server, send: Callable[[Peer], None], code: int) -> None:
    before = peak_memory(server)
    with Bystander(server):
        peer = attack(server, send.__name__, "permessage-deflate")
        send(peer)
        assert peer.read_close() == code
        peer.socket.close()
    assert peak_memory(server) - before < LIMIT + SLACK
    assert server.errors() == []


@pytest.mark.parametrize("extensions", ["", "permessage-deflate"])
def test_exactly_the_limit_passes(server: Server, extensions: str) -> None:
    payload = os.urandom(LIMIT)  # It does not compress, so it is longer on the wire.
    peer = attack(server, "limit", extensions)
    if extensions:
        compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
        data = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        assert len(data) > LIMIT
        peer.send(Opcode.BINARY, data, rsv=4)
        opcode, answer = peer.read()
        assert (opcode, zlib.decompress(answer + b"\x00\x00\xff\xff\x03\x00", -15)) == (Opcode.BINARY, payload)
    else:
        peer.send(Opcode.BINARY, payload)
        assert peer.read() == (Opcode.BINARY, payload)
    peer.socket.close()


def test_a_hundred_thousand_tiny_fragments(server: Server) -> None:
    """They are put together, in time that grows with their number and not with its square."""

    def send(number: int) -> float:
        begun = cpu_seconds(server)
        peer = attack(server, "tiny")
        first, last = client_frame(Opcode.TEXT, b"a", fin=False), client_frame(Opcode.CONTINUATION, b"a")
        peer.socket.sendall(first + client_frame(Opcode.CONTINUATION, b"a", fin=False) * (number - 2) + last)
        assert peer.read() == (Opcode.TEXT, b"a" * number)
        peer.socket.close()
        return cpu_seconds(server) - begun

    before = peak_memory(server)
    few = send(10_000)
    many = send(100_000)
    assert many < 40 * max(few, 0.05)  # Linear is 10 times as much, a square 100 times.
    assert peak_memory(server) - before < LIMIT + SLACK


def test_a_flood_of_pings(server: Server) -> None:
    """A peer that reads no answers costs no memory; it goes on as soon as it reads."""
    before = peak_memory(server)
    flood = client_frame(Opcode.PING, b"x" * 125) * 1000
    with Bystander(server):
        peer = attack(server, "flood")
        for _ in range(200):  # 26 MB.
            peer.socket.sendall(flood)
        peer.socket.close()
    assert peak_memory(server) - before < LIMIT + SLACK
    assert server.errors() == []


def test_one_byte_at_a_time(server: Server) -> None:
    """The deadline for a message holds for a peer that is always just about to finish one."""
    with Bystander(server):
        peer = attack(server, "drip")
        begun = time.monotonic()
        for byte in client_frame(Opcode.TEXT, b"x" * 100):
            try:
                peer.socket.sendall(bytes([byte]))
                peer.socket.settimeout(0.2)
                peer._buffer += peer.socket.recv(4096)
                break
            except TimeoutError:
                continue
        peer.socket.settimeout(10)
        assert peer.read_close() == 1001
        assert time.monotonic() - begun >= 3  # read_timeout of apps/hostile.py.
        peer.socket.close()
