"""Put a small, bounded load on a WebSocket and tell what it holds: connections, exchanges per second, latencies.

It opens connections one after the other, until one fails, and then lets each of them make some exchanges per second.
An exchange is a Ping and its Pong, which any endpoint answers; with --message it is that message and the next one of
the server, as with an echo. This is a look at a deployment from one machine and not a race: beyond some thousand
exchanges per second it measures itself.

    wsthread bench wss://chat.example/ws --connections 200 --rate 1

Exit status: 0 when all connections opened, lived and answered; 1 when some did not; 2 for wrong arguments; 3 when
there was no connection at all.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..client import ClientConnection
from ..exceptions import ConnectionClosed, ProtocolError
from . import target

SUMMARY = "put a small load on a WebSocket and measure it"
#: What the arguments may be at most, and their defaults.
LIMITS = {"connections": (20, 1000), "rate": (5.0, 50.0), "seconds": (5.0, 60.0)}
_OPENING = 60.0  # Seconds that all handshakes together may take.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("url", metavar="URL", help="ws:// or wss://")
    target.add_arguments(parser)
    texts = {
        "connections": "how many to open", "rate": "exchanges per second of each connection",
        "seconds": "how long to measure"}
    for name, (default, most) in LIMITS.items():
        parser.add_argument(
            f"--{name}", metavar="N", type=_bounded(type(default), most), default=default,
            help=f"{texts[name]} (default: {default:g}, at most {most:g})")
    parser.add_argument("--message", metavar="TEXT", help="what to send; the server's next message is the answer")
    parser.add_argument("--json", action="store_true", help="print one object of JSON")


def _bounded(kind: type[int] | type[float], most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        found = kind(text)
        if not 0 < found <= most:
            raise argparse.ArgumentTypeError(f"{text} must be more than 0 and at most {most:g}")
        return found

    return read


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; return the exit status."""
    load = Load(arguments)
    try:
        load.open()
        if not load.connections:
            assert load.failure is not None
            print(target.describe(load.failure), file=sys.stderr)
            return target.NOT_REACHED
        load.exchange()
    finally:
        load.close()
    report = load.report()
    print(json.dumps(report) if arguments.json else _text(report))
    return target.DONE if report["failure"] is None and not report["failed"] else 1


class Load:
    """The connections of one measurement, with a thread for each while it lasts.

    Args:
        arguments: those of the command.

    Attributes:
        connections: those that are open.
        failure: why there are no more than these; None when there are all.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.connections: list[ClientConnection] = []
        self.failure: Exception | None = None
        self._handshakes: list[float] = []
        self._latencies: list[float] = []
        self._failed: list[str] = []  # Why, for each connection that did.
        self._seconds = 0.0

    def open(self) -> None:
        """Open all, or as many as there can be."""
        connect, end = target.opener(self._arguments), time.monotonic() + _OPENING
        while len(self.connections) < self._arguments.connections:
            begin = time.monotonic()
            try:
                if begin > end:
                    raise TimeoutError(f"no more were opened within {_OPENING:g} s")
                self.connections.append(connect())
            except target.FAILURES as error:
                self.failure = error
                return
            self._handshakes.append(time.monotonic() - begin)

    def exchange(self) -> None:
        """Let all of them make exchanges for the time that was asked for."""
        begin = time.monotonic()
        interval = 1 / self._arguments.rate
        threads = [
            threading.Thread(
                target=self._work, daemon=True,
                args=(connection, begin + interval * number / len(self.connections), begin + self._arguments.seconds))
            for number, connection in enumerate(self.connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._seconds = time.monotonic() - begin

    def _work(self, connection: ClientConnection, due: float, end: float) -> None:
        """Make exchanges at their times, or one after the other where the server is slower than that."""
        try:
            while due < end:
                time.sleep(max(due - time.monotonic(), 0))
                begin = time.monotonic()
                if begin >= end:
                    return
                self._exchange_one(connection)
                self._latencies.append(time.monotonic() - begin)
                due += 1 / self._arguments.rate
        except ConnectionClosed:
            self._failed.append(f"closed with {connection.close_code} {connection.close_reason}".rstrip())
        except ProtocolError as error:
            self._failed.append(error.reason)
        except TimeoutError:
            self._failed.append(f"no answer within {self._arguments.timeout:g} s")

    def _exchange_one(self, connection: ClientConnection) -> None:
        if self._arguments.message is None:
            connection.ping()
        else:
            connection.send(self._arguments.message)
            connection.receive()

    def close(self) -> None:
        """Close all that are open."""
        patience = 1.0
        for connection in self.connections:
            try:
                connection.close(timeout=patience)
            except (ProtocolError, TimeoutError):
                patience = 0.01  # The others are not going to be better.

    def report(self) -> dict[str, Any]:
        """Return what was measured, ready for JSON; times are in milliseconds."""
        return {
            "opened": len(self.connections),
            "asked": self._arguments.connections,
            "failure": None if self.failure is None else target.describe(self.failure),
            "handshake": quantiles(self._handshakes),
            "seconds": round(self._seconds, 3),
            "exchanges": len(self._latencies),
            "per_second": round(len(self._latencies) / self._seconds, 1),
            "latency": quantiles(self._latencies),
            "failed": dict(Counter(self._failed)),
        }


def quantiles(times: list[float]) -> dict[str, float] | None:
    """Return the median, the 99th percentile and the maximum of seconds as milliseconds; None without any."""
    if not times:
        return None
    ordered = sorted(times)
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(ordered[max(math.ceil(share * len(ordered)) - 1, 0)] * 1000, 2) for name, share in shares.items()}


def _text(report: dict[str, Any]) -> str:
    lines = [f"connections  {report['opened']} of {report['asked']}"]
    if report["failure"]:
        lines.append("             " + report["failure"].replace("\n", "\n             "))
    lines += [
        f"handshake    {_times(report['handshake'])}",
        f"exchanges    {report['exchanges']} in {report['seconds']:.1f} s, {report['per_second']:g} per second",
        f"latency      {_times(report['latency'])}"]
    lines += [f"failed       {count}: {text}" for text, count in report["failed"].items()]
    return "\n".join(lines)


def _times(found: dict[str, float] | None) -> str:
    return "none" if found is None else ", ".join(f"{name} {value:g} ms" for name, value in found.items())
