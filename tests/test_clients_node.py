"""Clients of protocols over WebSocket, from their registries, against small servers (apps/protocols.py)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Server, serve

TESTS = Path(__file__).parent
NODE = TESTS / "node"
TIMEOUT = 60

pytestmark = pytest.mark.slow  # Not that they were, but make test needs nothing but Python.


@pytest.fixture(scope="module", params=["gthread", "run_simple"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(request.param, "apps.protocols:app") as running:
        yield running
        assert running.errors() == []


@pytest.fixture
def run_node(need_program: Callable[[str], str]) -> Callable[..., list[str]]:
    """Return a function that runs a script of tests/node, which needs a module."""

    def run(script: str, module: str, url: str) -> list[str]:
        program = need_program("node")
        if not (NODE / "node_modules" / module).is_dir():
            skip(f"the Node.js module {module} is not installed: make integration does it where there is npm")
        return lines_of(program, str(NODE / script), url)

    return run


def skip(message: str) -> None:
    """Skip the test, but not in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{message}, but CI must not skip")
    pytest.skip(message)


def lines_of(*command: str) -> list[str]:
    """Run a client and return what it printed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def test_mqtt(server: Server, run_node: Callable[..., list[str]]) -> None:
    lines = run_node("mqtt_client.js", "mqtt", server.url("/mqtt", "ws"))
    sizes = [0, 1, 200, 20000, 300000]
    assert lines[0] == "granted 1 0" and lines[-1] == "pingresp"
    assert sorted(lines[1:-1]) == sorted(f"room/{room} {size} true" for room in (1, 2) for size in sizes)


def test_graphql(server: Server, run_node: Callable[..., list[str]]) -> None:
    lines = run_node("graphql_client.js", "graphql-ws", server.url("/graphql", "ws"))
    assert lines == ["[[0,1,2],[0,1,2,3,4]]", "no such field", "pong", "4403 Forbidden"]


def test_yjs(server: Server, run_node: Callable[..., list[str]]) -> None:
    lines = run_node("yjs_client.js", "y-websocket", server.url("/yjs", "ws"))
    assert lines == ["Hello", "same text", "Ada is there", "other document: ''"]


def test_signalr(server: Server, run_node: Callable[..., list[str]]) -> None:
    lines = run_node("signalr_client.js", "@microsoft/signalr", server.url("/signalr", "http"))
    assert [line.partition(": ")[2] or line for line in lines] == [
        "6", "no method Missing", "hello everybody", "10 11 12 13 14", "Connected Connected"]


def test_ocpp(server: Server) -> None:
    if importlib.util.find_spec("ocpp") is None:
        skip("ocpp is not installed; the extra dev has it")
    lines = lines_of(sys.executable, str(TESTS / "ocpp_client.py"), server.url("/ocpp/charger-1", "ws"))
    *others, last = lines
    assert others == ["ocpp1.6", "Accepted 60", *["2026-11-26T12:00:00Z"] * 3, "start /charger-1"]
    assert "1000" in last and "Accepted" in last
