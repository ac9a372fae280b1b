"""Holds many idle connections in one process, and lets them go: ``make bench-connections``.

For each size: what the process uses for each connection while all are idle; whether each of them answers a Ping and
gets one broadcast, and how long that takes; what it uses then; and after SIGTERM, how many got a Close with 1001, and
when the last one did. Beside it flask-sock and the threaded server of ``websockets``, as far as the machine allows:
they need more threads or file descriptors for a connection.

Results are in connections.txt and connections.json below build/bench.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import subprocess
import sys
import time
from typing import Any

import launch
import machine
import programs
import report
from load import Load, LoadFailed

Row = dict[str, Any]

GRACE = 10  # Seconds that gunicorn gives its workers to stop.
SETTLE = 2.0  # Seconds that the connections are left alone before they are weighed.
SPARE = 500  # Descriptors and threads for everything else.
CONTESTANTS = [
    dataclasses.replace(
        launch.CONTESTANTS["wsthread"],
        command=launch.gthread(2, "wsthread_app:app", "--graceful-timeout", str(GRACE))),
    dataclasses.replace(
        launch.CONTESTANTS["flask-sock"], command=[*launch.FLASK_SOCK, "--graceful-timeout", str(GRACE)]),
    launch.CONTESTANTS["websockets-sync"],
]
HEAD = [
    "Server", "connections", "KiB each", "after use", "virtual MiB", "threads", "descriptors", "CPU idle",
    "handshakes/s", "all Pongs", "broadcast", "Close 1001", "the last", "exit",
]


def main() -> int:
    """Measure and report; return the exit status."""
    parser = argparse.ArgumentParser(prog="connections.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", metavar="N,N", default="100,1000,5000,10000", help="(%(default)s)")
    parser.add_argument("--servers", metavar="A,B", default=",".join(one.name for one in CONTESTANTS),
                        help="(%(default)s)")
    machine.add_cpu_options(parser)
    arguments = parser.parse_args()
    try:
        programs.compile_c()
        chosen = [one for one in CONTESTANTS if one.name in arguments.servers.split(",")]
        for contestant in chosen:
            contestant.need()
    except (programs.CannotCompile, launch.LeftOut) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    launch.end_servers_on_sigterm()
    descriptors, description, rows = machine.raise_descriptor_limit(), machine.describe(), []
    for size in map(int, arguments.sizes.split(",")):
        for contestant in chosen:
            print(f"{size:,} connections, {contestant.name} ...", flush=True)
            row = {"server": contestant.name, "connections": size, "too_big": why_not(contestant, size, descriptors)}
            if not row["too_big"]:
                hold(row, contestant, arguments)
            rows.append(row)
    report.save("connections", [*table(rows), *description], {"machine": description, "rows": rows})
    return 1 if any(row["server"] == "wsthread" and row.get("error") for row in rows) else 0


def why_not(contestant: launch.Contestant, size: int, descriptors: int) -> str:
    """Return what the machine has too little of for this server to hold so many connections; empty if nothing."""
    needed, threads = size * max(contestant.descriptors, 1) + SPARE, size * contestant.threads + SPARE
    if needed > descriptors:
        return f"{needed:,} descriptors are needed, {descriptors:,} are allowed (ulimit -Hn)"
    if threads > machine.thread_limit():
        return f"{threads:,} threads are needed, {machine.thread_limit():,} can be had"
    return ""


def hold(row: Row, contestant: launch.Contestant, arguments: argparse.Namespace) -> None:
    """Fill the row of one server and size."""
    try:
        with launch.Server(contestant, arguments.server_cpu) as server:
            before = machine.usage(server.pids)
            options = ["hold", "-c", str(row["connections"]), "--path", "/fanout"]
            with Load(server.port, options, arguments.load_cpu, timeout=600) as load:
                start = load.event()
                if start["errors"]:
                    raise LoadFailed(f"{start['open']:,} are open: {start['error']}")
                row["handshakes_per_s"] = start["open"] / start["open_s"]
                weigh(row, "idle", server, before)
                row["ping"], row["broadcast"] = load.ask("ping"), load.ask("broadcast")
                weigh(row, "used", server, before)
                end(row, server, load)
    except (RuntimeError, LoadFailed) as error:
        row["error"] = str(error)


def weigh(row: Row, when: str, server: launch.Server, before: machine.Usage) -> None:
    """Note what the server uses now, for each connection, and how busy it is with nothing."""
    cpu, begun = machine.process_times(server.pids), time.monotonic()
    time.sleep(SETTLE)
    spent = sum(machine.process_times(server.pids)) - sum(cpu)
    usage = machine.usage(server.pids)
    row[when] = {
        **usage._asdict(), "cpu": spent / (time.monotonic() - begun),
        "rss_each": (usage.rss - before.rss) / row["connections"]}


def end(row: Row, server: launch.Server, load: Load) -> None:
    """Tell the server to stop, as a system that shuts it down does; note what its clients see of that."""
    load.ask("closes")
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    row["closes"] = load.event()
    try:
        server.process.wait(GRACE + 5)
    except subprocess.TimeoutExpired:
        row["error"] = f"it did not end within {GRACE + 5} s"
    row["exit_s"] = time.monotonic() - begun


def table(rows: list[Row]) -> list[str]:
    """Return the lines of the table and its notes."""
    lines = [HEAD, *(cells(row) for row in rows)]
    notes = [
        f"- {row['server']}, {row['connections']:,}: {row.get('error') or row['too_big']}"
        for row in rows if row.get("error") or row["too_big"]]
    explained = [
        "KiB each: resident memory for each connection, while idle and after use. Virtual memory, threads and",
        "descriptors: of all processes of the server together. Close 1001: how many connections got it after SIGTERM,",
        f"for which gunicorn gives {GRACE} s; \"the last\" and \"exit\" are counted from the signal.", ""]
    return [*report.grid(lines), "", *explained, *notes]


def cells(row: Row) -> list[str]:
    """Return one line of the table."""
    found = [row["server"], f"{row['connections']:,}"]
    if "closes" in row:
        idle, closes = row["idle"], row["closes"]
        proper = closes["codes"].get("1001", 0)
        found += [
            f"{idle['rss_each']:.1f}", f"{row['used']['rss_each']:.1f}", f"{idle['virtual'] / 1024:,.0f}",
            f"{idle['threads']:,}", f"{idle['descriptors']:,}", f"{idle['cpu']:.1%}", f"{row['handshakes_per_s']:,.0f}",
            f"{row['ping']['alive']:,} in {row['ping']['seconds']:.2f} s",
            f"{row['broadcast']['delivered']:,} in {row['broadcast']['seconds']:.2f} s",
            f"{proper:,}", f"{closes['last_s']:.2f} s" if proper else report.NONE, f"{row['exit_s']:.1f} s",
        ]
    return found + [report.NONE] * (len(HEAD) - len(found))


if __name__ == "__main__":
    sys.exit(main())
