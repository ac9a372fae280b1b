"""Measures what TLS costs: ``make bench-tls``.

Ten clients send a message each and wait for their echoes, over TLS and without it, in turns with all servers. What
counts is the CPU time of the server for each message, because these clients, in Python, are slower than the servers.

Results are in tls.txt and tls.json below build/bench.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import launch
import machine
import programs
import report
from hostile import BINARY, frame

Row = dict[str, Any]

CLIENTS = 10
SIZES = {"32 B": 32, "1 KiB": 1024, "64 KiB": 65536}
PATIENCE = 10  # Seconds.
HEAD = ["Server", "message", "plain", "over TLS", "more"]


def main() -> int:
    """Measure and report; return the exit status."""
    parser = argparse.ArgumentParser(prog="tls.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how many (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1, help="to measure in each (%(default)s)")
    parser.add_argument("--servers", metavar="A,B", default="wsthread,flask-sock", help="(%(default)s)")
    machine.add_cpu_options(parser)
    arguments = parser.parse_args()
    chosen = [launch.CONTESTANTS[name] for name in arguments.servers.split(",")]
    try:
        for contestant in chosen:
            contestant.need()
        certificate = make_certificate()
    except launch.LeftOut as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    launch.end_servers_on_sigterm()
    description = machine.describe()
    rows = measure([one for plain in chosen for one in (plain, over_tls(plain, certificate))], arguments)
    report.save("tls", [*table(rows), *description], {"machine": description, "rows": rows})
    return 0


def make_certificate() -> Path:
    """Return the path of a file with a certificate and its key, which nobody trusts.

    Raises:
        LeftOut: there is no openssl.
    """
    if shutil.which("openssl") is None:
        raise launch.LeftOut("there is no openssl to make a certificate with")
    path = programs.BUILD / "certificate.pem"
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "1",
         "-keyout", path, "-out", path], check=True, capture_output=True)
    return path


def over_tls(contestant: launch.Contestant, certificate: Path) -> launch.Contestant:
    """Return the same server with TLS."""
    options = ["--certfile", str(certificate), "--keyfile", str(certificate)]
    return dataclasses.replace(contestant, tls=True, command=[*contestant.command, *options])


def measure(chosen: list[launch.Contestant], arguments: argparse.Namespace) -> list[Row]:
    """Return a row for each server, size of messages and round."""
    rows: list[Row] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(launch.Server(one, arguments.server_cpu)) for one in chosen]
        for number in range(arguments.rounds):
            for size in SIZES:
                for contestant, server in zip(chosen, servers):
                    with machine.pinned(arguments.load_cpu):
                        cost = cpu_time(server, SIZES[size], arguments.seconds)
                    rows.append({
                        "server": contestant.name, "tls": contestant.tls, "size": size, "round": number, "cost": cost})
                    kind = "TLS" if contestant.tls else "plain"
                    print(f"round {number + 1}, {size}, {contestant.name}, {kind}: {cost:.1f} us", flush=True)
    return rows


def cpu_time(server: launch.Server, size: int, seconds: float) -> float:
    """Return the microseconds of CPU time that the server takes for one message.

    Raises:
        OSError: the server does something else.
    """
    message = frame(BINARY, bytes(size))
    with ExitStack() as stack:
        clients = [stack.enter_context(server.open("/echo", PATIENCE)) for _ in range(CLIENTS)]
        exchange(clients, message, size)  # The first one warms up.
        count, end = 0, time.monotonic() + seconds
        before = machine.cpu_clock(server.pids)
        while time.monotonic() < end:
            exchange(clients, message, size)
            count += len(clients)
        return (machine.cpu_clock(server.pids) - before) / count * 1e6


def exchange(clients: list[socket.socket], message: bytes, size: int) -> None:
    """Let each client send a message, and wait for the echoes."""
    for client in clients:
        client.sendall(message)
    length = size + (2 if size < 126 else 4 if size < 65536 else 10)
    for client in clients:
        left = length
        while left:
            data = client.recv(left)
            if not data:
                raise ConnectionError("the server closed")
            left -= len(data)


def table(rows: list[Row]) -> list[str]:
    """Return the lines of the table."""
    lines = [HEAD]
    for server, size in dict.fromkeys((row["server"], row["size"]) for row in rows):
        own = [row for row in rows if (row["server"], row["size"]) == (server, size)]
        plain, over = (statistics.median(row["cost"] for row in own if row["tls"] is tls) for tls in (False, True))
        lines.append([server, size, f"{plain:.1f}", f"{over:.1f}", f"{over - plain:.1f}"])
    return [
        *report.grid(lines), "", "Microseconds of CPU time of the server for an echo;",
        f"{CLIENTS} clients, medians of the rounds, {ssl.OPENSSL_VERSION}.", ""]


if __name__ == "__main__":
    sys.exit(main())
