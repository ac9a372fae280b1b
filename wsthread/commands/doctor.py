"""Look at a deployment and tell what is wrong, on which hop, and which line to change.

With a URL it opens WebSockets as a browser would; with --gunicorn it reads the configuration that gunicorn has with
these arguments, in this directory, without importing the application; --proxy-config reads that of nginx or HAProxy;
--connections looks at the limits of the system, of the process --pid if that is given.

    wsthread doctor wss://chat.example/ws --idle 75
    wsthread doctor --proxy-config /etc/nginx/nginx.conf --gunicorn -c gunicorn.conf.py app:app
    wsthread doctor --connections 5000 --pid $(systemctl show -P MainPID chat)

Exit status: 0 when all is well, 1 when something is wrong, 2 for wrong arguments. Notes are no fault.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

from ..doctor.findings import Finding, Hop, Severity, all_is_well, fault
from ..doctor.gunicorn import SettingsError, read_settings
from ..doctor.live import judge_live
from ..doctor.machine import judge_machine
from ..doctor.proxies import PING_INTERVAL, judge_proxy
from ..doctor.settings import judge_settings
from ..doctor.visit import Visit
from . import target

SUMMARY = "tell what is wrong with a deployment, and which line to change"
_COLORS = {Severity.FAULT: "31", Severity.WARNING: "33", Severity.NOTE: "36"}
_WELL = "32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("url", metavar="URL", nargs="?", help="ws://, wss://, http:// or https://")
    target.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one object of JSON")
    parser.add_argument(
        "--idle", metavar="SECONDS", type=target.seconds, default=0.0,
        help="stay idle for so long and see whether the proxy cuts; 75 is more than nginx's own 60")
    parser.add_argument(
        "--broadcast", metavar="MESSAGE", help="send this once, and see whether it reaches the clients of all workers")
    parser.add_argument("--proxy-config", metavar="FILE", action="append", default=[], help="of nginx or HAProxy")
    parser.add_argument(
        "--ping-interval", metavar="SECONDS", type=target.seconds, default=PING_INTERVAL,
        help="the application's ping_interval (default: 20)")
    parser.add_argument(
        "--connections", metavar="N", type=int, help="how many WebSockets one worker is to hold; looks at the limits")
    parser.add_argument("--pid", metavar="PID", type=int, help="of the server, for --connections")
    parser.add_argument(
        "--gunicorn", metavar="ARGS", nargs=argparse.REMAINDER,
        help="all that follows is gunicorn's command line; GUNICORN_CMD_ARGS and the configuration file count too")


def run(arguments: argparse.Namespace) -> int:
    """Look and print; return the exit status."""
    asked = [arguments.url, arguments.gunicorn, arguments.connections]
    if asked == [None] * len(asked) and not arguments.proxy_config:
        raise ValueError("say what to look at: a URL, --proxy-config, --connections or --gunicorn")
    try:
        findings = _look(arguments)
    except OSError as error:  # Of a file or a process that the arguments name.
        raise ValueError(str(error)) from error
    well = all_is_well(findings)
    if arguments.json:
        print(json.dumps({"well": well, "findings": [one.as_json() for one in findings]}))
    else:
        print(as_text(findings, colored=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    return 0 if well else 1


def _look(arguments: argparse.Namespace) -> list[Finding]:
    url = None if arguments.url is None else re.sub("^http", "ws", arguments.url)
    findings: list[Finding] = []
    if url is not None:
        options = target.options(arguments)
        del options["origin"]
        visit = Visit(url, options, arguments.origin, arguments.idle, arguments.broadcast)
        findings += judge_live(visit, lambda text: print(text, file=sys.stderr))
    for path in arguments.proxy_config:
        findings += judge_proxy(Path(path).read_text(), arguments.ping_interval)
    if arguments.gunicorn is not None:
        try:
            findings += judge_settings(read_settings(arguments.gunicorn, url))
        except SettingsError as error:
            findings.append(fault(
                "settings", Hop.SERVER, str(error), "Call doctor with gunicorn's Python, in its directory."))
    if arguments.connections:
        findings += judge_machine(arguments.connections, arguments.pid)
    return sorted(findings, key=lambda one: list(Severity).index(one.severity))


def as_text(findings: list[Finding], colored: bool) -> str:
    """Return findings as a human reads them.

    Args:
        findings: the worst first.
        colored: whether for a terminal with colors.
    """
    def paint(color: str, text: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if colored else text

    lines = []
    for one in findings:
        lines += [
            paint(_COLORS[one.severity], f"{one.severity.value}: {one.name} ({one.hop.value})"),
            f"  {one.symptom}", f"  -> {one.remedy}"]
    if all_is_well(findings):
        lines.append(paint(_WELL, "All is well."))
    return "\n".join(lines)
