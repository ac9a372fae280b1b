"""Soaks the hand-over between the threads of connections and their attendant: ``python tests/soak.py --help``.

Clients send numbered messages of all sizes and shapes, torn anywhere, with Pings between, and end in one of several
ways. Handlers alternate at random between work and asking for messages, so that now the connection's own thread reads
and now the attendant. Ticks are short, more threads attend all connections again and again, and the interpreter
switches between threads as often as it can.

It prints what it did as JSON, and ends with status 1 when anything was lost, doubled, reordered or left behind.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
import random
import selectors
import socket
import struct
import sys
import threading
import time
import weakref
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum, auto
from typing import Any, NamedTuple

from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, RSV3, TEXT, client_close, client_header, deflated

from wsthread import Connection, ConnectionClosed, Deflate, ListenableManager, Manager, Opcode, SimpleManager, speedups
from wsthread.connection import link_of
from wsthread.manager import hub_of
from wsthread.snapshot import Snapshot
from wsthread.transport import Transport
from wsthread.wire.deflate import Agreement

LARGEST = 200_000
OVERHEAD = 200  # Bytes that a message takes in an inbox besides its payload.
INBOX_SIZES = (600, 20_000, 1 << 20)
FILLER = bytes(range(256)) * (LARGEST // 256 + 1)
TEXT_FILLER = "aé€\U0001f600" * (LARGEST // 4)
#: What is sent is short, so nothing that the server sends is compressed.
AGREEMENT = Agreement(Deflate(threshold=1 << 20), False, False, 15, 15, "permessage-deflate")
OPTIONS: dict[str, Any] = {
    "ping_interval": 0.02, "ping_timeout": None, "write_timeout": 60, "close_timeout": 150, "max_connections": None}
PATIENCE = 150.0  # Seconds in which all has to end that was begun; a busy machine takes its time.


class End(Enum):
    """How a connection ends."""

    CLOSE = auto()  # The client sends a Close, and a message behind it.
    EOF = auto()  # The client ends its direction.
    VIOLATION = auto()
    RESET = auto()
    OURS = auto()  # The application closes.
    CUT = auto()  # Another thread terminates the connection.


#: The endings before which everything that was sent has to be handed over.
COMPLETE = {End.CLOSE, End.EOF, End.VIOLATION}


class Digest(NamedTuple):
    """A message, in short."""

    kind: type
    size: int
    checksum: int
    start: str | bytes


def digest(payload: str | bytes) -> Digest:
    """Return what tells a message from all others."""
    data = payload.encode() if isinstance(payload, str) else payload
    return Digest(type(payload), len(data), zlib.crc32(data), payload[:12])


def masked(opcode: int, payload: bytes, key: bytes, fin: bool = True, rsv: int = 0) -> bytes:
    """Return a client's frame, quicker than one byte at a time."""
    size = len(payload)
    pad = (key * (size // 4 + 1))[:size]
    body = (int.from_bytes(payload, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")
    return client_header(opcode, size, fin, rsv, key) + body


class Script:
    """What one client does, made up as it goes.

    Attributes:
        end: how its connection ends.
        messages: what was sent so far and has to be handed over.
        pings: the payloads of its Pings so far.
        largest: bytes of memory that the largest of the messages may take.
        code: the close code that has to come of it.
    """

    def __init__(self, seed: str, compresses: bool) -> None:
        self._random = random.Random(seed)
        self.end = self._random.choice([*COMPLETE, *End])
        self.messages: list[Digest] = []
        self.pings: list[bytes] = []
        self.largest = 0
        self.code = {
            End.CLOSE: self._random.choice([1000, 1001, 3000, 4999]), End.VIOLATION: 1002, End.OURS: 4001,
        }.get(self.end, 1006)
        self._compresses = compresses
        self._count = self._random.choice([0, 3, 30, 150])

    def chunks(self) -> Iterator[bytes]:
        """Yield what to write at once, and now and then nothing, for a pause."""
        pending = bytearray()
        for frame in self._frames():
            pending += frame
            kind = self._random.random()
            if kind < 0.6 and len(pending) < 100_000:  # Many in one segment.
                continue
            torn = 7 if kind < 0.7 and len(pending) < 3_000 else 1460 if kind < 0.8 else 1 << 17
            while pending:
                size = self._random.randint(1, torn)
                yield bytes(pending[:size])
                del pending[:size]
                if self._random.random() < 0.05:
                    yield b""
            if self._random.random() < 0.2:
                yield b""
        if pending:
            yield bytes(pending)

    def _frames(self) -> Iterator[bytes]:
        for number in range(self._count):
            yield from self._controls()
            yield from self._message(number)
        yield from self._controls()
        if self.end is End.CLOSE or self.end is End.OURS:
            yield client_close(self.code)
            yield masked(TEXT, b"too late", bytes(4))
        elif self.end is End.VIOLATION:
            yield masked(TEXT, b"a bit that means nothing", bytes(4), rsv=RSV3)
            yield masked(TEXT, b"too late", bytes(4))

    def _controls(self) -> Iterator[bytes]:
        while self._random.random() < 0.3:
            payload = b"%d " % len(self.pings) + bytes(self._random.randrange(100))
            if self._random.random() < 0.8:
                self.pings.append(payload)
                yield masked(PING, payload, b"mask")
            else:
                yield masked(PONG, payload, b"mask")

    def _message(self, number: int) -> Iterator[bytes]:
        size = self._random.choice([0, 10, 100, 1000, 5000, 70_000, LARGEST]) if self._random.random() < 0.3 else 10
        size = self._random.randint(0, size)
        payload: str | bytes = b"%d " % number + FILLER[:size]
        if self._random.random() < 0.5:
            payload = f"{number} " + TEXT_FILLER[:size // 3]
        self.messages.append(digest(payload))
        self.largest = max(self.largest, len(payload) * (4 if isinstance(payload, str) else 1) + OVERHEAD)
        opcode, data = (TEXT, payload.encode()) if isinstance(payload, str) else (BINARY, payload)
        rsv = 0
        if self._compresses and self._random.random() < 0.5:
            data, rsv = deflated(data), 4
        marks = [0, len(data)]
        if self._random.random() < 0.3:  # The second of two large fragments is received in place.
            marks += [self._random.randint(0, len(data)) for _ in range(self._random.randint(1, 4))]
        marks.sort()
        last = len(marks) - 2
        for i in range(last + 1):
            key = self._random.randbytes(4)
            yield masked(
                CONTINUATION if i else opcode, data[marks[i]:marks[i + 1]], key, i == last, 0 if i else rsv)
            if i < last:
                yield from self._controls()


class Record:
    """What the server's side of one connection saw. Its connection's thread writes it.

    Attributes:
        received: the messages, in order.
        pushed: how many messages were sent.
        closes: the close codes that on_close saw, or that there were after the handler.
        started: whether the connection's thread runs.
        finished: whether the application is done with it.
    """

    def __init__(self, seed: str, end: End) -> None:
        self.random = random.Random(seed)
        self.end = end
        self.left = self.random.randrange(40)  # Messages after which the application closes, if it does.
        self.received: list[Digest] = []
        self.pushed = 0
        self.closes: list[int | None] = []
        self.errors: list[str] = []
        self.started = False
        self.finished = False

    def work(self, conn: Connection) -> None:
        """Do something that is not receiving."""
        match self.random.randrange(8):
            case 0:
                time.sleep(self.random.random() * self.random.choice([0.01, 0.03, 0.1]))
            case 1:
                time.sleep(0)
            case 2:
                sum(range(self.random.randrange(30_000)))
            case 3 | 4:
                conn.send(f"push {self.pushed}")
                self.pushed += 1
            case 5:
                end = time.monotonic() + self.random.random() * 0.02
                while conn.connected and time.monotonic() < end:
                    time.sleep(0.001)

    def note(self, conn: Connection, payload: str | bytes) -> None:
        """Note a message, and close if it is time."""
        self.received.append(digest(payload))
        if self.end is End.OURS and len(self.received) > self.left:
            conn.close(4001)


class Client:
    """The client's end.

    Attributes:
        pongs: payloads of the Pongs that came.
        pushes: how many messages came, which are numbered.
        code: of the Close that came; None as long as there is none.
        is_over: whether the connection is.
    """

    def __init__(self, sock: socket.socket, script: Script, seed: str) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.script = script
        self.pongs: list[bytes] = []
        self.pushes = 0
        self.code: int | None = None
        self.is_over = False
        self.errors: list[str] = []
        self._random = random.Random(seed)
        self._chunks = script.chunks()
        self._rest = b""
        self._go_on_at = 0.0
        self._has_sent_all = False
        self._buffer = b""

    def write(self, now: float) -> None:
        """Send a little."""
        for _ in range(8):
            if self._has_sent_all or now < self._go_on_at or self.is_over:
                return
            if not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    self._has_sent_all = True
                    self._end()
                    return
                if not chunk:
                    self._go_on_at = now + self._random.random() * 0.03
                    return
                self._rest = chunk
            try:
                sent = self.socket.send(self._rest)
            except BlockingIOError:
                return
            except OSError:  # The server has cut it.
                self._has_sent_all = True
                return
            self._rest = self._rest[sent:]

    def _end(self) -> None:
        if self.script.end is End.EOF:
            self.socket.shutdown(socket.SHUT_WR)
        elif self.script.end is End.RESET:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.is_over = True

    def read(self) -> None:
        """Take what is there."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        self._buffer += data
        while (frame := self._take()) is not None:
            self._handle(*frame)
        if not data:
            self.is_over = True
        elif self.code is not None and self.script.end is End.VIOLATION:
            self.is_over = True  # The server waits for us now.

    def _take(self) -> tuple[int, bytes] | None:
        data = self._buffer
        if len(data) < 2 or len(data) < 2 + data[1]:
            return None
        if data[1] > 125:
            raise AssertionError("the server sends no long frames")
        self._buffer = data[2 + data[1]:]
        return data[0], data[2:2 + data[1]]

    def _handle(self, first: int, payload: bytes) -> None:
        if self.code is not None:
            self.errors.append("a frame behind the Close")
        elif first == 0x80 | PONG:
            self.pongs.append(payload)
        elif first == 0x80 | TEXT:
            if payload != b"push %d" % self.pushes:
                self.errors.append(f"{payload!r} came in place of push {self.pushes}")
            self.pushes += 1
        elif first == 0x80 | CLOSE:
            self.code = struct.unpack("!H", payload[:2])[0]
        elif first != 0x80 | PING:
            self.errors.append(f"a frame that begins with {first:#x}")


class Pair:
    """A connection: the client's end and what the server's side saw."""

    def __init__(self, conn: Connection, client: Client, record: Record, inbox_limit: int) -> None:
        self.conn = conn
        self.inbox_limit = inbox_limit
        self.client = client
        self.record = record
        self.cut_at = time.monotonic() + record.random.random() if client.script.end is End.CUT else None

    @property
    def is_over(self) -> bool:
        """Whether both sides are done."""
        return self.client.is_over and self.record.finished

    def faults(self) -> list[str]:
        """Return what went wrong, when both sides are done."""
        script, client, record = self.client.script, self.client, self.record
        end, found = script.end, [*client.errors, *record.errors]
        if record.received != script.messages[:len(record.received)]:
            wrong = next(i for i, (a, b) in enumerate(zip(record.received, [*script.messages, None])) if a != b)
            found.append(f"message {wrong} is {record.received[wrong]}, not what was sent")
        if client.pongs != script.pings[:len(client.pongs)]:
            found.append("Pongs do not answer the Pings in order")
        if client.pushes > record.pushed + 1:
            found.append(f"{client.pushes} messages came and {record.pushed} were sent")
        if end in COMPLETE and len(record.received) != len(script.messages):
            found.append(f"{len(record.received)} of {len(script.messages)} messages were handed over")
        if end is End.CLOSE or end is End.VIOLATION:
            if len(client.pongs) != len(script.pings):
                found.append(f"{len(client.pongs)} of {len(script.pings)} Pings were answered")
            if client.pushes < record.pushed:
                found.append(f"{client.pushes} of {record.pushed} messages came")
        if end in (End.CLOSE, End.VIOLATION) and client.code != script.code:
            found.append(f"the client got {client.code}, not {script.code}")
        codes = [script.code]
        if end is End.OURS:
            codes = [4001]
        elif end is End.CUT:
            codes = [1006]
        if record.closes != codes:
            found.append(f"the application saw the codes {record.closes}, not {codes}")
        return [f"{end.name}: {one}" for one in found]


class Soak:
    """The server's side, and the threads that get in the way of it."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._numbers = itertools.count()
        self._records: dict[int, Record] = {}
        self._stop = threading.Event()
        self.pairs: list[Pair] = []
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.largest_inbox = 0
        self._gone: list[weakref.ref[Connection]] = []
        self._managers: list[tuple[int, Manager]] = []
        for size in INBOX_SIZES:
            self._managers += [
                (size, SimpleManager(self._handle, max_inbox_size=size, **OPTIONS)),
                (size, ListenableManager(
                    on_connect=self._begin, on_message=self._on_message, on_close=self._on_close,
                    on_error=self._on_error, max_inbox_size=size, **OPTIONS))]
        self._threads = [threading.Thread(target=self._guard, args=(one,)) for one in (
            self._attend_all, self._attend_all, self._look)]

    # The application

    def _begin(self, conn: Connection) -> Record:
        record = self._records[int(conn.request.args["n"])]
        conn.context = record
        record.started = True
        return record

    def _handle(self, conn: Connection) -> None:
        record = self._begin(conn)
        try:
            self._alternate(conn, record)
            record.errors.append("receive() ended without ConnectionClosed")
        except ConnectionClosed as error:
            if record.end in (End.CLOSE, End.VIOLATION) and error.code != conn.close_code:
                record.errors.append(f"ConnectionClosed says {error.code}, the connection {conn.close_code}")
        except Exception as error:
            record.errors.append(repr(error))
        # There is no on_close here. An application that goes on sees the end come all the same.
        if record.end is not End.OURS or record.random.random() < 0.5:
            end = time.monotonic() + PATIENCE
            while not conn.closed and time.monotonic() < end:
                time.sleep(0.005)
            if not conn.closed:
                record.errors.append("the connection did not end while the handler went on")
        threading.Thread(target=self._note_end, args=(conn, record)).start()

    def _note_end(self, conn: Connection, record: Record) -> None:
        end = time.monotonic() + PATIENCE
        while not conn.closed and time.monotonic() < end:
            time.sleep(0.005)
        record.closes.append(conn.close_code)
        record.finished = True

    def _alternate(self, conn: Connection, record: Record) -> None:
        while True:
            with suppress(ConnectionClosed):  # Messages that came before are still to be had.
                record.work(conn)
            timeout = record.random.choice([None, 0, 0.001, 0.02])
            with suppress(TimeoutError):
                record.note(conn, conn.receive(timeout))

    def _on_message(self, conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
        record: Record = conn.context
        record.note(conn, payload)
        with suppress(ConnectionClosed):
            record.work(conn)

    def _on_error(self, conn: Connection, error: Exception) -> None:
        conn.context.errors.append(repr(error))

    def _on_close(self, conn: Connection) -> None:
        conn.context.closes.append(conn.close_code)
        conn.context.finished = True

    # Those who get in the way

    def _guard(self, work: object) -> None:
        while not self._stop.is_set():
            try:
                work()  # type: ignore[operator]
            except Exception as error:
                logging.exception("in a thread of the soak")
                self.faults.append(f"{getattr(work, '__name__', work)}: {error!r}")

    def _attend_all(self) -> None:
        for pair in list(self.pairs):
            if pair.record.started:
                link_of(pair.conn).receiver.attend()
            if pair.cut_at is not None and time.monotonic() >= pair.cut_at:
                pair.conn.terminate()
        time.sleep(0.0005)

    def _look(self) -> None:
        for _, manager in self._managers:
            manager.stats()
            manager.dump()
        for pair in list(self.pairs):
            size = link_of(pair.conn).receiver.inbox_size
            self.largest_inbox = max(self.largest_inbox, size)
            if size >= pair.inbox_limit + pair.client.script.largest:
                self.faults.append(f"{size} bytes are in an inbox of {pair.inbox_limit}")
        time.sleep(0.0005)

    # The clients

    def connect(self) -> Pair:
        """Begin a connection."""
        number = next(self._numbers)
        seed = f"{self._seed} {number}"
        choice = random.Random(seed)
        compresses = choice.random() < 0.3
        script = Script(f"client {seed}", compresses)
        self._records[number] = record = Record(f"server {seed}", script.end)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        environ = EnvironBuilder(f"/?n={number}", environ_base={"REMOTE_ADDR": "127.0.0.1"}).get_environ()
        inbox_limit, manager = choice.choice(self._managers)
        conn = hub_of(manager).prepare(Snapshot(Request(environ)), None, AGREEMENT if compresses else None)
        pair = Pair(conn, Client(client, script, f"pauses {seed}"), record, inbox_limit)
        link_of(conn).open(Transport(server), b"", b"")
        self.counts["connections"] += 1
        self.counts[script.end.name] += 1
        self.pairs.append(pair)
        return pair

    def finish(self, pair: Pair) -> None:
        """Judge a connection that is over."""
        self.pairs.remove(pair)
        self.faults += pair.faults()
        self.counts["messages"] += len(pair.record.received)
        self.counts["pings"] += len(pair.client.pongs)
        self.counts["pushes"] += pair.client.pushes
        self._gone.append(weakref.ref(pair.conn))

    def run(self, seconds: float, count: int) -> None:
        """Hold so many connections for so long, and wait for their ends."""
        for thread in self._threads:
            thread.start()
        selector = selectors.DefaultSelector()
        open_ends: deque[Client] = deque()
        end = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            while now < end and len(self.pairs) < count:
                client = self.connect().client
                selector.register(client.socket, selectors.EVENT_READ, client)
                open_ends.append(client)
            for key, _ in selector.select(0.002):
                key.data.read()
            for client in list(open_ends):
                client.write(now)
                if client.is_over:
                    selector.unregister(client.socket)
                    client.socket.close()
                    open_ends.remove(client)
            for pair in [pair for pair in self.pairs if pair.is_over]:
                self.finish(pair)
            if now >= end and not self.pairs:
                break
            if now >= end + PATIENCE:
                self.faults += [
                    f"{pair.client.script.end.name}: does not end (client {pair.client.is_over}, application "
                    f"{pair.record.finished})" for pair in self.pairs]
                self.faults += [manager.dump() for _, manager in self._managers]
                break
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._check_left_behind()

    def _check_left_behind(self) -> None:
        end = time.monotonic() + 10
        while any(manager.stats()["threads"] for _, manager in self._managers) and time.monotonic() < end:
            time.sleep(0.01)
        for _, manager in self._managers:
            stats = manager.stats()
            left = {name: stats[name] for name in ("threads", "lingering", "inbox_bytes", "queued_bytes")}
            if any(left.values()):
                self.faults.append(f"left behind: {left}")
        gc.collect()
        alive = sum(one() is not None for one in self._gone)
        if alive > 1 and not self.pairs:
            self.faults.append(f"{alive} connections are still in memory")


class Errors(logging.Handler):
    """Collects what the library logs as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.found.append(self.format(record))


def main() -> int:
    """Soak, and tell how it went; return the exit status."""
    parser = argparse.ArgumentParser(prog="soak.py", description=__doc__.partition(".")[0])
    parser.add_argument("--seconds", type=float, default=5, help="(%(default)s)")
    parser.add_argument("--connections", type=int, default=40, help="at a time (%(default)s)")
    parser.add_argument("--seed", default=str(random.randrange(1 << 32)), help="(random)")
    arguments = parser.parse_args()
    sys.setswitchinterval(1e-5)
    errors = Errors()
    logging.getLogger("wsthread").addHandler(errors)
    logging.getLogger("wsthread").propagate = False
    soak = Soak(arguments.seed)
    soak.run(arguments.seconds, arguments.connections)
    faults = soak.faults + errors.found
    print(json.dumps({
        "seed": arguments.seed, "speedups": speedups.active, **soak.counts, "largest_inbox": soak.largest_inbox,
        "faults": len(faults)}))
    for fault in faults[:20]:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
