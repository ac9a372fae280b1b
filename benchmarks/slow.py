"""Broadcasts to many while one of them does not read, with each overflow policy: ``make bench-slow``.

The same number of broadcasts, each as soon as everyone who reads has the last one, without and with a subscriber that
never reads. With ``close``, ``drop_oldest`` and ``drop_newest`` the others must not notice it, and memory must stay
where it is. With ``block`` the broadcast is meant to wait for it, until its ``write_timeout`` is over.

Results are in slow.txt and slow.json below build/bench.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import urllib.request
from typing import Any, get_args

import launch
import machine
import programs
import report
from load import Load, LoadFailed

from wsthread.options import Overflow

Row = dict[str, Any]

BLOCK_TIMEOUT = 5.0  # Seconds: the write_timeout for "block", so that the wait can be seen but does not take long.
LONGEST = 300  # Seconds for one run.
HEAD = [
    "overflow", "stuck", "delivered", "seconds", "p50 ms", "p99 ms", "max ms", "longest broadcast", "MiB grown",
    "sent", "queued", "dropped", "failed", "on_slow", "messages_dropped", "slow", "closed",
]


def main() -> int:
    """Measure and report; return the exit status."""
    arguments = read_arguments()
    contestant = launch.CONTESTANTS["wsthread"]
    try:
        programs.compile_c()
        contestant.need()
    except (programs.CannotCompile, launch.LeftOut) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    launch.end_servers_on_sigterm()
    machine.raise_descriptor_limit()
    description, rows = machine.describe(), []
    for policy in arguments.policies.split(","):
        for stuck in (0, 1):
            print(f"{policy}, {'one is stuck' if stuck else 'all read'} ...", flush=True)
            rows.append(broadcast(policy, stuck, contestant, arguments))
    lines = [*report.grid([HEAD, *(cells(row) for row in rows)]), "", *explanation(arguments)]
    lines += [f"- {row['overflow']}: {row['error']}" for row in rows if row["error"]]
    report.save("slow", [*lines, *description], {"machine": description, "rows": rows})
    return 1 if any(row["error"] for row in rows) else 0


def read_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="slow.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--policies", metavar="A,B", default=",".join(get_args(Overflow)), help="(%(default)s)")
    add("--subscribers", type=int, default=500, help="who read (%(default)s)")
    add("--broadcasts", type=int, default=2000, help="how many (%(default)s)")
    add("--size", type=int, default=16384, help="bytes of a message (%(default)s)")
    machine.add_cpu_options(parser)
    return parser.parse_args()


def broadcast(
    policy: str, stuck: int, contestant: launch.Contestant, arguments: argparse.Namespace,
) -> Row:
    """Run all broadcasts with one policy and return what came of them."""
    manager: dict[str, Any] = {"overflow": policy}
    if policy == "block":
        manager["write_timeout"] = BLOCK_TIMEOUT
    contestant = dataclasses.replace(contestant, env={"MANAGER": json.dumps(manager)})
    options = [
        "fanout", "--path", "/fanout", "-b", "-w", "0", "-d", str(LONGEST), "-c", str(arguments.subscribers),
        "-n", str(arguments.broadcasts), "-s", str(arguments.size), "--stuck", str(stuck)]
    row: Row = {"overflow": policy, "stuck": stuck, "error": ""}
    try:
        with (
            launch.Server(contestant, arguments.server_cpu) as server,
            Load(server.port, options, arguments.load_cpu, timeout=LONGEST + 120) as load,
        ):
            load.event()
            machine.forget_peak(server.pids)
            before = machine.usage(server.pids)
            row["load"] = load.event()
            row["grown"] = (machine.usage(server.pids).peak - before.rss) / 1024
            row["delivered"] = row["load"]["messages"] / arguments.subscribers / arguments.broadcasts
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/stats", timeout=30) as answer:
                row["stats"] = json.load(answer)
    except (RuntimeError, LoadFailed) as error:
        row["error"] = str(error)
    else:
        row["error"] = row["load"]["error"]
    return row


def cells(row: Row) -> list[str]:
    """Return one line of the table."""
    found = [row["overflow"], "one" if row["stuck"] else "none"]
    if "stats" not in row:
        return [*found, "failed", *[report.NONE] * (len(HEAD) - 3)]
    load, stats = row["load"], row["stats"]
    outcomes, manager = stats["outcomes"], stats["manager"]
    return [
        *found, f"{row['delivered']:.0%}", f"{load['seconds']:.1f}",
        *(report.figure(load["latency_us"][name] / 1000) for name in ("p50", "p99", "max")),
        f"{stats['longest_broadcast'] * 1000:,.0f} ms", f"{row['grown']:.1f}",
        *(f"{outcomes.get(name, 0):,}" for name in ("sent", "queued", "dropped", "failed")), f"{stats['on_slow']}",
        f"{manager['messages_dropped']:,}", f"{manager['slow']}",
        # The connection that found out whether the server is ready sent an empty Close.
        ", ".join(code for code in manager["closed"] if code != "1005") or report.NONE,
    ]


def explanation(arguments: argparse.Namespace) -> list[str]:
    """Return what the columns are."""
    return [
        f"{arguments.broadcasts:,} broadcasts of {arguments.size:,} bytes to {arguments.subscribers:,} that read, and "
        "none or one that never does.",
        "p50, p99, max: from the publisher's write to each delivery to those that read. Longest broadcast: the call.",
        "MiB grown: resident memory at its most, less what it was when all were connected.",
        "sent to failed: what broadcast() returned, summed up. messages_dropped, slow, closed: of manager.stats().",
        f"With block the write_timeout is {BLOCK_TIMEOUT:g} s; the broadcast is meant to wait.",
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
