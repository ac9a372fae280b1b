"""Broadcasts: groups, slow peers and what is done about them, compression of many kinds."""

from __future__ import annotations

import logging
import random
import select
import socket
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from peer import TIMEOUT, Connect, Peer, Recorder, connect, members, sender_of, transport_of
from servers import wait_until
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from wsthread import Broadcast, Connection, Deflate, ListenableManager, Manager, Opcode, State
from wsthread.connection import link_of
from wsthread.manager import hub_of
from wsthread.options import Overflow
from wsthread.snapshot import Snapshot
from wsthread.transport import Transport
from wsthread.wire.deflate import Agreement

__all__ = ["connect"]

KIB = 1 << 10
MANY = 100  # More messages of 16 KiB than the kernel takes for a peer that reads nothing.


def numbered(number: int, size: int = 16 * KIB) -> bytes:
    """Return a message that tells its number and that nothing of it is missing."""
    return number.to_bytes(4, "big") * (size // 4)


def read_numbers(peer: Peer, last: int) -> list[int]:
    """Read numbered messages up to the last one, and return their numbers."""
    numbers: list[int] = []
    while not numbers or numbers[-1] != last:
        opcode, payload = peer.read()
        assert opcode == Opcode.BINARY, (opcode, payload[:20])
        numbers.append(int.from_bytes(payload[:4], "big"))
        assert payload == numbered(numbers[-1], len(payload))
    return numbers


# Groups


def test_broadcast_to_groups(connect: Connect) -> None:
    manager = ListenableManager()
    (ada, ada_peer), (bob, bob_peer), (eve, eve_peer) = members(manager, connect, 3)
    ada.join("red")
    bob.join("red")
    bob.join("blue")
    eve.join("blue")
    assert bob.groups == {"red", "blue"}
    assert manager.broadcast("to red", to="red") == Broadcast(sent=2, queued=0, dropped=0, failed=0)
    assert manager.broadcast("to blue", to=["blue"]).sent == 2
    assert manager.broadcast("to both", to=("red", "blue")).sent == 3  # Bob gets it once.
    assert manager.broadcast("to nobody", to="green") == (0, 0, 0, 0)
    assert manager.broadcast("to no group", to=[]).sent == 0
    bob.leave("red")
    assert manager.broadcast("to red again", to="red").sent == 1
    assert manager.broadcast("all").sent == 3
    assert [ada_peer.read()[1] for _ in range(4)] == [b"to red", b"to both", b"to red again", b"all"]
    assert [bob_peer.read()[1] for _ in range(4)] == [b"to red", b"to blue", b"to both", b"all"]
    assert [eve_peer.read()[1] for _ in range(3)] == [b"to blue", b"to both", b"all"]


def test_exclude(connect: Connect) -> None:
    manager = ListenableManager()
    (ada, ada_peer), (bob, bob_peer), (eve, eve_peer) = members(manager, connect, 3)
    assert manager.broadcast("not ada", exclude=[ada]).sent == 2
    assert manager.broadcast("not bob", exclude=bob).sent == 2
    assert manager.broadcast("only eve", exclude={ada, bob}).sent == 1
    for conn in ada, bob:
        conn.join("red")
    assert manager.broadcast("only ada", to="red", exclude=(bob, eve)).sent == 1
    assert [ada_peer.read()[1] for _ in range(2)] == [b"not bob", b"only ada"]
    assert bob_peer.read()[1] == b"not ada"
    assert [eve_peer.read()[1] for _ in range(3)] == [b"not ada", b"not bob", b"only eve"]


def test_excluding_oneself_in_a_callback(connect: Connect) -> None:
    manager = ListenableManager()
    manager.on_message = lambda conn, opcode, payload: manager.broadcast(payload, exclude=conn)
    (_, ada), (_, bob) = members(manager, connect, 2)
    for payload in b"one", b"two":
        ada.send(Opcode.TEXT, payload)
        assert bob.read() == (Opcode.TEXT, payload)
    bob.send(Opcode.TEXT, b"three")
    assert ada.read() == (Opcode.TEXT, b"three")


def test_groups_end_with_the_connection(connect: Connect) -> None:
    recorder = Recorder()
    seen: list[frozenset[str]] = []
    closed = threading.Event()

    def note(conn: Connection) -> None:
        seen.append(conn.groups)
        closed.set()

    recorder.manager.on_close = note
    (ada, ada_peer), (bob, _) = members(recorder.manager, connect, 2)
    ada.join("red")
    bob.join("red")
    ada_peer.close_frame()
    assert closed.wait(TIMEOUT)
    assert seen == [frozenset()]
    assert recorder.manager.broadcast("hi", to="red").sent == 1
    with pytest.raises(Exception, match="closed with 1000"):
        ada.join("red")
    ada.leave("red")
    assert ada.groups == frozenset()


def test_joining_in_on_connect(connect: Connect) -> None:
    manager = ListenableManager(on_connect=lambda conn: conn.join(conn.request.args["room"]))
    _, ada = connect(manager, "/ws?room=red")
    _, bob = connect(manager, "/ws?room=blue")
    wait_until(lambda: manager.broadcast("hi", to="red").sent and manager.broadcast("ho", to="blue").sent)
    assert ada.read()[1] == b"hi"
    assert bob.read()[1] == b"ho"


def test_broadcast_to_a_connection_that_broke(connect: Connect) -> None:
    recorder = Recorder()
    working, read = threading.Event(), threading.Event()

    def work(conn: Connection, opcode: Opcode, payload: str) -> None:
        working.set()
        read.wait(TIMEOUT)

    recorder.manager.on_message = work
    ((conn, peer),) = members(recorder.manager, connect, 1)
    peer.send(Opcode.TEXT, b"a")
    assert working.wait(TIMEOUT)
    peer.reset()
    assert transport_of(conn).wait(readable=True, timeout=TIMEOUT)
    assert recorder.manager.broadcast("nobody gets it") == Broadcast(sent=0, queued=0, dropped=0, failed=1)
    read.set()
    recorder.wait_closed()


def test_get(connect: Connect) -> None:
    recorder = Recorder()
    ((conn, peer),) = members(recorder.manager, connect, 1)
    assert recorder.manager.get(conn.id) is conn
    assert recorder.manager.get("nobody") is None
    peer.close_frame()
    recorder.wait_closed()
    assert recorder.manager.get(conn.id) is None


def test_close_where(connect: Connect) -> None:
    manager = ListenableManager()
    pairs = members(manager, connect, 4)
    for number, (conn, _) in enumerate(pairs):
        conn.context = number
    assert manager.close_where(lambda conn: conn.context % 2 == 1, 4001, "odd") == 2
    for number, (conn, peer) in enumerate(pairs):
        if number % 2:
            assert peer.read() == (Opcode.CLOSE, b"\x0f\xa1odd")
            peer.close_frame(4001)
        else:
            assert conn.state is State.OPEN
    wait_until(lambda: len(manager.connections) == 2)
    assert manager.close_where(lambda conn: False) == 0
    for wrong in (1006, ""), (1000, "x" * 124):
        with pytest.raises(ValueError):
            manager.close_where(lambda conn: False, *wrong)

    def fail(conn: Connection) -> bool:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        manager.close_where(fail)
    assert len(manager.connections) == 2


def test_close_where_from_a_callback_that_is_meant_too(connect: Connect) -> None:
    manager = ListenableManager()
    manager.on_message = lambda conn, opcode, payload: manager.close_where(lambda conn: True, 4000)
    (_, ada), (_, bob) = members(manager, connect, 2)
    ada.send(Opcode.TEXT, b"all out")
    assert (ada.read_close(), bob.read_close()) == (4000, 4000)


# Slow peers. A fast one is there each time, and gets everything.


@pytest.fixture
def connect_local() -> Iterator[Connect]:
    """Return a function that opens a connection over a Unix socket of which the kernel holds 64 KiB, neither more
    nor less: TCP's buffers grow and shrink as they like."""
    sockets: list[socket.socket] = []

    def open_connection(manager: Manager, agreement: Agreement | None = None) -> tuple[Connection, Peer]:
        server, client = socket.socketpair()
        sockets.append(client)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
        environ = EnvironBuilder("/ws", environ_base={"REMOTE_ADDR": "127.0.0.1"}).get_environ()
        conn = hub_of(manager).prepare(Snapshot(Request(environ)), None, agreement)
        link_of(conn).open(Transport(server), b"", b"")
        return conn, Peer(client)

    yield open_connection
    for sock in sockets:
        sock.close()


class Pair:
    """A stuck peer, one that reads all at once, and a manager with a small outbox that broadcasts to both."""

    def __init__(self, connect: Connect, **options: Any) -> None:
        self.recorder = Recorder(max_outbox_size=128 * KIB, **options)
        self.manager = self.recorder.manager
        self.slow: list[Connection] = []
        self.manager.on_slow = self.slow.append
        (self.stuck, self.stuck_peer), (_, self.fast_peer) = members(self.manager, connect, 2)
        self.sums = Broadcast(0, 0, 0, 0)
        self._number = 0

    def broadcast(self, times: int) -> range:
        """Broadcast numbered messages, and see after each that the bound holds and that the fast peer got it."""
        first = self._number
        for _ in range(times):
            result = self.manager.broadcast(numbered(self._number))
            assert sum(result) == (2 if self.stuck.connected or result.dropped or result.failed else 1)
            self.sums = Broadcast(*map(sum, zip(self.sums, result)))
            assert self.stuck.queued_bytes <= 128 * KIB
            assert self.fast_peer.read() == (Opcode.BINARY, numbered(self._number))
            self._number += 1
        return range(first, self._number)

    def recover(self) -> list[int]:
        """Let the stuck peer read all, and return the numbers that came."""
        numbers: list[int] = []
        while self._readable() or self.stuck.queued_bytes:
            if not self._readable():
                continue  # It was just sent.
            opcode, payload = self.stuck_peer.read()
            assert opcode == Opcode.BINARY
            numbers.append(int.from_bytes(payload[:4], "big"))
            assert payload == numbered(numbers[-1])
        return numbers

    def _readable(self) -> bool:
        return bool(self.stuck_peer._buffer or select.select([self.stuck_peer.socket], [], [], 0.2)[0])


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
def test_dropping(connect_local: Connect, overflow: str) -> None:
    pair = Pair(connect_local, overflow=overflow)
    lost = 0
    for episode in 1, 2:
        offered = pair.broadcast(MANY)
        assert pair.slow == [pair.stuck] * episode  # Once in each episode, however much is dropped.
        assert pair.stuck.state is State.OPEN
        assert pair.manager.stats()["queued_bytes"] == pair.stuck.queued_bytes > 64 * KIB
        arrived = pair.recover()
        assert arrived == sorted(set(arrived))
        assert set(arrived) <= set(offered)
        assert arrived[0] == offered[0]
        assert (arrived[-1] == offered[-1]) is (overflow == "drop_oldest")
        lost += len(offered) - len(arrived)
        stats = pair.manager.stats()
        assert (stats["slow"], stats["messages_dropped"], stats["queued_bytes"]) == (episode, lost, 0)
        assert stats["messages_sent"] == 2 * MANY * episode - lost
    assert lost > MANY
    assert pair.sums.failed == 0
    # With drop_oldest it is another message than the one just sent that is lost.
    assert pair.sums.dropped == (lost if overflow == "drop_newest" else 0)
    assert pair.recorder.closes == []


def test_closing_a_slow_peer(connect_local: Connect, caplog: pytest.LogCaptureFixture) -> None:
    pair = Pair(connect_local, overflow="close")
    offered = pair.broadcast(MANY)
    assert pair.slow == [pair.stuck]
    assert pair.stuck.state is State.CLOSING
    assert pair.sums.dropped == 1
    assert pair.sums.failed == 0  # It has left already.
    assert pair.stuck not in pair.manager.connections
    arrived = []
    while True:
        opcode, payload = pair.stuck_peer.read()
        if opcode == Opcode.CLOSE:
            break
        arrived.append(int.from_bytes(payload[:4], "big"))
    assert payload == b"\x03\xf5too slow"  # 1013
    pair.stuck_peer.close_frame(1013)
    assert pair.recorder.wait_closed() == (1013, "")
    assert arrived == list(offered[:len(arrived)])
    stats = pair.manager.stats()
    assert stats["messages_sent"] == MANY + len(arrived)
    assert stats["messages_dropped"] == 1 + pair.sums.sent + pair.sums.queued - MANY - len(arrived)
    assert (stats["slow"], stats["closed"]) == (1, {"1013": 1})
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the peer is too slow" in caplog.text


def test_blocking_on_a_slow_peer(connect_local: Connect) -> None:
    pair = Pair(connect_local, overflow="block")
    results: list[Broadcast] = []

    def broadcast() -> None:
        for number in range(MANY):
            results.append(pair.manager.broadcast(numbered(number)))

    arrived: dict[str, list[int]] = {}

    def read(name: str, peer: Peer) -> None:
        arrived[name] = read_numbers(peer, MANY - 1)

    threads = [threading.Thread(target=broadcast), threading.Thread(target=read, args=("fast", pair.fast_peer))]
    for thread in threads:
        thread.start()
    wait_until(lambda: pair.slow)  # It is told while the broadcast waits.
    assert threads[0].is_alive()
    assert pair.stuck.queued_bytes <= 128 * KIB
    read("stuck", pair.stuck_peer)
    for thread in threads:
        thread.join(TIMEOUT)
    assert arrived == {"fast": list(range(MANY)), "stuck": list(range(MANY))}
    assert all(result.sent + result.queued == 2 for result in results)
    wait_until(lambda: pair.manager.stats()["messages_sent"] == 2 * MANY)
    stats = pair.manager.stats()
    assert stats["messages_dropped"] == 0
    assert stats["slow"] == len(pair.slow) >= 1


def test_blocking_on_a_peer_that_never_reads(connect_local: Connect) -> None:
    pair = Pair(connect_local, overflow="block", write_timeout=0.5)
    pair.broadcast(MANY)
    assert pair.slow == [pair.stuck]
    assert pair.sums.failed == 1  # That one waited for it; then it has left.
    assert pair.sums.dropped == 0
    code, reason = pair.recorder.wait_closed()
    assert code == 1006
    assert reason is not None and reason.startswith("the peer took")
    assert pair.manager.stats()["slow"] == 1


def test_a_message_larger_than_the_outbox(connect_local: Connect) -> None:
    pair = Pair(connect_local, overflow="drop_newest")
    payload = numbered(0, 1 << 20)
    assert pair.manager.broadcast(payload).queued >= 1  # Alone it may wait, or no broadcast of it would ever arrive.
    assert pair.manager.broadcast(payload).dropped >= 1
    assert pair.stuck_peer.read() == (Opcode.BINARY, payload)
    assert pair.fast_peer.read() == (Opcode.BINARY, payload)


def test_a_log_handler_may_broadcast(connect_local: Connect) -> None:
    pair = Pair(connect_local, overflow="close")

    class ToTheFast(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            pair.manager.broadcast(record.getMessage())

    handler = ToTheFast()
    logger = logging.getLogger("wsthread")
    logger.addHandler(handler)
    try:
        for _ in range(MANY):
            pair.manager.broadcast(numbered(0))
            payload = pair.fast_peer.read()[1]
            if b"too slow" in payload:
                break
    finally:
        logger.removeHandler(handler)
    assert b"too slow" in payload


def test_on_slow_may_end_the_connection(connect_local: Connect) -> None:
    pair = Pair(connect_local, overflow="drop_newest")
    pair.manager.on_slow = Connection.terminate
    pair.broadcast(MANY)
    assert pair.recorder.wait_closed() == (1006, "terminated")


def test_an_exception_in_on_slow(connect_local: Connect, caplog: pytest.LogCaptureFixture) -> None:
    pair = Pair(connect_local, overflow="drop_newest", close_timeout=0.2)

    def fail(conn: Connection) -> None:
        raise KeyError("a bug")

    pair.manager.on_slow = fail
    pair.broadcast(MANY)
    assert pair.recorder.wait_closed()[0] == 1006  # After a Close 1011 that it does not read.
    assert [repr(error) for error in pair.recorder.errors] == ["KeyError('a bug')"]
    assert pair.manager.connections != ()


def test_send_is_not_dropped(connect_local: Connect) -> None:
    pair = Pair(connect_local, overflow="drop_oldest")
    pair.broadcast(MANY // 4)
    sender = threading.Thread(target=pair.stuck.send, args=(numbered(1 << 20),))
    sender.start()
    wait_until(lambda: sender_of(pair.stuck).outbox.size > 128 * KIB or not sender.is_alive())
    for number in range(1, 40):
        pair.manager.broadcast(numbered(number))
        pair.fast_peer.read()
    arrived = pair.recover()
    sender.join(TIMEOUT)
    assert not sender.is_alive()
    assert arrived.count(1 << 20) == 1
    assert pair.manager.stats()["messages_dropped"] > 0


# Compression


class CompressedPeer:
    """The client's side of an agreement."""

    def __init__(self, peer: Peer, agreement: Agreement | None) -> None:
        self._peer = peer
        self._agreement = agreement
        self._inflater = zlib.decompressobj(-15)
        self.plain = self.compressed = 0

    def read(self) -> bytes:
        """Return the next message."""
        first = self._peer._take(1)
        self._peer._buffer[:0] = first
        opcode, payload = self._peer.read()
        assert opcode == Opcode.TEXT, (opcode, payload[:100])
        if not first[0] & 0x40:
            self.plain += 1
            return payload
        self.compressed += 1
        assert self._agreement is not None
        if not self._agreement.server_context_takeover:
            self._inflater = zlib.decompressobj(-self._agreement.server_max_window_bits)
        return self._inflater.decompress(payload + b"\0\0\xff\xff")


def agreements() -> list[Agreement | None]:
    """Return what clients and servers of several kinds agree on."""
    takeover = Deflate(threshold=100, server_context_takeover=True)
    kinds: list[tuple[Deflate, list[tuple[str, str | None]]]] = [
        (Deflate(threshold=100), []),
        (takeover, []),
        (takeover, [("server_no_context_takeover", None)]),
        (takeover, [("server_max_window_bits", "9")]),
        (Deflate(threshold=100, level=1), [("server_max_window_bits", "10")]),
    ]
    return [None, *(deflate.negotiate([("permessage-deflate", offer)]) for deflate, offer in kinds)]


def text(rng: random.Random, source: int, number: int) -> str:
    """Return a message of words that come again and others, which tells where it comes from and what it has to be."""
    words = " ".join(
        rng.choice(["apple", "pear", "plum", "öl", f"{rng.getrandbits(32):x}"]) for _ in range(rng.randrange(900)))
    return f"{source} {number} {zlib.crc32(words.encode())} {words}"


def check_text(payload: bytes) -> tuple[int, int]:
    """Return source and number of a message, which has to be whole."""
    source, number, checksum, words = payload.split(b" ", 3)
    assert zlib.crc32(words) == int(checksum)
    return int(source), int(number)


def test_all_kinds_of_compression_get_the_same(connect: Connect) -> None:
    manager = ListenableManager()
    peers = []
    for agreement in agreements():
        conn, peer = connect(manager, agreement=agreement)
        peers.append((conn, CompressedPeer(peer, agreement)))
    wait_until(lambda: len(manager.connections) == len(peers))
    rng = random.Random(1)
    for number in range(50):
        message = text(rng, 0, number)
        manager.broadcast(message)
        if number % 3:  # Its window would lack the broadcast.
            for conn, _ in peers:
                conn.send(f"sent {message}")
        for _, compressed in peers:
            assert compressed.read().decode() == message
            if number % 3:
                assert compressed.read().decode() == f"sent {message}"
    assert [compressed.compressed > 0 for _, compressed in peers] == [False] + [True] * 5


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
def test_compression_with_concurrent_sends_broadcasts_and_drops(connect_local: Connect, overflow: Overflow) -> None:
    manager = ListenableManager(overflow=overflow, max_outbox_size=16 * KIB)
    conns: list[Connection] = []
    peers: list[CompressedPeer] = []
    for agreement in agreements() * 2:
        conn, peer = connect_local(manager, agreement=agreement)
        conns.append(conn)
        peers.append(CompressedPeer(peer, agreement))
    wait_until(lambda: len(manager.connections) == len(conns))
    senders, rounds = 3, 120
    last = 1 << 20
    got: list[list[tuple[int, int]]] = [[] for _ in conns]
    errors: list[BaseException] = []
    broadcasts_done = threading.Event()

    def read(index: int) -> None:
        try:
            if index % 2:  # Late enough for drops.
                assert broadcasts_done.wait(60)
            ends = 0
            while ends < senders:
                source, number = check_text(peers[index].read())
                got[index].append((source, number))
                ends += number == last
        except BaseException as error:
            errors.append(error)

    def broadcast(source: int) -> None:
        rng = random.Random(source)
        for number in range(rounds):
            manager.broadcast(text(rng, source, number))

    def send(source: int) -> None:
        rng = random.Random(source)
        for number in range(rounds):
            for conn in conns:
                if rng.random() < 0.3:
                    conn.send(text(rng, source, number))
        for conn in conns:
            conn.send(text(rng, source, last))

    threads = [threading.Thread(target=read, args=(index,)) for index in range(len(conns))]
    threads += [threading.Thread(target=send, args=(source,)) for source in range(senders)]
    broadcasters = [threading.Thread(target=broadcast, args=(source,)) for source in range(10, 12)]
    for thread in threads + broadcasters:
        thread.start()
    for thread in broadcasters:
        thread.join(60)
    broadcasts_done.set()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)
    assert manager.stats()["messages_dropped"] > 0
    for numbers in got:
        for source in {source for source, _ in numbers}:
            ordered = [number for one, number in numbers if one == source]
            assert ordered == sorted(set(ordered))
    assert all(peer.compressed > 0 for index, peer in enumerate(peers) if index % 6)
