"""What one peer, one callback or one handler of the log may cost the others: at most what is written here.

Each test is an attack that once worked. They go over TCP, and by the public names but for a few.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from clients import RawClient
from servers import serve_here, wait_until
from wire import BINARY, CLOSE, CONTINUATION, PING, RSV1, TEXT, client_close, client_frame, client_header, deflated

from wsthread import Connection, Deflate, ListenableManager, SimpleManager, lifecycle

TIMEOUT = 10.0
MEBIBYTE = 1 << 20
SMALL = 4096  # Bytes of a kernel's buffer, so that a peer that does not read is slow soon.
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"
EMPTY_PING = client_frame(PING)


class Rhythm:
    """What the housekeeper calls each tick, to see how long it is busy with other things, in CPU time."""

    shutdown_timeout = 0.0

    def __init__(self) -> None:
        self._last: float | None = None
        self.longest = 0.0

    def check(self, now: float) -> None:
        """Note the time since the last call."""
        now = time.thread_time()
        if self._last is not None:
            self.longest = max(self.longest, now - self._last)
        self._last = now

    def begin_shutdown(self) -> float:
        """Do nothing."""
        return 0.0

    def finish_shutdown(self, timeout: float) -> bool:
        """Do nothing."""
        return True

    def reset_after_fork(self) -> None:
        """Do nothing."""

    def dump(self) -> str:
        """Do nothing."""
        return ""


@pytest.fixture
def rhythm() -> Rhythm:
    """Return what measures the housekeeper."""
    rhythm = Rhythm()
    lifecycle.enter(rhythm, 0.02)
    return rhythm


def resident() -> int:
    """Return how many bytes of memory this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def timed(function: Callable[[], object]) -> float:
    """Return how many seconds a call took."""
    begun = time.monotonic()
    function()
    return time.monotonic() - begun


def cpu_time(function: Callable[[], object]) -> float:
    """Return how many seconds of CPU a call took in its thread."""
    begun = time.thread_time()
    function()
    return time.thread_time() - begun


def only(manager: ListenableManager | SimpleManager) -> Connection:
    """Wait for the one connection of a manager."""
    wait_until(lambda: len(manager.connections) == 1)
    return manager.connections[0]


def deaf(port: int, *headers: str) -> RawClient:
    """Open a connection of which the kernel holds little, and nobody reads it."""
    return RawClient(port, receive_buffer=SMALL).open("/ws", *headers)


class Awkward(logging.Handler):
    """A handler that does what it is told to."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__()
        self._action = action

    def handle(self, record: logging.LogRecord) -> bool:
        """Do it; unlike emit() nothing of logging guards it, as nothing guards a filter."""
        self._action()
        return True


def fail_to_log() -> None:
    """Raise."""
    raise LookupError("working outside of a request context")


@contextmanager
def logging_to(action: Callable[[], object]) -> Iterator[None]:
    """Give the library's logger a handler."""
    logger, handler = logging.getLogger("wsthread"), Awkward(action)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        logger.manager._clear_cache()  # type: ignore[attr-defined]


# 1. What waits for a peer that does not read


@pytest.mark.parametrize("overflow", ["close", "drop_oldest"])
def test_empty_pings_of_a_peer_that_does_not_read(rhythm: Rhythm, overflow: Any) -> None:
    """Each wants a Pong of 2 bytes, and is not to cost more than 2 bytes, in memory or time."""
    manager = ListenableManager(max_control_rate=None, overflow=overflow, ping_interval=None)
    with serve_here(manager, send_buffer=SMALL) as port, deaf(port) as peer:
        conn = only(manager)
        before, sent = resident(), 0
        while conn.queued_bytes < MEBIBYTE * 9 // 10 and sent < 1_000_000:
            peer.send(EMPTY_PING * 10_000)
            sent += 10_000
        wait_until(lambda: conn.queued_bytes > MEBIBYTE * 8 // 10)
        assert resident() - before < 8 * MEBIBYTE
        assert max(cpu_time(lambda: manager.broadcast("hello")) for _ in range(5)) < 0.2
        begun = time.monotonic()
        while conn.queued_bytes and not conn.closed and time.monotonic() < begun + TIMEOUT:
            assert peer.socket.recv(1 << 20)
        assert rhythm.longest < 0.5
    wait_until(lambda: manager.stats()["threads"] == 0)


def test_tiny_broadcasts_to_peers_that_do_not_read() -> None:
    """What counts is the memory that a message takes, not its bytes."""
    manager = ListenableManager(overflow="drop_newest")
    peers = 4
    with serve_here(manager, send_buffer=SMALL) as port:
        clients = [deaf(port) for _ in range(peers)]
        wait_until(lambda: len(manager.connections) == peers)
        before = resident()
        for _ in range(40_000):
            manager.broadcast("tick")
        assert resident() - before < peers * MEBIBYTE * 3 // 2
        assert manager.stats()["messages_dropped"] > 0
        for client in clients:
            client.reset()


@pytest.mark.parametrize("overflow", ["close", "drop_oldest", "drop_newest"])
def test_an_overflow_takes_no_time(overflow: Any) -> None:
    """Nor do many of them."""
    manager = ListenableManager(overflow=overflow)
    with serve_here(manager, send_buffer=SMALL) as port:
        clients = [deaf(port) for _ in range(4)]
        wait_until(lambda: len(manager.connections) == 4)
        assert max(cpu_time(lambda: manager.broadcast("tick")) for _ in range(10_000)) < 0.2
        for client in clients:
            client.reset()


# 2. Memory is given back, without the cyclic garbage collector

KINDS = {
    "Protocol", "MessageReader", "FrameParser", "Inflater", "Deflater", "_Collector", "_TextCollector", "Outbox",
    "Inbox", "Response", "Request", "_Switch", "Link", "Sender", "Receiver", "Connection", "Transport", "Deadlines",
}
#: What there may be of a connection that the application keeps: nothing that grows with what was sent.
LIGHT = {
    "Connection", "Link", "Sender", "Receiver", "Protocol", "MessageReader", "FrameParser", "Outbox", "Deadlines",
    "Request",
}


def census() -> Counter[str]:
    """Count the objects of connections, as far as the collector knows them, and all of those that may hold others."""
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one).__name__ in KINDS)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turn the cyclic garbage collector off, and the log of pytest, which keeps what lines are about."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    with logging_to(lambda: None):
        yield
    if was_on:
        gc.enable()


def close_plain(client: RawClient) -> None:
    """Send a message and say goodbye."""
    client.send(client_frame(TEXT, b"hello") + client_close(1000))
    client.recv_rest()


def close_broken(client: RawClient) -> None:
    """Break the protocol."""
    client.send(client_frame(TEXT, b"\xff"))
    client.recv_rest()


def close_within_a_message(client: RawClient) -> None:
    """Reset the connection within a large message."""
    client.send(client_frame(BINARY, bytes(70_000), fin=False))
    client.reset()


def close_after_a_bomb(client: RawClient) -> None:
    """Let a fragment be inflated, and leave."""
    client.send(client_frame(BINARY, deflated(bytes(500_000)), fin=False, rsv=RSV1))
    client.reset()


def close_compressing(client: RawClient) -> None:
    """Get a compressed echo and say goodbye."""
    client.send(client_frame(TEXT, deflated(b"hello" * 500), rsv=RSV1) + client_close(1000))
    client.recv_rest()


@pytest.mark.parametrize(("end", "headers"), [
    (close_plain, ()),
    (close_plain, (DEFLATE,)),
    (close_compressing, (DEFLATE,)),
    (close_broken, ()),
    (close_broken, (DEFLATE,)),
    (close_within_a_message, ()),
    (close_after_a_bomb, (DEFLATE,)),
    (RawClient.reset, ()),
], ids=lambda value: getattr(value, "__name__", None) or ("deflate" if value else "plain"))
@pytest.mark.parametrize("keeps", [False, True], ids=["", "kept"])
def test_memory_comes_back(
    no_collector: None, end: Callable[[RawClient], None], headers: tuple[str, ...], keeps: bool,
) -> None:
    kept: list[Connection] = []
    manager = ListenableManager(
        on_connect=lambda conn: kept.append(conn) if keeps else None,
        on_message=lambda conn, opcode, payload: conn.send(payload))
    both = Deflate(server_context_takeover=True, client_context_takeover=True)
    with serve_here(manager, compression=both) as port:

        def once() -> None:
            client = RawClient(port).open("/ws", *headers)
            end(client)
            client.socket.close()

        once()
        wait_until(lambda: manager.stats()["threads"] == 0)
        before = census()
        for _ in range(100):
            once()
        wait_until(lambda: manager.stats()["threads"] == 0)
        wait_until(lambda: max((census() - before).values(), default=0) < 10 or keeps)
        left = census() - before
    heavy = {name: number for name, number in left.items() if number >= 10 and not (keeps and name in LIGHT)}
    assert heavy == {}


def test_memory_of_refused_handshakes_comes_back(no_collector: None) -> None:
    """Those of which nothing was prepared, and those that were refused at the last moment."""
    manager = ListenableManager(max_connections=1)
    with serve_here(manager, origins="https://example.com") as port:

        def ask(*headers: str) -> None:
            with RawClient(port) as client:
                client.send(_handshake(port, *headers))
                assert not client.recv_head().startswith(b"HTTP/1.1 101 ")

        with RawClient(port).open("/ws"):
            wait_until(lambda: manager.stats()["threads"] == 1)
            ask("Origin: http://evil.example")
            ask()
            before = census()
            for _ in range(50):
                ask("Origin: http://evil.example")
                ask()
            wait_until(lambda: max((census() - before).values(), default=0) < 10)


def _handshake(port: int, *headers: str) -> bytes:
    return "\r\n".join([
        "GET /ws HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade, close",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", *headers, "", ""]).encode()


def test_memory_of_a_shutdown_comes_back(no_collector: None) -> None:
    before = census()
    manager: ListenableManager | None = ListenableManager()
    assert manager is not None
    with serve_here(manager) as port:
        clients = [RawClient(port).open("/ws") for _ in range(100)]
        wait_until(lambda: manager is not None and len(manager.connections) == 100)
        for client in clients:
            client.send(client_frame(BINARY, bytes(5000), fin=False))
        closer = threading.Thread(target=manager.shutdown)
        closer.start()
        for client in clients:
            assert client.recv_frame() == (CLOSE, b"\x03\xe9")  # 1001
            client.send(client_close(1001))
            client.recv_rest()
            client.socket.close()
        closer.join(TIMEOUT)
        del closer
        assert manager.stats()["threads"] == 0
    wait_until(lambda: max((census() - before).values(), default=0) < 10)


# 3. Handlers of the log


@pytest.fixture(params=["raises", "exits", "blocks"])
def awkward_log(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Let the log raise, end the thread, or block."""
    go_on = threading.Event()

    def leave() -> None:
        raise SystemExit

    action = {"raises": fail_to_log, "exits": leave, "blocks": lambda: go_on.wait(60)}[request.param]
    with logging_to(action):
        yield
        go_on.set()
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "wsthread-log"])


def test_no_log_handler_changes_an_end(awkward_log: None) -> None:
    codes: list[int | None] = []

    def received(conn: Connection, opcode: object, payload: str) -> None:
        raise KeyError("a bug")

    manager = ListenableManager(on_message=received, on_close=lambda conn: codes.append(conn.close_code))
    with serve_here(manager) as port:
        for data, answer in (
            (client_close(4000), b"\x88\x02\x0f\xa0"),
            (client_frame(TEXT, b"\xff"), b"\x88\x13\x03\xeftext is not UTF-8"),
            (client_frame(TEXT, b"go"), b"\x88\x02\x03\xf3"),
        ):
            with RawClient(port).open("/ws") as client:
                client.send(data)
                assert client.recv(len(answer)) == answer
                if answer == b"\x88\x02\x03\xf3":
                    client.send(client_close(1011))
                client.recv_rest()
    wait_until(lambda: sorted(code or 0 for code in codes) == [1007, 1011, 4000])


def test_no_log_handler_stops_a_broadcast(awkward_log: None) -> None:
    slow: list[Connection] = []
    manager = ListenableManager(on_slow=slow.append, max_outbox_size=20_000)
    with serve_here(manager, send_buffer=SMALL) as port:
        peers = [deaf(port) for _ in range(3)]
        wait_until(lambda: len(manager.connections) == 3)
        with RawClient(port).open("/ws") as reader:
            wait_until(lambda: len(manager.connections) == 4)
            durations = []
            for _ in range(100):
                durations.append(timed(lambda: manager.broadcast(bytes(10_000))))
                reader.recv(4 + 10_000)
            assert sorted(durations)[-2] < 0.5  # One may have met a moment in which the machine did something else.
        assert len(slow) == 3
        for peer in peers:
            peer.reset()


def test_a_log_that_blocks_takes_few_threads() -> None:
    """Peers make us log as often as they like."""
    go_on = threading.Event()
    manager = ListenableManager()
    with logging_to(lambda: go_on.wait(60)), serve_here(manager) as port:
        try:
            threads = threading.active_count()
            clients = [RawClient(port).open("/ws") for _ in range(50)]
            for client in clients:
                with client:
                    client.send(client_frame(TEXT, b"\xff"))
                    client.recv_rest()
            wait_until(lambda: sum(manager.stats()["closed"].values()) == 50)
            assert len([one for one in threading.enumerate() if one.name == "wsthread-log"]) <= 1
        finally:
            go_on.set()
        wait_until(lambda: threading.active_count() <= threads + 2)


def test_the_line_about_a_slow_peer_tells_what_waited(caplog: pytest.LogCaptureFixture) -> None:
    manager = ListenableManager(max_outbox_size=20_000)
    with serve_here(manager, send_buffer=SMALL) as port, deaf(port):
        only(manager)
        while manager.broadcast(bytes(5000)):
            pass
        wait_until(lambda: "too slow" in caplog.text)
        line, = [record.getMessage() for record in caplog.records if "too slow" in record.getMessage()]
        assert int(line.partition(" bytes waited")[0].rpartition(" ")[2]) > 5000


# 4. Our own data leaves


def test_close_timeout_begins_when_the_close_has_left() -> None:
    size, seconds, codes = 16 * MEBIBYTE, 1.5, []

    def received(conn: Connection, opcode: object, payload: str) -> None:
        manager.broadcast(bytes(size))
        conn.close(1000)

    manager = ListenableManager(
        on_message=received, on_close=lambda conn: codes.append(conn.close_code), close_timeout=0.5)
    with serve_here(manager, send_buffer=MEBIBYTE // 8) as port:
        with RawClient(port, receive_buffer=MEBIBYTE // 4).open("/ws") as client:
            client.send(client_frame(TEXT, b"go"))
            client.recv(10)
            got, begun = 0, time.monotonic()
            while got < size:  # It reads steadily.
                got += len(client.recv(1 << 16))
                wait = begun + seconds * got / size - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
            assert client.recv_frame() == (CLOSE, b"\x03\xe8")
            client.send(client_close(1000))
            wait_until(lambda: codes == [1000])


def test_close_timeout_holds_for_a_peer_that_takes_nothing() -> None:
    manager = ListenableManager(close_timeout=0.5)
    with serve_here(manager, send_buffer=SMALL) as port, deaf(port):
        conn = only(manager)
        manager.broadcast(bytes(MEBIBYTE))
        assert conn.queued_bytes
        conn.close(1000)
        assert timed(lambda: wait_until(lambda: conn.closed)) < 3
        assert conn.close_code == 1006


# 5. A broadcast does not wait for the compression of another thread


@pytest.mark.parametrize("takeover", [False, True])
def test_a_broadcast_beside_a_long_compression(rhythm: Rhythm, takeover: bool) -> None:
    size = 20 * MEBIBYTE  # 0.7 s of it.
    manager = ListenableManager(ping_interval=None, max_outbox_size=100 * MEBIBYTE)
    deflate = Deflate(level=9, server_context_takeover=takeover)
    payload = os.urandom(MEBIBYTE // 2).hex() * (size // MEBIBYTE)
    with serve_here(manager, compression=deflate) as port, RawClient(port, timeout=60).open("/ws", DEFLATE) as client:
        conn = only(manager)
        sender = threading.Thread(target=conn.send, args=(payload,))
        taken = _Reader(client)
        begun = time.monotonic()
        sender.start()
        longest, number = 0.0, 0
        while sender.is_alive():
            longest = max(longest, timed(lambda: manager.broadcast("tick")))
            number += 1
            time.sleep(0.002)
        compressing = time.monotonic() - begun
        conn.close()
        messages = taken.messages()
        assert number > 20
        assert longest < compressing / 2
        assert rhythm.longest < 0.5
        inflater = zlib.decompressobj(wbits=-15)
        texts = [inflater.decompress(one + b"\0\0\xff\xff") if rsv else one for rsv, one in messages]
        assert Counter(texts) == {payload.encode(): 1, b"tick": number}


class _Reader:
    """A thread that reads all that comes to a client."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while data := self._client.socket.recv(1 << 18):
            self._parts.append(data)
            if data.endswith(b"\x88\x02\x03\xe8"):
                self._client.send(client_close(1000))

    def messages(self) -> list[tuple[bool, bytes]]:
        """Wait for the end; return whether each message was compressed, and its payload."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        data, found, at = b"".join(self._parts), [], 0
        while at < len(data):
            first, length = data[at], data[at + 1]
            at += 2
            if length > 125:
                width = 2 if length == 126 else 8
                length = int.from_bytes(data[at:at + width], "big")
                at += width
            if first & 0x0F < 8:
                found.append((bool(first & 0x40), data[at:at + length]))
            at += length
        return found


def test_a_window_survives_everything_at_once() -> None:
    """Broadcasts, sends and compression of several threads, to one peer that inflates all of it in one window."""
    manager = ListenableManager(overflow="drop_newest", max_outbox_size=16 * MEBIBYTE)
    deflate = Deflate(threshold=100, server_context_takeover=True)
    with serve_here(manager, compression=deflate) as port, RawClient(port).open("/ws", DEFLATE) as client:
        conn = only(manager)
        taken = _Reader(client)
        expected: Counter[bytes] = Counter()
        lock = threading.Lock()

        def work(number: int) -> None:
            for turn in range(150):
                text = f"{number} {turn} " * (1, 20, 3000)[turn % 3]
                if (number + turn) % 2:
                    conn.send(text)
                else:
                    assert manager.broadcast(text)
                with lock:
                    expected[text.encode()] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        conn.close()
        inflater = zlib.decompressobj(wbits=-15)
        messages = taken.messages()
        assert len([1 for compressed, _ in messages if compressed]) > 100
        assert Counter(
            inflater.decompress(one + b"\0\0\xff\xff") if compressed else one
            for compressed, one in messages) == expected


def test_a_compression_that_fails_spoils_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when it had gone half-way: what comes next refers to nothing that the peer has not got."""
    real = zlib.compressobj
    failing: list[bool] = []

    class Compressor:
        def __init__(self, *args: Any) -> None:
            self._real = real(*args)

        def compress(self, data: bytes) -> bytes:
            return self._real.compress(data)

        def flush(self, mode: int) -> bytes:
            if failing and failing.pop():
                raise MemoryError
            return self._real.flush(mode)

    monkeypatch.setattr(zlib, "compressobj", Compressor)
    manager = ListenableManager()
    deflate = Deflate(threshold=100, server_context_takeover=True)
    with serve_here(manager, compression=deflate) as port, RawClient(port).open("/ws", DEFLATE) as client:
        conn = only(manager)
        taken = _Reader(client)
        conn.send("first" * 100)
        failing.append(True)
        with pytest.raises(MemoryError):
            conn.send("second" * 100)
        conn.send("second" * 100)
        conn.close()
        inflater = zlib.decompressobj(wbits=-15)
        texts = [inflater.decompress(one + b"\0\0\xff\xff") for compressed, one in taken.messages() if compressed]
        assert texts == [b"first" * 100, b"second" * 100]


# 7. Limits that a peer does not walk past

FLOODS = {
    "Pings": EMPTY_PING * 300,
    "Pongs": client_frame(10) * 300,
    "empty fragments": client_frame(TEXT, fin=False) + client_frame(CONTINUATION, fin=False) * 300,
    "full Pings": client_frame(PING, bytes(125)) * 300,
}


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("options", [{}, {"max_message_rate": 100, "max_control_rate": None}], ids=["default", "rate"])
def test_floods(flood: str, options: dict[str, Any]) -> None:
    codes: list[int | None] = []
    manager = ListenableManager(on_close=lambda conn: codes.append(conn.close_code), close_timeout=0.5, **options)
    with serve_here(manager) as port, RawClient(port).open("/ws") as client:
        client.send(FLOODS[flood])
        seen = client.recv_rest()
        assert b"\x03\xf0" in seen  # 1008
    wait_until(lambda: len(codes) == 1)


def test_honest_control_frames_pass() -> None:
    manager = ListenableManager(on_message=lambda conn, opcode, payload: conn.send(payload))
    with serve_here(manager) as port, RawClient(port).open("/ws") as client:
        client.send(EMPTY_PING * 150)
        assert client.recv(300) == b"\x8a\x00" * 150
        client.send(client_frame(TEXT, b"a") * 2000)  # Messages are no control frames.
        assert client.recv(6000) == b"\x81\x01a" * 2000


@pytest.mark.parametrize("begun", [
    client_frame(TEXT, b"a", fin=False), client_header(TEXT, 100), client_header(TEXT, 100)[:1],
    client_header(BINARY, 100_000) + bytes(70_000), client_frame(TEXT, fin=False),
], ids=["fragment", "header", "half a header", "large", "empty"])
def test_a_message_that_was_begun_has_a_deadline(begun: bytes) -> None:
    manager = ListenableManager(message_timeout=0.5)
    with serve_here(manager) as port, RawClient(port).open("/ws") as client:
        client.send(begun)
        first = time.monotonic()
        opcode, payload = client.recv_frame()
        assert (opcode, payload[:2]) == (CLOSE, b"\x03\xf0")
        assert time.monotonic() - first >= 0.4


def test_a_message_is_late_when_the_peer_is_not_when_the_application_is() -> None:
    manager = ListenableManager(
        on_message=lambda conn, opcode, payload: time.sleep(1.5 * (payload == "work")),
        message_timeout=0.5, max_inbox_size=10)
    with serve_here(manager) as port, RawClient(port).open("/ws") as client:
        client.send(client_frame(TEXT, b"work") + client_frame(TEXT, b"fills the inbox") * 3 + client_frame(TEXT)[:1])
        time.sleep(1.2)
        client.send(client_frame(TEXT)[1:])
        client.send(client_frame(PING, b"well?"))
        assert client.recv_frame() == (10, b"well?")


# What all hold together


def test_the_greediest_goes_first(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "wsthread")
    codes: dict[str, int | None] = {}
    manager = ListenableManager(
        on_close=lambda conn: codes.update({conn.request.args["size"]: conn.close_code}), max_held_size=500_000)
    sizes = 50_000, 100_000, 200_000, 400_000
    with serve_here(manager) as port:
        clients = {size: RawClient(port).open(f"/ws?size={size}") for size in sizes}
        wait_until(lambda: len(manager.connections) == len(sizes))
        for size, client in clients.items():
            client.send(client_frame(BINARY, bytes(size), fin=False))
        wait_until(lambda: codes)
        wait_until(lambda: manager.stats()["greedy"])
        time.sleep(1.2)  # For another look.
        assert codes == {"400000": 1006}
        assert manager.stats()["greedy"] == 1
        line, = [record.getMessage() for record in caplog.records]
        assert "terminated, 400000 bytes were held for it, and 750000 for all; max_held_size is 500000" in line
        for client in clients.values():
            client.reset()


def test_what_is_held_counts_whatever_holds_it() -> None:
    """Fragments, what was inflated of them, the inbox, the outbox, and a large frame that has begun."""
    go_on = threading.Event()
    manager = ListenableManager(
        on_message=lambda conn, opcode, payload: go_on.wait(TIMEOUT), max_held_size=400_000, message_timeout=None)
    attacks: list[tuple[str, tuple[str, ...], bytes]] = [
        ("fragment", (), client_frame(BINARY, bytes(500_000), fin=False)),
        ("bomb", (DEFLATE,), client_frame(BINARY, deflated(bytes(500_000)), fin=False, rsv=RSV1)),
        ("large frame", (), client_header(BINARY, 1_000_000) + bytes(70_000)),
        ("inbox", (), client_frame(TEXT, b"go") + client_frame(BINARY, bytes(500_000))),
        ("outbox", (), b""),
    ]
    with serve_here(manager, send_buffer=SMALL) as port:
        for number, (_, headers, data) in enumerate(attacks, start=1):
            with deaf(port, *headers) as client:
                conn = only(manager)
                client.send(data)
                if not data:
                    manager.broadcast(bytes(900_000))
                wait_until(lambda: manager.stats()["greedy"] == number)
                wait_until(lambda: conn.closed)
                assert conn.close_code == 1006
                go_on.set()
                wait_until(lambda: manager.stats()["threads"] == 0)
                go_on.clear()
        assert manager.stats()["greedy"] == len(attacks)


def test_a_handler_that_lingers_is_greedy_once() -> None:
    """The connection is gone, and so is what waited for its handler."""
    go_on = threading.Event()
    manager = ListenableManager(
        on_message=lambda conn, opcode, payload: go_on.wait(TIMEOUT), max_held_size=400_000)
    with serve_here(manager) as port, RawClient(port).open("/ws") as client:
        conn = only(manager)
        client.send(client_frame(TEXT, b"go") + client_frame(BINARY, bytes(500_000)))
        wait_until(lambda: conn.closed)
        assert manager.stats()["greedy"] == 1
        time.sleep(1.5)
        assert manager.stats()["greedy"] == 1
        assert manager.stats()["inbox_bytes"] == 0
        go_on.set()
    wait_until(lambda: manager.stats()["threads"] == 0)


def test_a_large_handshake_counts() -> None:
    manager = ListenableManager(max_held_size=200_000)
    with serve_here(manager) as port:
        headers = [f"X-Filler-{number}: {'x' * 8000}" for number in range(90)]
        with RawClient(port).open("/ws", *headers), RawClient(port).open("/ws") as honest:
            wait_until(lambda: manager.stats()["greedy"] == 1)
            honest.send(EMPTY_PING)
            assert honest.recv(2) == b"\x8a\x00"


# 9. What is raised in callbacks


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, RuntimeError])
@pytest.mark.parametrize("where", ["on_connect", "on_message", "on_error", "on_close", "on_slow"])
def test_whatever_a_callback_raises(
    error: type[BaseException], where: str, caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[str] = []

    def call(name: str) -> Callable[..., None]:
        def callback(conn: Connection, *args: object) -> None:
            calls.append(name)
            if name == where or (name, where) == ("on_message", "on_error"):
                raise error("out of a callback")
        return callback

    manager = ListenableManager(max_outbox_size=20_000, close_timeout=0.5, overflow="drop_newest")
    for name in ("on_connect", "on_message", "on_error", "on_close", "on_slow"):
        setattr(manager, name, call(name))
    with serve_here(manager, send_buffer=SMALL) as port, deaf(port) as peer:
        if where == "on_slow":
            only(manager)
            with RawClient(port).open("/ws") as other:
                wait_until(lambda: len(manager.connections) == 2)
                for _ in range(10):
                    manager.broadcast(bytes(10_000))
                    other.recv(10_004)
                assert [one.connected for one in manager.connections] == [True]
                other.send(client_close(1000))
                other.recv_rest()
        elif where == "on_close":
            peer.send(client_close(1000))
            assert peer.recv_rest() == b"\x88\x02\x03\xe8"
        else:
            peer.send(client_frame(TEXT, b"go"))
            assert peer.recv_frame() == (CLOSE, b"\x03\xf3")  # 1011
            peer.send(client_close(1011))
        wait_until(lambda: manager.stats()["threads"] == 0)
    counts = Counter(calls)
    assert counts["on_connect"] == counts["on_close"] == (2 if where == "on_slow" else 1)
    assert counts["on_error"] == 1
    assert manager.stats()["closed"].keys() <= {"1011", "1000", "1006"}
    text = caplog.text
    assert error.__name__ in text and "error in a callback" in text


# Small promises


@pytest.mark.parametrize("data", [client_frame(TEXT, b"hello"), client_frame(TEXT, b"hello")[:5]])
def test_glued_bytes_are_counted(data: bytes) -> None:
    manager = ListenableManager()
    with serve_here(manager) as port, RawClient(port) as client:
        client.send(_handshake(port).replace(b"Upgrade, close", b"Upgrade") + data)
        client.recv_head()
        wait_until(lambda: manager.stats()["bytes_received"] == len(data))


def test_groups_are_strings_so_a_dump_always_works() -> None:
    manager = ListenableManager()
    with serve_here(manager) as port, RawClient(port).open("/ws?%0a=%ff&a=%00%F0%9F%92%A9"):
        conn = only(manager)
        for wrong in (42, None, b"bytes", ("a", "b"), float("nan")):
            with pytest.raises(TypeError):
                conn.join(wrong)  # type: ignore[arg-type]
        for odd in ("", "\n", "\ud800", "\0", "%s%d", "x" * 100_000, "\u202e"):
            conn.join(odd)
        lines = manager.dump().splitlines()
        assert len(lines) == 2 and "%s%d" in lines[1]
        lines[1].encode()


def test_a_peer_does_not_write_the_operators_log() -> None:
    manager = ListenableManager()
    with serve_here(manager) as port, RawClient(port).open("/ws/%0aINFO:forged%1b[31m"):
        only(manager)
        assert len(manager.dump().splitlines()) == 2
        assert "\x1b" not in manager.dump()
