"""Compares wsthread with other WebSocket servers, side by side in one run: ``make bench``.

In each round and scenario every server has its turn before the next scenario comes, each turn with a fresh process, so
that a slower or faster minute of the machine meets all of them. Server and load run where the system likes, as they do
where people run them; with ``--pinned`` the server has one CPU for itself and the load another one. A run during which
others used the CPUs is repeated, and the least disturbed attempt counts.

What is measured is in scenarios.py, how the servers are started in launch.py. Results are below build/bench:
results.json with every round, results.txt with the tables, ratios.svg and ratios.png, and the servers' logs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import launch
import machine
import plot
import programs
import report
import scenarios
from scenarios import Row

Saved = dict[str, Any]  # What is in results.json.

PAUSE = 1.0  # Seconds before another attempt.


def read_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--servers", metavar="A,B", type=_names(launch.CONTESTANTS), default=list(launch.CONTESTANTS),
        help=f"which, of {', '.join(launch.CONTESTANTS)}")
    add("--scenarios", metavar="A,B", type=_names(scenarios.SCENARIOS), default=list(scenarios.SCENARIOS),
        help=f"which, of {', '.join(scenarios.SCENARIOS)}")
    add("--rounds", type=int, default=3, help="how many (%(default)s)")
    add("--seconds", type=float, default=2, help="to measure in each run (%(default)s)")
    add("--warm-up", type=float, default=0.5, help="seconds before that (%(default)s)")
    add("--pinned", action="store_true", help="give the server one CPU, and the load another one:")
    machine.add_cpu_options(parser)
    add("--disturbed", type=float, default=0.1, help="share of a CPU that others may use (%(default)s)")
    add("--attempts", type=int, default=3, help="at most, while others use more (%(default)s)")
    add("--show", metavar="FILE", type=Path, help="measure nothing, show the results.json of an earlier run")
    return parser.parse_args()


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what reads a list of names: in the known order, and each of them known."""
    def names(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {name}, only {', '.join(known)}")
        return [name for name in known if name in chosen]

    return names


def main() -> int:
    """Measure and report; return the exit status."""
    arguments = read_arguments()
    if arguments.show:
        saved = json.loads(arguments.show.read_text())
        print("\n".join(summary(saved)))
        return 0
    try:
        programs.compile_c()
    except programs.CannotCompile as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    launch.end_servers_on_sigterm()
    limit = machine.raise_descriptor_limit()
    if limit < 4500:
        print(f"The limit of file descriptors is {limit}; servers fail at 1,000 connections (ulimit -Hn).")
    if not arguments.pinned:
        print("Server and load are not pinned to CPUs; --pinned gives each of them one.")
        arguments.server_cpu = arguments.load_cpu = None
    elif arguments.server_cpu == arguments.load_cpu:
        print("There is one CPU only, for both the server and the load: the figures tell little.")
    contestants, left_out = choose(arguments.servers)
    if not contestants:
        return 1
    saved: Saved = {
        "options": {name: value for name, value in vars(arguments).items() if name != "show"},
        "machine": machine.describe(), "left_out": left_out, "rows": [],
    }
    measure(contestants, arguments, saved)
    report.save("results", summary(saved), saved)
    draw(saved)
    return 0 if all(row["ok"] for row in saved["rows"]) else 1


def choose(names: list[str]) -> tuple[list[launch.Contestant], list[str]]:
    """Return the servers that can be started, and a line for each that cannot."""
    contestants, left_out = [], []
    for name in names:
        contestant = launch.CONTESTANTS[name]
        try:
            contestant.need()
        except launch.LeftOut as reason:
            left_out.append(f"{name} is left out: {reason}")
            print(left_out[-1], flush=True)
        else:
            contestants.append(contestant)
    return contestants, left_out


def measure(contestants: list[launch.Contestant], arguments: argparse.Namespace, saved: Saved) -> None:
    """Fill the rows, and write them to results.json after each run."""
    rows: list[Row] = saved["rows"]
    total = arguments.rounds * len(arguments.scenarios) * len(contestants)
    for number in range(arguments.rounds):
        for name in arguments.scenarios:
            for contestant in contestants:
                row = least_disturbed(scenarios.SCENARIOS[name], contestant, arguments)
                row.update(server=contestant.name, scenario=name, round=number)
                rows.append(row)
                (programs.BUILD / "results.json").write_text(json.dumps(saved, indent=1))
                figure = report.figure(row.get("rate")) if row["ok"] else row["error"]
                note = " (disturbed)" if row["foreign"] >= arguments.disturbed else ""
                print(f"{len(rows)}/{total}: round {number + 1}, {name}, {contestant.name}: {figure}{note}", flush=True)


def least_disturbed(
    scenario: scenarios.Scenario, contestant: launch.Contestant, arguments: argparse.Namespace,
) -> Row:
    """Run a scenario, again while others disturb it; return the attempt that they disturbed least."""
    place = scenarios.Place(arguments.server_cpu, arguments.load_cpu, arguments.seconds, arguments.warm_up)
    best: Row | None = None
    for attempt in range(1, arguments.attempts + 1):
        try:
            with launch.Server(contestant, place.server_cpu) as server:
                row = scenarios.run(scenario, server, place)
        except RuntimeError as error:
            row = {"ok": False, "error": str(error), "foreign": 0.0}
        row["attempt"] = attempt
        if best is None or row["foreign"] < best["foreign"]:
            best = row
        if best["foreign"] < arguments.disturbed:
            break
        time.sleep(PAUSE)
    assert best is not None
    return best


def summary(saved: Saved) -> list[str]:
    """Return the lines that tell everything."""
    where = "Pinned" if saved["options"]["pinned"] else "Not pinned"
    return [*report.tables(_results(saved)), *saved["left_out"], f"{where} to CPUs.", *saved["machine"]]


def draw(saved: Saved) -> None:
    """Draw the picture, if that is possible."""
    try:
        plot.draw(_results(saved), programs.BUILD, "\n".join(saved["machine"]))
    except ImportError as error:
        print(f"No picture: {error}")
    else:
        print(f"Every round is in {programs.BUILD / 'results.json'}, the picture in {programs.BUILD / 'ratios.svg'}")


def _results(saved: Saved) -> report.Results:
    return report.Results(saved["rows"], saved["options"]["disturbed"])


if __name__ == "__main__":
    sys.exit(main())
