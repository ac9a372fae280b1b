"""The benchmarks' own instruments: that they compile, agree with each other, and notice what is wrong. No timings."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SHORT = ["-d", "0.05", "-w", "0"]


@pytest.fixture(scope="module")
def programs(need_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory with the two programs in C."""
    compiler, directory = need_program("cc"), tmp_path_factory.mktemp("programs")
    compiling = [
        subprocess.Popen(
            [compiler, "-Wall", "-Wextra", "-Werror", "-pthread", "-o", directory / name, BENCHMARKS / f"{name}.c"])
        for name in ("load", "c_threads")]
    assert [one.wait(60) for one in compiling] == [0, 0]
    return directory


@pytest.fixture(scope="module")
def port(programs: Path) -> Iterator[int]:
    """Return the port of the server in C."""
    with subprocess.Popen([programs / "c_threads", "0"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.kill()


def load(programs: Path, port: int, *arguments: str, commands: str = "") -> list[dict[str, Any]]:
    """Run the load generator and return what it tells."""
    done = subprocess.run(
        [programs / "load", *arguments, "--port", str(port)], input=commands, stdout=subprocess.PIPE, text=True,
        timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("arguments", [
    ["echo", "-c", "3"],
    ["echo", "-c", "2", "-f", "16", "-s", "125"],
    ["echo", "-s", "126"],
    ["echo", "-c", "2", "-b", "-s", "65535"],
    ["echo", "-c", "2", "-f", "2", "-b", "-s", "100001"],
    ["fanout", "--path", "/fanout", "-c", "5", "-s", "200", "-n", "20"],
    ["rate", "-c", "3", "-r", "20000"],
    ["rate", "-b", "-s", "65536", "-r", "500"],
    ["connect", "-c", "2"],
], ids=" ".join)
def test_load(programs: Path, port: int, arguments: list[str]) -> None:
    """What the load generator sends comes back from the server in C as it must."""
    start, result = load(programs, port, *arguments, *SHORT)
    assert start["event"] == "start" and not start["errors"]
    assert result["ok"] and result["messages"] > 0 and not result.get("starved"), result


def test_count(programs: Path, port: int) -> None:
    """A number of broadcasts is just that, and each of the subscribers gets each."""
    _, result = load(programs, port, "fanout", "--path", "/fanout", "-c", "5", "-n", "20", "-d", "30", "-w", "0")
    assert result["ok"] and result["messages"] == 100


def test_rate(programs: Path, port: int) -> None:
    """The schedule tells how many messages there are; those of the warm-up don't count."""
    _, result = load(programs, port, "rate", "-c", "3", "-r", "10000", "-d", "0.1", "-w", "0.1")
    assert result["ok"] and result["due"] == 1000
    assert result["answered"] == pytest.approx(result["messages"] / result["due"], abs=1e-6)


def _accept_and_read_no_more(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
    return connection


def test_rate_without_answers(programs: Path) -> None:
    """A server that reads nothing does not hold up the schedule, and has answered nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        accepted = pool.submit(_accept_and_read_no_more, listener)
        port = listener.getsockname()[1]
        _, result = load(programs, port, "rate", "-s", "1000000", "-r", "1000", *SHORT)
        accepted.result().close()
    assert result["ok"] and result["due"] == 50  # 50 MB are more than the kernel takes.
    assert result["messages"] == result["answered"] == 0 and result["starved"] == 1


def test_hold(programs: Path, port: int) -> None:
    """Connections that are held answer Pings."""
    start, ping = load(programs, port, "hold", "-c", "5", "--path", "/fanout", commands="ping\n")
    assert start["open"] == ping["alive"] == 5


def _swap(ws: ServerConnection) -> None:
    first, second = ws.recv(), ws.recv()
    ws.send(second)
    ws.send(first)


WRONG: dict[str, tuple[Callable[[ServerConnection], None], str]] = {
    "/changed": (lambda ws: ws.send(f"{str(ws.recv())[:-1]}!"), "not what was sent"),
    "/stamp": (lambda ws: ws.send(f"!{str(ws.recv())[1:]}"), "not what was sent"),
    "/short": (lambda ws: ws.send(str(ws.recv())[:-1]), "too short"),
    "/long": (lambda ws: ws.send(f"{ws.recv()!s}!"), "too long"),
    "/kind": (lambda ws: ws.send(str(ws.recv()).encode()), "another kind"),
    "/swapped": (_swap, "not what was sent"),
    "/repeated": (lambda ws: ws.send([ws.recv()] * 3), "too long"),
    "/closed": (lambda ws: ws.close(1011), "closed connection 0 with 1011"),
}


def serve_wrongly(ws: ServerConnection) -> None:
    """Do what the path says until the client has had enough."""
    assert ws.request is not None
    try:
        while ws.close_code is None:
            WRONG[ws.request.path][0](ws)
    except ConnectionClosed:
        pass


@pytest.fixture(scope="module")
def wrong_port() -> Iterator[int]:
    """Return the port of a server that does everything wrong."""
    with serve(serve_wrongly, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", WRONG)
def test_wrong(programs: Path, wrong_port: int, path: str) -> None:
    """A server that does not send back what came has no result."""
    *_, result = load(programs, wrong_port, "echo", "--path", path, "-f", "2", *SHORT)
    assert not result["ok"] and result["errors"] and WRONG[path][1] in result["error"], result


def _row(server: str, scenario: str, rate: float, **more: object) -> dict[str, object]:
    return {
        "server": server, "scenario": scenario, "round": 0, "ok": True, "error": "", "foreign": 0.0, "rate": rate,
        "server_cpu_us": 10.0, "latency_us": {"p50": 100.0, "p99": 1000.0}, "starved": 0, **more}


def test_tables(tmp_path: Path) -> None:
    """The tables have medians of the rounds that count, and say what is wrong with the others."""
    rows = [
        _row("wsthread", "echo-10", 20_000), _row("wsthread", "echo-10", 30_000),
        _row("wsthread", "echo-10", 1_000, foreign=0.5),
        _row("c-threads", "echo-10", 100_000), _row("flask-sock", "echo-10", 77, foreign=0.9, starved=9),
        _row("wsthread", "rate-1000", 19_999, answered=0.99995, seconds=2.01),
        _row("c-threads", "rate-1000", 20_000, answered=1.0),
        _row("flask-sock", "rate-1000", 0, answered=0.0, latency_us={}, foreign=0.5),
        _row("flask-sock", "echo-100", 0, ok=False, error="nothing came"),
    ]
    results = tmp_path / "results.json"
    results.write_text(json.dumps({
        "options": {"disturbed": 0.1, "pinned": False}, "machine": ["a machine"],
        "left_out": ["go-gorilla is left out"], "rows": rows}))
    output = subprocess.run(
        [sys.executable, BENCHMARKS / "compare.py", "--show", results], stdout=subprocess.PIPE, text=True, check=True,
        timeout=60).stdout.splitlines()
    lines = [line.split("  ") for line in output]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["32 B, 10", "25,000", "100,000", "77.0?"] in cells
    assert ["32 B, 10", "0.25", "1.00", "0.00077"] in cells
    assert ["32 B, 10", "0", "0", "9"] in cells
    assert ["32 B, 100", "-", "-", "failed"] in cells
    assert "Open loop, 20,000 messages/s over 1,000 connections:" in output
    assert ["wsthread", "99.9%", "0.10 / 1.00", "2.0 s"] in cells
    assert ["c-threads", "100.0%", "0.10 / 1.00", "-"] in cells
    assert ["flask-sock", "0.0%?", "-", "-"] in cells
    assert "- flask-sock, echo-100: nothing came" in output
    assert output[-3:] == ["go-gorilla is left out", "Not pinned to CPUs.", "a machine"]
