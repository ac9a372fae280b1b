"""Peers that mean harm: the memory that they take, and what they cost the others: ``make bench-hostile``.

*Memory*: for each kind a fresh gunicorn, so many connections, and how much its resident memory grows with them, and is
more when they have left; each as it is, and trimmed: after glibc has given back what it keeps of freed memory
(``malloc_trim``). ``max_held_size`` terminates some when all hold more than that; the rest is what is left. Then they
come once more: what is left behind a second time does not add up with the first.

*Flood*: 100 honest clients exchange messages at a moderate rate, a page is loaded again and again, and a broadcast goes
to all twenty times a second, without and with 8 hostile peers of one kind. Who is closed comes back at once.

Results are in hostile.txt and hostile.json below build/bench.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import multiprocessing
import os
import resource
import selectors
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import machine
import programs
import report

Row = dict[str, Any]

HERE = Path(__file__).parent
MASK = b"\x01\x02\x03\x04"
MEBIBYTE = 1 << 20
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"
SETTLE = 2.0  # Seconds until memory is looked at.


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv1: bool = False, size: int | None = None) -> bytes:
    """Return a frame as a client sends it, or its beginning when it is to have more bytes than those of the payload."""
    length = len(payload) if size is None else size
    first = (0x80 if fin else 0) | (0x40 if rsv1 else 0) | opcode
    if length < 126:
        header = struct.pack("!BB", first, 0x80 | length)
    elif length < 1 << 16:
        header = struct.pack("!BBH", first, 0xFE, length)
    else:
        header = struct.pack("!BBQ", first, 0xFF, length)
    key = int.from_bytes((MASK * (len(payload) // 4 + 1))[:len(payload)], "little")
    return header + MASK + (int.from_bytes(payload, "little") ^ key).to_bytes(len(payload), "little")


def deflated(size: int) -> bytes:
    """Return a compressed payload that inflates to so many bytes."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(bytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH)


TEXT, BINARY, PING, PONG = 1, 2, 9, 10
BOMB = frame(BINARY, deflated(MEBIBYTE - 1), fin=False, rsv1=True)


class Server:
    """gunicorn with threads, and hostile_app."""

    def __init__(self, cpu: int, options: dict[str, Any]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--threads", "8", "--bind",
             f"127.0.0.1:{self.port}", "--log-level", "warning", "hostile_app:app"],
            cwd=HERE / "servers", stdout=self._log, stderr=self._log,
            env={**os.environ, "MANAGER": json.dumps(options)}, preexec_fn=lambda: os.sched_setaffinity(0, {cpu}))
        deadline = time.monotonic() + 20
        while True:
            with suppress(OSError):
                self.get("/")
                return
            if time.monotonic() > deadline:
                raise AssertionError("gunicorn does not answer")
            time.sleep(0.05)

    def get(self, path: str) -> str:
        """Return the body of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def stats(self) -> dict[str, Any]:
        """Return what the manager counts, and the resident memory."""
        found: dict[str, Any] = json.loads(self.get("/stats"))
        return found

    def connect(self, *headers: str, receive_buffer: int | None = None, timeout: float = 30) -> socket.socket:
        """Open a WebSocket."""
        sock = socket.socket()
        sock.settimeout(timeout)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(("127.0.0.1", self.port))
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall("\r\n".join([
            "GET /ws HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", *headers, "", ""]).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(65536)
            if not data:
                raise ConnectionError("closed")
            head += data
        if not head.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError(head[:40].decode())
        return sock

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


# Memory


class Hoarder(NamedTuple):
    """A kind of peer that makes the server hold memory."""

    what: str
    number: int
    data: bytes = b""
    headers: tuple[str, ...] = ()
    broadcasts: tuple[int, int] = (0, 0)  # How many, and of how many bytes.
    pings: int = 0
    options: dict[str, Any] = {}


HOARDERS = [
    Hoarder("idle", 1000),
    Hoarder("idle, deflate offered", 1000, headers=(DEFLATE,)),
    Hoarder("announces 1 MiB, sends 1 byte", 1000, frame(BINARY, b"x", size=MEBIBYTE)),
    Hoarder("announces 1 MiB, sends 65 KiB", 250, frame(BINARY, bytes(65 << 10), size=MEBIBYTE)),
    Hoarder("fragment that inflates to 1 MiB", 250, BOMB, (DEFLATE,)),
    Hoarder("half a message of 40 KiB", 250, frame(BINARY, bytes(40 << 10), fin=False)),
    Hoarder("90 headers of 8,000 bytes", 250, headers=tuple(f"X-{n}: {'x' * 8000}" for n in range(90))),
    Hoarder("empty Pings, never reads", 4, pings=1_500_000),
    Hoarder("the same without max_control_rate", 4, pings=1_500_000, options={"max_control_rate": None}),
    Hoarder("does not read 20-byte broadcasts", 10, broadcasts=(300_000, 20)),
    Hoarder("does not read 6-byte broadcasts", 10, broadcasts=(800_000, 6)),
    Hoarder("the same with drop_oldest", 10, broadcasts=(800_000, 6), options={"overflow": "drop_oldest"}),
]


def hoard(kind: Hoarder, cpu: int) -> Row:
    """Measure one kind."""
    server = Server(cpu, kind.options)
    try:
        for _ in range(3):  # Warm up.
            warm = [server.connect() for _ in range(20)]
            for sock in warm:
                sock.sendall(frame(TEXT, b"x"))
                sock.recv(3)
                sock.close()
            _wait_gone(server)
        server.get("/trim")
        before = server.stats()["resident"]
        held, tight = _come_and_go(server, kind)
        after = server.stats()["resident"]
        trimmed = int(server.get("/trim"))
        _come_and_go(server, kind)
        again = int(server.get("/trim"))
        return {
            "what": kind.what, "number": kind.number, "left": held["connections"]["open"], "greedy": held["greedy"],
            "held": held["resident"] - before, "tight": tight - before, "each": (tight - before) / kind.number,
            "after": after - before, "trimmed": trimmed - before, "again": again - before, "closed": held["closed"]}
    finally:
        server.stop()


def _come_and_go(server: Server, kind: Hoarder) -> tuple[dict[str, Any], int]:
    """Let all of them come and leave; return what the server said between, and its memory when that was trimmed."""
    socks = [
        server.connect(*kind.headers, receive_buffer=4096 if kind.broadcasts[0] or kind.pings else None)
        for _ in range(kind.number)]
    for sock in socks:
        with suppress(OSError):
            sock.sendall(kind.data)
            sock.settimeout(1)
            for _ in range(kind.pings // 10_000):
                sock.sendall(frame(PING) * 10_000)
    if kind.broadcasts[0]:
        server.get("/broadcast?number=%d&size=%d" % kind.broadcasts)
    time.sleep(SETTLE)
    held = server.stats()
    tight = int(server.get("/trim"))
    for sock in socks:
        sock.close()
    _wait_gone(server)
    time.sleep(SETTLE)
    return held, tight


def _wait_gone(server: Server) -> None:
    deadline = time.monotonic() + 60
    while server.stats()["threads"]:
        if time.monotonic() > deadline:
            raise AssertionError("connections stay")
        time.sleep(0.1)


# Flood


def flood_of(data: bytes, *headers: str, reads: bool = True) -> Callable[[Server, float], None]:
    """Return what a hostile peer does that sends the same again and again."""
    def attack(server: Server, until: float) -> None:
        block = data * max(1, 20_000 // len(data))
        while time.monotonic() < until:
            with suppress(OSError):
                with server.connect(*headers, timeout=2, receive_buffer=None if reads else 4096) as sock:
                    if reads:
                        threading.Thread(target=_drain, args=(sock,), daemon=True).start()
                    while time.monotonic() < until:
                        sock.sendall(block)
    return attack


def _drain(sock: socket.socket) -> None:
    with suppress(OSError):
        while sock.recv(1 << 16):
            pass


def reconnect(data: bytes) -> Callable[[Server, float], None]:
    """Return what a peer does that connects, sends something, and leaves with a reset."""
    def attack(server: Server, until: float) -> None:
        while time.monotonic() < until:
            with suppress(OSError):
                with server.connect(timeout=2) as sock:
                    sock.sendall(data)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return attack


FLOODS: dict[str, Callable[[Server, float], None] | None] = {
    "nobody": None,
    "Pings": flood_of(frame(PING)),
    "Pings, never reads": flood_of(frame(PING), reads=False),
    "Pongs": flood_of(frame(PONG)),
    "empty fragments": flood_of(frame(TEXT, fin=False) + frame(0, fin=False) * 1000),
    "fragments of 1 byte": flood_of(frame(TEXT, b"x", fin=False) + frame(0, b"x", fin=False) * 1000 + frame(0, b"x")),
    "messages of 1 byte": flood_of(frame(TEXT, b"x")),
    "messages of 1 MiB": flood_of(frame(BINARY, bytes(MEBIBYTE))),
    "bombs": flood_of(frame(BINARY, deflated(MEBIBYTE - 1)[:-4], rsv1=True), DEFLATE),
    "violations": reconnect(frame(TEXT, b"\xff")),
    "resets": reconnect(frame(TEXT, b"x", fin=False)),
}


def _attack(kind: str, port: int, seconds: float, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    server = object.__new__(Server)
    server.port = port
    attack = FLOODS[kind]
    assert attack is not None
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=attack, args=(server, until), daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 5)
    os._exit(0)


def _load_pages(server: Server, until: float, times: list[float]) -> None:
    while time.monotonic() < until:
        begun = time.monotonic()
        try:
            server.get("/")
            times.append(time.monotonic() - begun)
        except OSError:
            times.append(60.0)
        time.sleep(0.02)


def _exchange(socks: list[socket.socket], until: float, rate: float) -> list[float]:
    """Let each send a message ``rate`` times a second, one after the other; return how long the answers took."""
    selector = selectors.DefaultSelector()
    message, answer = frame(TEXT, b"honest"), b"\x81\x06honest"
    sent_at: dict[socket.socket, float] = {}
    for sock in socks:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    times: list[float] = []
    step = 1 / (rate * len(socks))
    next_at, turn = time.monotonic(), 0
    while (now := time.monotonic()) < until:
        while next_at <= now:
            sock = socks[turn % len(socks)]
            turn += 1
            next_at += step
            if sock not in sent_at:  # Else the last answer is late; it counts when it comes.
                sent_at[sock] = time.monotonic()
                sock.send(message)
        for key, _ in selector.select(max(0.0, next_at - time.monotonic())):
            data = key.fileobj.recv(65536)  # type: ignore[union-attr]
            if answer in data:
                times.append(time.monotonic() - sent_at.pop(key.fileobj))  # type: ignore[arg-type]
    times += [until - begun for begun in sent_at.values()]
    return times


def flood(kind: str, seconds: float, cpus: tuple[int, int]) -> Row:
    """Measure what the honest ones get beside 8 hostile peers of one kind."""
    server = Server(cpus[0], {})
    os.sched_setaffinity(0, {cpus[1]})
    try:
        honest = [server.connect() for _ in range(100)]
        server.get("/ticks")
        attackers = None
        if FLOODS[kind] is not None:
            attackers = multiprocessing.get_context("spawn").Process(
                target=_attack, args=(kind, server.port, seconds + 2.0, cpus[1]))
            attackers.start()
            time.sleep(1.5)
        server.get("/longest")
        until = time.monotonic() + seconds
        pages: list[float] = []
        loader = threading.Thread(target=_load_pages, args=(server, until, pages))
        loader.start()
        echoes = _exchange(honest, until, 5.0)
        loader.join()
        if attackers is not None:
            attackers.join(20)
            attackers.kill()
        stats = server.stats()
        return {
            "who": kind, "echo": _quantiles(echoes), "page": _quantiles(pages), "echoes": len(echoes),
            "broadcast": json.loads(server.get("/longest")), "closed": stats["closed"], "accepted": stats["accepted"],
            "honest": sum(_is_open(sock) for sock in honest)}
    finally:
        server.stop()


def _is_open(sock: socket.socket) -> bool:
    with suppress(BlockingIOError):
        try:
            while data := sock.recv(1 << 16):
                if b"\x88" in data:
                    return False
            return False
        except ConnectionError:
            return False
    return True


def _quantiles(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [60.0] * 99
    return {"p50": cuts[49], "p99": cuts[98], "max": max(times, default=60.0)}


# The report


def memory_table(rows: Iterable[Row]) -> list[str]:
    """Return its lines."""
    return report.grid([
        ["what the peer does", "peers", "left", "terminated", "MiB all", "trimmed", "KiB each", "MiB after", "trimmed",
         "after the second"],
        *([row["what"], str(row["number"]), str(row["left"]), str(row["greedy"]), _mebibytes(row, "held"),
           _mebibytes(row, "tight"), f"{row['each'] / 1024:.1f}", _mebibytes(row, "after"), _mebibytes(row, "trimmed"),
           _mebibytes(row, "again")] for row in rows)])


def _mebibytes(row: Row, key: str) -> str:
    return f"{row[key] / MEBIBYTE:.1f}"


def flood_table(rows: Iterable[Row]) -> list[str]:
    """Return its lines."""
    return report.grid([
        ["8 peers send", "echo p50", "p99", "max", "page p50", "p99", "max", "broadcast max", "honest", "accepted"],
        *([row["who"], *(f"{1000 * row[what][key]:.1f}" for what in ("echo", "page") for key in ("p50", "p99", "max")),
           f"{1000 * row['broadcast']:.1f}", str(row["honest"]), str(row["accepted"])] for row in rows)])


def main() -> int:
    """Measure and report; return the exit status."""
    cpus = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="hostile.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default="memory,flood", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each flood (%(default)s)")
    parser.add_argument("--only", default="", help="kinds whose names have this in them")
    arguments = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    programs.BUILD.mkdir(parents=True, exist_ok=True)
    memory, floods = [], []
    if "memory" in arguments.parts:
        for hoarder in HOARDERS:
            if arguments.only in hoarder.what:
                print(hoarder.what, "...", flush=True)
                memory.append(hoard(hoarder, cpus[0]))
    if "flood" in arguments.parts:
        for kind in FLOODS:
            if kind == "nobody" or arguments.only in kind:
                print(kind, "...", flush=True)
                floods.append(flood(kind, arguments.seconds, (cpus[0], cpus[-1])))
    lines = ["Memory above that of the idle server:", "", *memory_table(memory), "", "Milliseconds:", "",
             *flood_table(floods), ""]
    report.save("hostile", [*lines, *machine.describe()], {"memory": memory, "floods": floods})
    return 0


if __name__ == "__main__":
    sys.exit(main())
