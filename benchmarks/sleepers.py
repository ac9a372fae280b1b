"""Pings very many connections whose handlers all sleep, and closes half of them: ``make bench-sleepers``.

Each client sends a Ping at some moment within two seconds, and every second one a Close at another; ``--spread`` has
other seconds. The table tells how long the answers took, what the process used meanwhile, and what it holds then. It is
done with the C extension and without, with nothing else to do and beside one handler that computes in pure Python.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import selectors
import socket
import statistics
import sys
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import launch
import machine
import report

SETTLE = 1.0  # Seconds that the connections are left alone before it begins.
PATIENCE = 10.0  # Seconds for the answers after everything was sent.
PING, PONG = b"\x89\x80" + bytes(4), b"\x8a\x00"
CLOSE, CLOSED = b"\x88\x82" + bytes(4) + b"\x03\xe8", b"\x88\x02\x03\xe8"
COMMAND = launch.gthread(4, "sleepers_app:app")
HEAD = [
    "extension", "computing", "connections", "Pongs", "median", "worst", "Closes", "median", "worst", "TCP over",
    "median", "worst", "CPU", "KiB each", "afterwards",
]


@dataclass
class Client:
    """One connection, and when what was sent and came; 0 for never."""

    socket: socket.socket
    pinged: float = 0.0
    ponged: float = 0.0
    closing: float = 0.0
    closed: float = 0.0
    ended: float = 0.0
    unread: bytes = field(default=b"", repr=False)

    def read(self) -> bool:
        """Take what is there; tell whether more may come."""
        try:
            data = self.socket.recv(4096)
        except ConnectionResetError:
            data = b""
        now = time.monotonic()
        if not data:
            self.ended = now
            return False
        self.unread += data
        while self.unread:
            if self.unread.startswith(PONG):
                self.ponged, self.unread = now, self.unread[len(PONG):]
            elif self.unread.startswith(CLOSED):
                self.closed, self.unread = now, self.unread[len(CLOSED):]
            elif len(self.unread) < len(CLOSED):
                break
            else:
                raise RuntimeError(f"the server sends {self.unread[:20]!r}")
        return True


def connect(port: int, path: str, sockets: ExitStack) -> Client:
    """Open a connection."""
    sock = sockets.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
    sock.sendall(launch.REQUEST.format(path=path, port=port).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        data = sock.recv(1)
        if not data:
            raise RuntimeError(f"no 101: {answer!r}")
        answer += data
    return Client(sock)


def run(clients: list[Client], spread: float) -> None:
    """Send everything within so many seconds and wait for the answers."""
    start = time.monotonic()
    events: list[tuple[float, int, bytes]] = []
    for number in range(len(clients)):
        pinged, closed = start + random.random() * spread, start + random.random() * spread
        if number % 2:
            events.append((pinged, number, PING))
        else:  # A Ping behind a Close would get no answer.
            events += [(min(pinged, closed), number, PING), (closed, number, CLOSE)]
    pending = deque(sorted(events, key=lambda event: event[:2]))
    selector = selectors.DefaultSelector()
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
    missing = len(clients)
    while (pending or missing) and time.monotonic() < start + spread + PATIENCE:
        while pending and pending[0][0] <= time.monotonic():
            _, number, frame = pending.popleft()
            client = clients[number]
            if frame is PING:
                client.pinged = time.monotonic()
            else:
                client.closing = time.monotonic()
            client.socket.send(frame)
        timeout = max(0.0, pending[0][0] - time.monotonic()) if pending else 0.1
        for key, _ in selector.select(timeout):
            client = key.data
            if not client.read():
                selector.unregister(client.socket)
        if not pending:
            missing = sum(not client.ponged or client.closing and not client.ended for client in clients)


def measure(
    size: int, spread: float, extension: bool, computes: bool, cpus: tuple[int | None, int | None],
) -> dict[str, Any]:
    """Measure once.

    Args:
        size: how many connections.
        spread: seconds within which everything is sent.
        extension: whether the server may use it.
        computes: whether another handler computes meanwhile.
        cpus: where the server and the clients run; None for anywhere.
    """
    contestant = launch.Contestant(
        "sleepers", COMMAND, launch.need_speedups, paths=("/compute",),
        env={} if extension else {"WSTHREAD_SPEEDUPS": "0"})
    with launch.Server(contestant, cpus[0]) as server, machine.pinned(cpus[1]), ExitStack() as sockets:
        before = machine.usage(server.pids)
        clients = [connect(server.port, "/sleep", sockets) for _ in range(size)]
        if computes:
            connect(server.port, "/compute", sockets)
        time.sleep(SETTLE)
        held = machine.usage(server.pids)
        cpu, begun = sum(machine.process_times(server.pids)), time.monotonic()
        run(clients, spread)
        spent = sum(machine.process_times(server.pids)) - cpu
        after = machine.usage(server.pids)
        closing = [client for client in clients if client.closing]
        return {
            "extension": extension, "computes": computes, "connections": size,
            "pongs": [client.ponged - client.pinged for client in clients if client.ponged],
            "closes": [client.closed - client.closing for client in closing if client.closed],
            "ends": [client.ended - client.closing for client in closing if client.ended],
            "cpu": spent / (time.monotonic() - begun),
            "rss_each": (held.rss - before.rss) / size, "rss_each_after": (after.rss - before.rss) / size,
        }


def cells(row: dict[str, Any]) -> list[str]:
    """Return one line of the table."""
    times = []
    for name in "pongs", "closes", "ends":
        found = sorted(row[name]) or [math.nan]
        times += [
            f"{len(row[name]):,}", f"{statistics.median(found) * 1000:,.0f} ms", f"{found[-1] * 1000:,.0f} ms"]
    return [
        "yes" if row["extension"] else "no", "one" if row["computes"] else "none", f"{row['connections']:,}", *times,
        f"{row['cpu']:.0%}", f"{row['rss_each']:.1f}", f"{row['rss_each_after']:.1f}"]


def main() -> int:
    """Measure and report; return the exit status."""
    parser = argparse.ArgumentParser(prog="sleepers.py", description=__doc__.partition(":")[0])
    parser.add_argument("--size", type=int, default=2000, help="connections (%(default)s)")
    parser.add_argument("--spread", type=float, default=2.0, help="seconds (%(default)s)")
    parser.add_argument("--unpinned", action="store_true", help="let the server run on all CPUs")
    arguments = parser.parse_args()
    launch.end_servers_on_sigterm()
    machine.raise_descriptor_limit()
    allowed = sorted(os.sched_getaffinity(0))
    cpus = None if arguments.unpinned else allowed[0], allowed[-1]
    rows = []
    for extension, computes in itertools.product((True, False), (False, True)):
        print(f"{'C' if extension else 'Python'}, {'one computes' if computes else 'nobody computes'} ...", flush=True)
        rows.append(measure(arguments.size, arguments.spread, extension, computes, cpus))
    description = machine.describe()
    report.save(
        "sleepers", [*report.grid([HEAD, *map(cells, rows)]), "", *description], {"machine": description, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
