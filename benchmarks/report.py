"""Tables from the rows of a comparison, as text that is also reStructuredText.

Medians are over the rounds that nobody else disturbed. Where there is no such round they are over all, and the figure
has a question mark.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import programs
from scenarios import SCENARIOS, Row, Scenario

BASE = "c-threads"  # What the others are compared with.
NONE = "-"
GROWTH = 8  # MiB in a few seconds, for one reader that is stuck: there is no bound, or a high one.
SEPARATE = ("stuck", "idle", "rate-100", "rate-1000")  # Scenarios with tables of their own.


class Results:
    """All rows of a comparison.

    Args:
        rows: as :func:`scenarios.run` returns them, with ``server``, ``scenario`` and ``round``.
        disturbed: the share of a CPU from which on others have disturbed a round.

    Attributes:
        rows: likewise.
        servers: in the order of the rows.
        scenarios: in their own order.
    """

    def __init__(self, rows: list[Row], disturbed: float) -> None:
        self.rows = rows
        self.disturbed = disturbed
        self.servers = list(dict.fromkeys(row["server"] for row in rows))
        self.scenarios = [one for one in SCENARIOS.values() if any(row["scenario"] == one.name for row in rows)]

    def of(self, server: str, scenario: Scenario) -> list[Row]:
        """Return the rounds of one server in one scenario."""
        return [row for row in self.rows if row["server"] == server and row["scenario"] == scenario.name]

    def used(self, server: str, scenario: Scenario) -> tuple[list[Row], bool]:
        """Return the rounds that count, and whether they were disturbed all the same."""
        good = [row for row in self.of(server, scenario) if row["ok"]]
        quiet = [row for row in good if row["foreign"] < self.disturbed]
        return quiet or good, not quiet

    def median(self, server: str, scenario: Scenario, *keys: str) -> float | None:
        """Return the median of a value over the rounds that count; None where there is none."""
        values = [_dig(row, keys) for row in self.used(server, scenario)[0]]
        found = [value for value in values if value is not None]
        return statistics.median(found) if found else None


def _dig(row: Row, keys: Sequence[str]) -> float | None:
    value: Any = row
    for key in keys:
        if key not in value:
            return None
        value = value[key]
    return float(value)


def grid(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table; the first row is its head, and only the first column is aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(zip(row, widths)))
        for row in rows]
    return [rule, lines[0], rule, *lines[1:], rule]


def figure(value: float | None) -> str:
    """Return a number with two digits that count, or three."""
    if value is None:
        return NONE
    if value >= 100 or not value:
        return f"{value:,.0f}"
    if value >= 0.1:
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:.{1 - math.floor(math.log10(value))}f}"  # Two digits.


def save(name: str, lines: list[str], data: object) -> None:
    """Print the lines, and write them and the data that they come from to build/bench."""
    text = "\n".join(lines)
    (programs.BUILD / f"{name}.txt").write_text(f"{text}\n")
    (programs.BUILD / f"{name}.json").write_text(json.dumps(data, indent=1))
    print(f"\n{text}")


def tables(results: Results) -> list[str]:
    """Return the lines of all tables."""
    speed = [one for one in results.scenarios if one.name not in SEPARATE]
    lines: list[str] = []
    if speed:
        lines += _by_scenario(
            results, speed, "Messages, deliveries or cycles per second",
            lambda *where: _marked(results, *where, "rate", figure))
        if BASE in results.servers:
            lines += _by_scenario(
                results, speed, f"The same as a share of {BASE}", lambda *where: figure(ratio(results, *where)))
        lines += _by_scenario(
            results, speed, "CPU time of the server for each of them, in microseconds",
            lambda *where: figure(results.median(*where, "server_cpu_us")))
        lines += _by_scenario(
            results, speed, "Latency, median / 99 %, in milliseconds", lambda *where: _latency(results, *where))
        lines += _starved(results, speed)
    for one in results.scenarios:
        if one.mode == "rate":
            lines += _open_loop(results, one)
    if any(one.name == "stuck" for one in results.scenarios):
        lines += _stuck(results)
    if any(one.name == "idle" for one in results.scenarios):
        lines += _idle(results)
    return lines + list(_notes(results))


def ratio(results: Results, server: str, scenario: Scenario) -> float | None:
    """Return a server's rate as a share of the base's."""
    rate, base = (results.median(one, scenario, "rate") for one in (server, BASE))
    return rate / base if rate is not None and base else None


Cell = Callable[[str, Scenario], str]


def _by_scenario(results: Results, scenarios: list[Scenario], title: str, cell: Cell) -> list[str]:
    rows = [["", *results.servers]]
    rows += [[one.title, *(cell(server, one) for server in results.servers)] for one in scenarios]
    rows[0][0] = "Scenario"
    return [f"{title}:", "", *grid(rows), ""]


def _marked(results: Results, server: str, scenario: Scenario, key: str, show: Callable[[float], str]) -> str:
    rounds = results.of(server, scenario)
    value = results.median(server, scenario, key)
    if value is None:
        return "failed" if rounds else NONE
    disturbed = results.used(server, scenario)[1]
    return show(value) + ("?" if disturbed else "") + ("!" if any(not row["ok"] for row in rounds) else "")


def _latency(results: Results, server: str, scenario: Scenario) -> str:
    values = [results.median(server, scenario, "latency_us", name) for name in ("p50", "p99")]
    return " / ".join(figure(value / 1000) for value in values if value is not None) or NONE


def _starved(results: Results, scenarios: list[Scenario]) -> list[str]:
    """Tell how many connections got no message in the whole time: the worst round."""
    def worst(server: str, scenario: Scenario) -> str:
        found = [row["starved"] for row in results.of(server, scenario) if "starved" in row]
        return f"{max(found):,}" if found else NONE

    starved = {row["scenario"] for row in results.rows if row["scenario"] != "stuck" and row.get("starved")}
    shown = [one for one in scenarios if one.name in starved]
    if not shown:
        return ["Nobody starved: in every round each connection got messages.", ""]
    return _by_scenario(results, shown, "Starved: connections that got no message, in the worst round", worst)


def _open_loop(results: Results, scenario: Scenario) -> list[str]:
    rows = [["Server", "answered", "p50 / p99 ms", "sent in"]]
    for server in results.servers:
        seconds = results.median(server, scenario, "seconds")
        rows.append([
            server, _marked(results, server, scenario, "answered", _percent), _latency(results, server, scenario),
            NONE if seconds is None else f"{seconds:.1f} s"])
    return [f"Open loop, {scenario.title}:", "", *grid(rows), ""]


def _percent(share: float) -> str:
    return f"{math.floor(share * 1000) / 10:.1f}%"  # Rounded down: what is not all is not 100 %.


def _stuck(results: Results) -> list[str]:
    scenario = SCENARIOS["stuck"]
    rows = [["Server", "deliveries/s", "longest silence", "of", "RSS before", "at most", "verdict"]]
    for server in results.servers:
        rounds = [row for row in results.of(server, scenario) if "rate" in row]
        if not rounds:
            rows.append([server, *["failed"] * bool(results.of(server, scenario)), *[NONE] * 6][:7])
            continue
        quiet = [row for row in rounds if row["foreign"] < results.disturbed]
        row = max(quiet or rounds, key=lambda row: row["longest_silence_ms"])
        silence, window = row["longest_silence_ms"] / 1000, row["seconds"]
        rss = [row["before"]["rss"] / 1024, row["after"]["peak"] / 1024]
        stalls, grows = silence > window / 4, rss[1] - rss[0] > GROWTH
        rows.append([
            server, figure(row["rate"]), f"{silence:.2f} s", f"{window:.1f} s", *(f"{one:.0f} MiB" for one in rss),
            ("all wait for it" if stalls else "memory grows" if grows else "good") + "?" * (not quiet)])
    title = "One of 51 subscribers never reads; what the others get (the round with the longest silence)"
    return [f"{title}:", "", *grid(rows), ""]


def _idle(results: Results) -> list[str]:
    scenario = SCENARIOS["idle"]
    names = {"rss": "KiB resident", "virtual": "KiB virtual", "threads": "threads", "descriptors": "descriptors"}
    rows = [["Server", *names.values(), "alive", "handshakes/s"]]
    for server in results.servers:
        cells = [figure(results.median(server, scenario, "per_connection", name)) for name in names]
        cells += [figure(results.median(server, scenario, name)) for name in ("alive", "rate")]
        rows.append([server, *cells])
    return [f"{scenario.title}, for each of them:", "", *grid(rows), ""]


def _notes(results: Results) -> Iterable[str]:
    rounds = max(row["round"] for row in results.rows) + 1
    yield f"Medians of {rounds} round{'s' if rounds > 1 else ''}."
    disturbed = sum(row["foreign"] >= results.disturbed for row in results.rows)
    if disturbed:
        yield (
            f"In {disturbed} of {len(results.rows)} runs others used {results.disturbed:.0%} or more of one of the two "
            "CPUs; \"?\" is a figure that comes from such runs only.")
    failed = [row for row in results.rows if not row["ok"]]
    if failed:
        yield "\"!\" is a figure that some rounds are missing from, because they failed:"
        for text in dict.fromkeys(f"{row['server']}, {row['scenario']}: {row['error']}" for row in failed):
            yield f"- {text}"
    unclean = {row["server"] for row in results.rows if row.get("unclean")}
    if unclean:
        yield f"Closed connections without a Close, or left them open after it: {', '.join(sorted(unclean))}."
