"""What is wrong with the configuration of a proxy, nginx or HAProxy: its text in, findings with their lines out.

It is looked through line by line, and knows nothing of included files; ``nginx -T`` prints a configuration with these.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

from .findings import Finding, Hop, fault, warning

#: Seconds between two Pings of the server, unless its ping_interval is another one.
PING_INTERVAL = 20.0
_Lines: TypeAlias = "list[tuple[int, str]]"  # With their numbers.
_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "us": 0.000001}
_TIME = re.compile(r"(\d+)(ms|us|[smhdw]?)")


def judge_proxy(text: str, ping_interval: float = PING_INTERVAL) -> list[Finding]:
    """Return what is wrong with a proxy's configuration for WebSockets.

    Args:
        text: of nginx, or else of HAProxy.
        ping_interval: seconds between two Pings of the server.
    """
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1)]
    if any(re.match(r"(frontend|backend|listen|defaults)\b[^;{]*$", line) for _, line in lines):
        return list(_judge_haproxy(lines, ping_interval))
    directives = [(number, one.strip()) for number, line in lines for one in re.split(r"(?<=[;{}])", line)]
    return list(_judge_nginx(directives, ping_interval))


def seconds(text: str, unit: str = "") -> float:
    """Read a duration as the proxies write it; 0 when it is none.

    Args:
        text: such as ``75s`` or ``1m 30s``.
        unit: what a number without one has.
    """
    return sum(int(number) * _UNITS[found or unit] for number, found in _TIME.findall(text))


def _find(lines: _Lines, pattern: str) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield the numbers and matches of lines that begin with a pattern."""
    for number, line in lines:
        match = re.match(pattern, line)
        if match is not None:
            yield number, match


def _judge_nginx(lines: _Lines, ping_interval: float) -> Iterator[Finding]:
    for number, match in _find(lines, r"worker_shutdown_timeout\s+([^;]+);"):
        yield _hard_stop(number, match[0], f"{match[1]} after a reload")
    for number, match in _find(lines, r"proxy_read_timeout\s+([^;]+);"):
        if seconds(match[1]) <= ping_interval:
            yield _too_short(number, match[0], ping_interval, f"proxy_read_timeout {ping_interval * 3:g}s;")
    ports = {match[1] for _, match in _find(lines, r"listen\s+(?:\S*:)?(\d+)\b")}
    for number, match in _find(lines, r"(?:proxy_set_header\s+Host|uwsgi_param\s+HTTP_HOST)\s+\$host;"):
        if ports - {"80", "443"}:
            yield warning(
                "port-dropped", Hop.PROXY, f"Line {number}: {match[0]} drops the port, and pages on another one than "
                "80 or 443 are refused with 403.", f"Line {number}: {match[0].replace('$host', '$host:$server_port')}")
    passes = list(_find(lines, r"proxy_pass\s"))
    if passes and not any(_find(lines, r"proxy_set_header\s+Upgrade\s")):
        yield fault(
            "upgrade-lost", Hop.PROXY, f"Line {passes[0][0]}: no Upgrade is passed on, so handshakes get 426.",
            "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\";")
    if passes and not any(_find(lines, r"proxy_http_version\s+1\.1;")):
        yield fault(
            "http-1.0", Hop.PROXY, f"Line {passes[0][0]}: requests are passed on as HTTP/1.0, which nginx does unless "
            "it is told otherwise (before 1.29.7).", "proxy_http_version 1.1;")


def _judge_haproxy(lines: _Lines, ping_interval: float) -> Iterator[Finding]:
    for number, match in _find(lines, r"hard-stop-after\s+(\S+)"):
        yield _hard_stop(number, match[0], f"{match[1]} after a reload")
    tunnels = list(_find(lines, r"timeout\s+tunnel\s+(\S+)"))
    for number, match in tunnels or list(_find(lines, r"timeout\s+(?:client|server)\s+(\S+)")):
        if seconds(match[1], "ms") <= ping_interval:
            yield _too_short(number, match[0], ping_interval, "timeout tunnel 1h")
    for number, match in _find(lines, r"server\s.*\bmaxconn\s+(\d+)"):
        yield warning(
            "server-maxconn", Hop.PROXY, f"Line {number}: WebSockets count in maxconn {match[1]} as long as they are "
            "open; beyond it handshakes wait and plain requests get 503.",
            f"Line {number}: a maxconn above all WebSockets and requests together, or none")


def _hard_stop(number: int, line: str, when: str) -> Finding:
    return warning(
        "hard-stop", Hop.PROXY, f"Line {number}: {line} cuts all WebSockets {when}, at once and without a Close.",
        f"Remove line {number}, or let it be hours.")


def _too_short(number: int, line: str, ping_interval: float, remedy: str) -> Finding:
    return fault(
        "idle-cut", Hop.PROXY, f"Line {number}: {line} cuts WebSockets that are idle for less than the time between "
        f"two Pings ({ping_interval:g} s).", f"Line {number}: {remedy}; or a shorter ping_interval in the application")
