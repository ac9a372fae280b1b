"""Measures what one WebSocket costs from its opening to its closing handshake: ``make bench-connecting``.

The unit is a plain GET of the same server, on a fresh connection too, so that the figures of machines and servers can
be compared. Both are asked for one after the other, in turns with all other servers, with the fewest headers that do
and with those of a browser, whose Connection is to be kept alive. Beside that, how many WebSockets are opened and
closed each second, eight at a time.

Results are in connecting.txt and connecting.json below build/bench.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
from contextlib import ExitStack
from typing import Any

import launch
import machine
import programs
import report
from load import Load

Row = dict[str, Any]

PATIENCE = 10  # Seconds.
BROWSER = (
    "Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36\r\nOrigin: http://127.0.0.1:{port}\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9,de;q=0.8\r\n"
    "Cookie: session=eyJfcGVybWFuZW50Ijp0cnVlfQ.aSgPAA.0123456789abcdefghijklmnopq\r\n")
GET = "GET /plain HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
UPGRADE = launch.REQUEST.removesuffix("\r\n").replace("{path}", "/echo")
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
KINDS = {
    "fewest headers": (f"{GET}\r\n", f"{UPGRADE}\r\n"),
    "of a browser": (f"{GET}Connection: keep-alive\r\n{BROWSER}\r\n", f"{UPGRADE}{BROWSER}{OFFER}\r\n"),
}
HEAD = ["Server", "headers", "GET us", "WebSocket us", "GETs", "WebSockets/s, 8 at a time"]


def main() -> int:
    """Measure and report; return the exit status."""
    parser = argparse.ArgumentParser(prog="connecting.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="how many (%(default)s)")
    parser.add_argument("--count", type=int, default=200, help="of either in each round (%(default)s)")
    parser.add_argument("--servers", metavar="A,B", default="wsthread,flask-sock", help="(%(default)s)")
    machine.add_cpu_options(parser)
    arguments = parser.parse_args()
    chosen = [launch.CONTESTANTS[name] for name in arguments.servers.split(",")]
    try:
        programs.compile_c()
        for contestant in chosen:
            contestant.need()
    except (programs.CannotCompile, launch.LeftOut) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    launch.end_servers_on_sigterm()
    description = machine.describe()
    rows = measure(chosen, arguments)
    report.save("connecting", [*table(rows), *description], {"machine": description, "rows": rows})
    return 0


def measure(chosen: list[launch.Contestant], arguments: argparse.Namespace) -> list[Row]:
    """Return a row for each server, kind of headers and round."""
    rows: list[Row] = []
    with ExitStack() as stack:
        servers = {one.name: stack.enter_context(launch.Server(one, arguments.server_cpu)) for one in chosen}
        for number in range(-1, arguments.rounds):
            for name, server in servers.items():
                for kind, texts in KINDS.items():
                    with machine.pinned(arguments.load_cpu):
                        get, websocket = (cpu_time(server, text, arguments.count) for text in texts)
                    row = {"server": name, "headers": kind, "round": number, "get": get, "websocket": websocket}
                    if number % 4 == 0:
                        row["rate"] = eight_at_a_time(server, arguments.load_cpu)
                    if number >= 0:  # The first one warms up.
                        rows.append(row)
                        print(f"round {number + 1}, {name}, {kind}: {websocket / get:.2f} GETs", flush=True)
    return rows


def cpu_time(server: launch.Server, text: str, count: int) -> float:
    """Return the microseconds of CPU time that the server takes for one request, and the closing handshake behind."""
    request = text.replace("{port}", str(server.port)).encode()
    before = machine.cpu_clock(server.pids)
    for _ in range(count):
        exchange(server.port, request)
    return (machine.cpu_clock(server.pids) - before) / count * 1e6


def exchange(port: int, request: bytes) -> None:
    """Send a request on a connection of its own; after a 101 close it properly.

    Raises:
        OSError: the server does something else.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = sock.recv(4096)
            if not data:
                raise ConnectionError(f"the server answers {answer!r}")
            answer += data
        if answer.startswith(b"HTTP/1.1 101 "):
            sock.sendall(launch.EMPTY_CLOSE)
            while sock.recv(4096):
                pass
        elif not answer.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"the server answers {answer!r}")


def eight_at_a_time(server: launch.Server, cpu: int) -> float:
    """Return how many WebSockets are opened and closed each second."""
    with Load(server.port, ["connect", "-c", "8", "--path", "/echo", "-d", "1", "-w", "0.2"], cpu) as load:
        load.event()
        rate: float = load.event()["rate"]
    return rate


def table(rows: list[Row]) -> list[str]:
    """Return the lines of the table."""
    lines = [HEAD]
    for server, kind in dict.fromkeys((row["server"], row["headers"]) for row in rows):
        own = [row for row in rows if (row["server"], row["headers"]) == (server, kind)]
        get, websocket, rate = (
            statistics.median(row[name] for row in own if name in row) for name in ("get", "websocket", "rate"))
        ratio = statistics.median(row["websocket"] / row["get"] for row in own)
        lines.append([server, kind, f"{get:.0f}", f"{websocket:.0f}", f"{ratio:.2f}", f"{rate:,.0f}"])
    return [
        *report.grid(lines), "", "Medians of the rounds. CPU time of the server for a plain GET on a fresh connection,",
        "and for a WebSocket from connecting to the end of TCP; GETs: how many GETs one WebSocket costs.", ""]


if __name__ == "__main__":
    sys.exit(main())
