"""wsthread bench."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from servers import serve_here

from wsthread import Connection, ListenableManager, Opcode
from wsthread.commands import main
from wsthread.commands.bench import quantiles


def answer(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    if payload == "close":
        conn.close(4000, "as you say")
    elif payload != "silence":
        conn.send(payload)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_here(ListenableManager(on_message=answer, max_connections=30)) as port:
        yield f"ws://127.0.0.1:{port}/ws"


@pytest.fixture
def bench(url: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that calls the command for a short time; it returns the status and the report."""

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        status = main(["bench", url, "--json", "--seconds", "0.3", *arguments])
        return status, json.loads(capsys.readouterr().out)

    return call


@pytest.mark.parametrize("options", [[], ["--message", "hello"]])
def test_good(bench: Any, options: list[str]) -> None:
    status, report = bench("--connections", "5", "--rate", "10", *options)
    assert (status, report["opened"], report["asked"], report["failure"], report["failed"]) == (0, 5, 5, None, {})
    assert 5 <= report["exchanges"] <= 15 and 0.2 <= report["seconds"] < 2
    assert 0 < report["latency"]["p50"] <= report["latency"]["p99"] <= report["latency"]["max"]
    assert report["handshake"]["max"] > 0


def test_limit(bench: Any) -> None:
    """It tells how many there could be, and why no more, and measures those."""
    status, report = bench("--connections", "40", "--rate", "1")
    assert (status, report["opened"]) == (1, 30)
    assert report["failure"].startswith("503 Service Unavailable\nNo more connections: max_connections")


@pytest.mark.parametrize(("message", "failed"), [
    ("close", "closed with 4000 as you say"), ("silence", "no answer within 0.5 s")])
def test_failures(bench: Any, message: str, failed: str) -> None:
    began = time.monotonic()
    status, report = bench("--connections", "3", "--message", message, "--timeout", "0.5")
    assert (status, report["failed"], report["latency"]) == (1, {failed: 3}, None)
    assert time.monotonic() - began < 5


def test_text(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", url, "--seconds", "0.2", "--connections", "40", "--rate", "5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["connections  30 of 40", "             503 Service Unavailable"]
    assert [line.split()[0] for line in lines[3:]] == ["handshake", "exchanges", "latency"]
    assert main(["bench", url, "--seconds", "0.2", "--connections", "1", "--message", "close"]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "latency      none", "failed       1: closed with 4000 as you say"]


def test_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ws://127.0.0.1:1/"]) == 3
    assert capsys.readouterr().err == "Connection refused\n"


@pytest.mark.parametrize(("times", "expected"), [
    ([], None), ([0.001], {"p50": 1, "p99": 1, "max": 1}),
    ([number / 1000 for number in range(200, 0, -1)], {"p50": 100, "p99": 198, "max": 200})])
def test_quantiles(times: list[float], expected: dict[str, float] | None) -> None:
    assert quantiles(times) == expected
