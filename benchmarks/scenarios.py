"""What is measured: the scenarios, and one run of one of them against one server."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import machine
from launch import Server
from load import Load, LoadFailed

Row = dict[str, Any]

SETTLE = 1.0  # Seconds that idle connections are left alone before they are weighed.


class Scenario(NamedTuple):
    """One scenario.

    Attributes:
        name: on the command line.
        title: in the tables.
        mode: of the load generator.
        arguments: for it.
        unit: of what is counted by the second.
    """

    name: str
    title: str
    mode: str
    arguments: list[str]
    unit: str


def _echo(name: str, title: str, arguments: str) -> Scenario:
    return Scenario(name, title, "echo", arguments.split(), "messages/s")


def _fanout(name: str, title: str, arguments: str) -> Scenario:
    return Scenario(name, title, "fanout", arguments.split(), "deliveries/s")


def _rate(name: str, title: str, arguments: str) -> Scenario:
    return Scenario(name, title, "rate", arguments.split(), "answers/s")


SCENARIOS = {one.name: one for one in (
    _echo("echo-1", "32 B, 1 connection", "-c 1 -s 32"),
    _echo("echo-10", "32 B, 10", "-c 10 -s 32"),
    _echo("echo-100", "32 B, 100", "-c 100 -s 32"),
    _echo("echo-1000", "32 B, 1,000", "-c 1000 -s 32"),
    _echo("echo-1k", "1 KiB, 100", "-c 100 -s 1024"),
    _echo("echo-16", "32 B, 10, 16 in flight", "-c 10 -s 32 -f 16"),
    _echo("echo-64k", "64 KiB, 10", "-c 10 -s 65536 -b"),
    _echo("echo-1m", "1 MiB, 4", "-c 4 -s 1048576 -b"),
    _fanout("fanout-100", "fan-out to 100, 128 B", "-c 100 -s 128"),
    _fanout("fanout-1000", "fan-out to 1,000, 128 B", "-c 1000 -s 128"),
    _fanout("stuck", "fan-out to 50 and 1 stuck, 16 KiB", "-c 50 -s 16384 -b --stuck 1"),
    _rate("rate-100", "20,000 messages/s over 100 connections", "-c 100 -s 32 -r 20000"),
    _rate("rate-1000", "20,000 messages/s over 1,000 connections", "-c 1000 -s 32 -r 20000"),
    Scenario("connect", "connect and close, 8 at a time", "connect", ["-c", "8"], "cycles/s"),
    Scenario("idle", "1,000 idle connections", "hold", ["-c", "1000"], "handshakes/s"),
)}


class Place(NamedTuple):
    """Where and how long to measure.

    Attributes:
        server_cpu: where the server is pinned; None for nowhere.
        load_cpu: likewise where the load is.
        seconds: to measure.
        warm_up: seconds before.
    """

    server_cpu: int | None
    load_cpu: int | None
    seconds: float
    warm_up: float


def run(scenario: Scenario, server: Server, place: Place) -> Row:
    """Run a scenario once; what failed is told in the row's ``error``."""
    path = "/echo" if scenario.mode in ("echo", "rate", "connect") else "/fanout"
    arguments = [
        scenario.mode, *scenario.arguments, "--path", path, "--pids", ",".join(map(str, server.pids)),
        "-d", str(place.seconds), "-w", str(place.warm_up)]
    machine.forget_peak(server.pids)
    before = machine.usage(server.pids)
    row: Row = {"ok": False, "error": "", "foreign": 0.0, "before": before._asdict()}
    try:
        with Load(server.port, arguments, place.load_cpu, 150 + place.seconds) as load:
            start = load.event()
            row.update(open=start["open"], open_s=start["open_s"])
            if scenario.mode == "hold":
                _weigh(row, start, load, server)
            else:
                _measure(row, load, server, place)
    except LoadFailed as failure:
        row["error"] = str(failure)
    if server.process.poll() is not None:
        row.update(ok=False, error=f"the server ended with {server.process.returncode}")
    return row


def _measure(row: Row, load: Load, server: Server, place: Place) -> None:
    begun = time.monotonic()
    if place.server_cpu == place.load_cpu:  # They share one, or all.
        watches = [machine.Watch(place.server_cpu, [load.process.pid, *server.pids])]
    else:
        watches = [machine.Watch(place.server_cpu, server.pids), machine.Watch(place.load_cpu, [load.process.pid])]
    result = load.event()
    seconds = time.monotonic() - begun
    row["foreign"] = round(max(watch.foreign(seconds) for watch in watches), 3)
    row["after"] = machine.usage(server.pids)._asdict()
    row.update((name, value) for name, value in result.items() if name != "event")
    if not row["messages"]:  # A server may collapse so far that there is nothing to divide by.
        del row["latency_us"], row["server_cpu_us"]


def _weigh(row: Row, start: Row, load: Load, server: Server) -> None:
    """Tell what idle connections cost, and make sure that they are connections: they answer a Ping."""
    time.sleep(SETTLE)
    after, count = machine.usage(server.pids), start["open"]
    before = machine.Usage(**row["before"])
    row["after"] = after._asdict()
    if count:
        row["rate"] = count / start["open_s"]
        row["per_connection"] = {
            name: (now - then) / count for name, now, then in zip(machine.Usage._fields, after, before)}
    row["alive"] = load.ask("ping")["alive"]
    row["error"] = start["error"]
    row["ok"] = not start["errors"] and row["alive"] == count
    if not row["ok"] and not row["error"]:
        row["error"] = f"{row['alive']} of {count} connections answer a Ping"
